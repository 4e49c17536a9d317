// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cuda_runtime_api.h>

#include "tilewise/infer/cuda/kernels.h"

// The kernels of this folder, as its host code launches them.
namespace tilewise::infer::cuda {

cudaError_t launch(const EmbedArgs& args, cudaStream_t stream);
cudaError_t launch(const NormArgs& args, cudaStream_t stream);
cudaError_t launch(const TurnArgs& args, cudaStream_t stream);
cudaError_t launch(const SiluArgs& args, cudaStream_t stream);
cudaError_t launch(const BiasArgs& args, cudaStream_t stream);
cudaError_t launch(const BitsArgs& args, cudaStream_t stream);
cudaError_t launch(const DrawArgs& args, cudaStream_t stream);

}  // namespace tilewise::infer::cuda
