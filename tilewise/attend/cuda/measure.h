// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>
#include <string>

#include "tilewise/attend/params.h"

namespace tilewise::attend::cuda {

/// Why these kernels do not take a measurement; nullopt: they do.
std::optional<std::string> refusal(const MeasureParams& params);

/// measure() on any GPU of compute capability 8.0 or above, for bf16, f16 and f32 with up to 256 channels: sums, maxima and counts of logits or exp(s - lse) over
/// tiles, tiles of a query, queries, keys and offsets; every part of a plan, any strides. The maxima of tiles alone are faster in attend/sm90, which is asked
/// first. Memory: over tiles, keys and offsets up to 256 MiB of Context::memory, or one head's cells where those are more. The plan's arrays are on the device
/// (copy_to_device()), work is ordered on Context::stream, and the call returns when it is queued. pairs_read is -1: the counts of a device plan are not
/// known to the host. The same bits each time.
Ran measure(const MeasureParams& params, Context& context);

}  // namespace tilewise::attend::cuda
