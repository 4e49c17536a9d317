// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <functional>
#include <string>

#include "tilewise/methods/method.h"
#include "tilewise/study/comparison.h"

namespace tilewise::study {

/// One layer's attention, as a model hands it out.
struct StudiedLayer {
  Problem problem = {};        // q, k, v, mask, scale, softcap, layer; the row adds its seed
  TensorView out = {};         // to be written, [B, Hq, Sq, Dv] in the dtype of q
  TensorView sink_logit = {};  // [Hq] f32, or absent
  bool is_dense = false;       // reads all that its mask allows, whatever the row says: a layer with a sliding window
};
using StudiedAttention = std::function<void(const StudiedLayer& layer, Context& context)>;

/// What one reading of a text cost. The bits are those of its predictions; which there are: InputFigures::Reads.
struct StudiedPass {
  double total_ms = 0;  // all of the forward pass
  double bits_per_byte = kNoFigure, bits_per_token = kNoFigure;
};

/// A model that reads texts layer by layer through an attention function, and answers needles: ours (infer_model.h), or one that runs elsewhere. Every
/// call may throw what the attention function throws.
class StudiedModel {
 public:
  virtual ~StudiedModel() = default;

  /// Sizes, length, dtype, what is read; masks and dtypes that show only in a layer's tensors are known after the first read().
  virtual InputFigures input() const = 0;
  /// Whether what it holds comes from the context's memory, so that a peak says something.
  virtual bool counts_memory() const = 0;
  virtual size_t num_texts() const = 0;
  virtual std::string text_name(size_t text) const = 0;
  /// Operations of everything but attention for a text of `length` tokens, a multiply-add counted as two: for the time that is left.
  virtual double linear_work(double length) const = 0;

  virtual StudiedPass read(size_t text, const StudiedAttention& attention, Context& context) = 0;
  /// Whether the answer to a needle of the request is greedy decoding's: the prompt is read through `attention`, the answer densely.
  virtual bool answers(size_t needle, const StudiedAttention& attention, Context& context) = 0;
};

}  // namespace tilewise::study
