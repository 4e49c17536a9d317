// SPDX-License-Identifier: Apache-2.0
// The order in which thread blocks take the items of a forward: longest rows first, so that rows of any lengths end together.
#pragma once

#include "tilewise/attend/sm90/forward_args.h"

namespace tilewise::attend::sm90 {

/// Ints that make_schedule() writes: lengths, order, and the two counters of ForwardArgs.
inline size_t schedule_ints(int64_t items) { return 2 * static_cast<size_t>(items) + 2; }

/// Fills `workspace` on the stream and sets input.order and input.counter to parts of it. Items are sorted within sections of heads whose K and V
/// fit L2 together: longest first over all heads would have every thread block read another head.
cudaError_t make_schedule(ForwardInput& input, const GeneralInput* general, int32_t* workspace, cudaStream_t stream);

}  // namespace tilewise::attend::sm90
