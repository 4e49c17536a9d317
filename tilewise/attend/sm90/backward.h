// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "tilewise/attend/params.h"

namespace tilewise::attend::sm90 {

/// Why the Hopper kernels do not take a gradient that passed its checks; nullopt: they do.
std::optional<std::string> refusal(const AttendBackwardParams& params);

/// attend_backward on a Hopper GPU, for bf16 and f16 with up to 128 channels; the plan's arrays are on the device, and so is the order of work made: by
/// attend_prepare's schedule at the first call of a head_dim class (up to 64, up to 128), which waits for it, or by each call without a schedule. Such a call waits
/// for nothing and can be captured into a graph, which then makes the order anew at each replay, from what the plan's arrays hold by then; where room for
/// every order of that shape would be above 1 GiB it asks the device first what it needs and waits. Under capture it cannot: it then takes .5 GiB for
/// tiles of 64 (up to 64 channels: 128) queries by 128 keys that are partly read, each kind once, and fills dq, dk and dv with NaN if they are more.
/// Bits do not depend on what else runs: dq is added up in a fixed order.
Ran backward(const AttendBackwardParams& params, Context& context);

/// What ScheduleData::on_device holds of a plan on a GPU.
std::shared_ptr<const void> prepare_backward(const Plan& plan, int heads_kv, const Context& context);

}  // namespace tilewise::attend::sm90
