// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "tilewise/base/context.h"
#include "tilewise/plan/plan.h"

TILEWISE_BEGIN_PUBLIC

/// Tensors of one attention call, saved from any model.
struct QkvTensors {
  std::string name;        // of the file
  Tensor q, k, v;          // [B, Hq, Sq, D], [B, Hkv, Sk, D], [B, Hkv, Sk, Dv]; f32, bf16 or f16, all alike
  Mask mask = Mask::causal();
  std::string mask_text;   // "causal", "full", "spans" (from a tensor)
  bool is_mask_assumed = false;             // nothing said which: causal was taken
  std::optional<float> softmax_scale = {};  // from the file's metadata; default 1 / sqrt(D)
  Tensor spans;            // what mask.spans reads
};

/// How --mask overrides or fills in what a file says.
enum class QkvMask { from_file, causal, full };

/// Reads `q`, `k`, `v` and, where there is one, `mask` from a safetensors file; other tensors are left alone.
/// mask  bool [Sq, Sk] or [B|1, 1, Sq, Sk], true: the query sees the key. Equal to causal (bottom-right) or to full it becomes that band; else every query
///       may see at most two ranges of keys, which become spans. Metadata: `is_causal` ("true" or "false"), `softmax_scale` (a number).
/// Errors  io (missing or damaged file, a tensor missing), shape, dtype (mixed, or not one of the three; a mask that is not bool), value (an empty
///         tensor, metadata that cannot be read, a mask beside is_causal or --mask), unsupported (a mask of its own for each head, a query with more
///         than two ranges), memory.
TILEWISE_API QkvTensors load_qkv(const std::string& path, QkvMask mask, Context& context);

/// The same tensors in the memory of the context, on its GPU. Errors: device (the context is not on a GPU, the tensors are not on the CPU), memory, cuda.
TILEWISE_API QkvTensors copy_to_device(const QkvTensors& tensors, const Context& context);

TILEWISE_END_PUBLIC
