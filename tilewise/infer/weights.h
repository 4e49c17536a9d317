// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tilewise/base/context.h"
#include "tilewise/infer/linear.h"
#include "tilewise/infer/model.h"

namespace tilewise::infer {

struct LayerWeights {
  Tensor attention_norm, mlp_norm;  // [hidden] f32
  Tensor q_norm, k_norm;            // [D] f32, or absent
  Linear qkv;                       // [(Hq + 2 Hkv) D, hidden]: rows of q, then k, then v
  Linear output;                    // [hidden, Hq D], adds to the residual
  Linear gate, up;                  // [intermediate, hidden]; gate applies silu, up multiplies by it
  Linear down;                      // [hidden, intermediate], adds to the residual
};

struct Weights {
  Tensor embedding;   // [vocab, hidden] f32
  std::vector<LayerWeights> layers;
  Tensor final_norm;  // [hidden] f32
  Linear head;        // [vocab, hidden]; made of the embedding when the model is tied
};

class Checkpoint;

/// The tensors of one linear layer: the parts' weights one below the other. Names end before ".weight" and ".bias".
struct LinearNames {
  std::vector<std::string> parts;
  bool has_bias = false;
};
struct LayerNames {
  std::string attention_norm, mlp_norm, q_norm, k_norm;  // the last two empty where the model has none
  LinearNames qkv, output, gate, up, down;
};
LayerNames names_of_layer(const ModelConfig& config, int layer);
LinearNames names_of_head(const ModelConfig& config);
inline constexpr const char* kEmbeddingName = "model.embed_tokens.weight";
inline constexpr const char* kFinalNormName = "model.norm.weight";

/// How a tensor of a model of random weights is drawn: drawn_weight(key, place, deviation).
struct DrawnTensor {
  uint64_t key = 0;
  float deviation = 0;
};

/// A model's tensors: those of a checkpoint in a folder, or drawn.
class WeightSource {
 public:
  /// Names, dtypes (F32, BF16, F16) and shapes of all tensors of a checkpoint are checked before the first one is used. With a seed no file is read.
  /// Errors: io (no such file, damaged, a tensor missing or of a wrong shape), unsupported (tensors that the architecture does not have, another dtype).
  WeightSource(const std::string& directory, const ModelConfig& config, std::optional<uint64_t> random_seed = {});
  ~WeightSource();

  const std::vector<int64_t>& shape(const std::string& name) const { return shapes_.at(name); }
  int64_t numel(const std::string& name) const;
  /// A matrix that is drawn, of standard deviation 0.02 as Hugging Face initialises them; nothing for one that is read.
  std::optional<DrawnTensor> drawn(const std::string& name) const;
  /// Writes a tensor as f32 to host memory and returns how many numbers it has. Norms of random weights are 1, biases 0. Errors: io, memory, cancelled.
  int64_t read(const std::string& name, float* to, const Context& context) const;

 private:
  std::map<std::string, std::vector<int64_t>> shapes_;
  std::optional<uint64_t> seed_;
  std::unique_ptr<Checkpoint> checkpoint_;
};

/// Makes the weights of a model on the CPU, for linear layers that compute in `compute` (f32 or bf16). Errors: as WeightSource; memory, cancelled.
Weights read_weights(const WeightSource& source, const ModelConfig& config, Dtype compute, Context& context);

}  // namespace tilewise::infer
