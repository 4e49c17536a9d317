// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <atomic>
#include <optional>
#include <string>

#include "tilewise/attend/params.h"

namespace tilewise::attend::sm90 {

/// Why the Hopper kernels do not take a problem; nullopt: they do.
std::optional<std::string> refusal(const AttendParams& params);

/// attend_forward on a Hopper GPU, for bf16 and f16 with up to 256 channels. The plan's arrays are on the device (copy_to_device()), work is ordered
/// on Context::stream, and the call returns when it is queued. pairs_read is -1: the counts of a device plan are not known to the host.
Ran forward(const AttendParams& params, Context& context);

/// Whether rows of the last round may be split over thread blocks. Off until it has been measured (docs/notes/sm90.md, "Row splitting"), unless
/// TILEWISE_SM90_SPLIT=1; for tests and measurements.
std::atomic<bool>& splits_rows();
/// The same for plans with pools (TILEWISE_SM90_POOLS=1), which attend/cuda has otherwise.
std::atomic<bool>& takes_pools();

}  // namespace tilewise::attend::sm90
