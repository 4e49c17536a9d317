// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>

#include "tilewise/infer/cuda/weights.h"
#include "tilewise/infer/model.h"

namespace tilewise::infer::cuda {

/// Model::forward on a GPU, its arguments checked. Attention gets views of device memory; logits come back in host memory. Each time in the result ends
/// when the device has done the work.
ForwardResult forward(const ModelConfig& config, const DeviceWeights& weights, Dtype dtype, std::span<const int32_t> tokens, KvCache& cache,
                      const ForwardOptions& options, Queue& queue, Context& context);

}  // namespace tilewise::infer::cuda
