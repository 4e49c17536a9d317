// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <vector>

#include "tilewise/infer/cuda/queue.h"
#include "tilewise/infer/weights.h"

namespace tilewise::infer::cuda {

/// A matrix W [out, in] in the model's dtype, row-major, and its bias.
struct DeviceLinear {
  Tensor weights;   // [out, in]
  Tensor bias = {};  // [out] f32, or absent
  int64_t out() const { return weights.view.dim(0); }
  int64_t in() const { return weights.view.dim(1); }
  const float* bias_or_null() const { return bias.view.has_value() ? static_cast<const float*>(bias.view.raw()) : nullptr; }
};

struct DeviceLayer {
  Tensor attention_norm, mlp_norm;  // [hidden] f32
  Tensor q_norm = {}, k_norm = {};  // [D] f32, or absent
  DeviceLinear qkv;                 // rows of q, then k, then v
  DeviceLinear output;
  DeviceLinear gate_up;             // [2 intermediate, hidden]: gate, then up
  DeviceLinear down;
};

struct DeviceWeights {
  Tensor embedding;   // [vocab, hidden] f32
  Tensor final_norm;  // [hidden] f32
  std::vector<DeviceLayer> layers;
  DeviceLinear head;
};

/// Reads the weights to the device of the context, one tensor after another, or draws them there. Errors: as WeightSource; memory, cuda, cancelled.
DeviceWeights make_weights(const WeightSource& source, const ModelConfig& config, Dtype dtype, Queue& queue, Context& context);

}  // namespace tilewise::infer::cuda
