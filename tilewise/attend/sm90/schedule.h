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

/// Whether rows of the last round may be split: the plain kernel's rows of 128 queries, where they can be long enough for it.
bool can_split(const ForwardInput& input, int multiprocessors);
/// Bytes of what make_split() fills, and of the sums of the parts: of nothing but shapes and the GPU.
size_t split_bytes(const ForwardInput& input, int multiprocessors);
/// After make_schedule() with the same `workspace`: what the lengths of the last round's rows decide, on the device, into `space` (16 byte aligned) and
/// input.split. The result depends on the plan and the number of multiprocessors alone.
cudaError_t make_split(ForwardInput& input, const int32_t* workspace, void* space, int multiprocessors, cudaStream_t stream);

/// schedule.cu
cudaError_t launch_split_rows(const SplitArgs& args, cudaStream_t stream);

}  // namespace tilewise::attend::sm90
