// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "tilewise/attend/params.h"

namespace tilewise::attend::cuda {

/// Why these kernels do not take a problem; nullopt: they do.
std::optional<std::string> refusal(const AttendBackwardParams& params);

/// attend_backward on any GPU of compute capability 8.0 or above: dtypes, channels and parts of a plan as the forward, gradients through orders and pools, too, and
/// the same bits each time. Reads both directions of the plan: one that is missing is made on the host at each call, which waits for the device, or once by
/// attend_prepare (and then a call can be captured into a graph).
Ran backward(const AttendBackwardParams& params, Context& context);

/// Both directions of a plan on a GPU, made when first asked for. It is what ScheduleData::both_directions holds.
std::shared_ptr<const void> prepare_backward(const Plan& plan, const Context& context);

}  // namespace tilewise::attend::cuda
