// SPDX-License-Identifier: Apache-2.0
// The backward of a plan with orders: its products run over slots, on copies of the tensors.
#pragma once
#include <cuda_runtime_api.h>

#include "tilewise/attend/sm90/backward_slots_kernel.h"

namespace tilewise::attend::sm90 {

cudaError_t launch_moved_rows(const MoveRowsArgs& args, cudaStream_t stream);

}  // namespace tilewise::attend::sm90
