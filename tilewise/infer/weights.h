// SPDX-License-Identifier: Apache-2.0
#pragma once
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

/// Reads the checkpoint in a folder, for linear layers that compute in `compute` (f32 or bf16). Names, dtypes (F32, BF16, F16) and shapes of all
/// tensors are checked before the first one is used.
/// Errors: io (no such file, damaged, a tensor missing or of a wrong shape), unsupported (tensors that the architecture does not have, another
/// dtype), memory, cancelled.
Weights read_weights(const std::string& directory, const ModelConfig& config, Dtype compute, Context& context);

}  // namespace tilewise::infer
