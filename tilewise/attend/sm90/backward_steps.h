// SPDX-License-Identifier: Apache-2.0
// The order of work of the Hopper backward, made on the device.
#pragma once
#include <cuda_runtime_api.h>

#include "tilewise/attend/sm90/backward_steps_args.h"

namespace tilewise::attend::sm90 {

// Items of thread block i are [first_item[i], first_item[i + 1]), in the order in which it takes them. Dq of a query tile is added up in the order of
// ranks, each thread block waiting for its turn: whatever an item waits for stands earlier in the order of the ranks, and so does what its own thread
// block did before, so that thread blocks that run at once cannot wait in a circle.

/// Which tiles meet, and which thread block takes which item when: all but `steps`, which need not be there yet. Clears what begins as zeros; nothing waits.
cudaError_t launch_dealt_items(const StepsArgs& args, cudaStream_t stream);
/// Writes `steps` of items that have been dealt.
cudaError_t launch_walked_steps(const StepsArgs& args, cudaStream_t stream);

}  // namespace tilewise::attend::sm90
