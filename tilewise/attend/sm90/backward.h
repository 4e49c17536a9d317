// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "tilewise/attend/params.h"

namespace tilewise::attend::sm90 {

/// Why the Hopper kernels do not take a gradient that passed its checks; nullopt: they do.
std::optional<std::string> refusal(const AttendBackwardParams& params);

/// attend_backward on a Hopper GPU, for bf16 and f16 with up to 128 channels; the plan's arrays are on the device. The order of work is made on the host:
/// once by attend_prepare, or by each call without a schedule, which then copies the plan to the host and waits for it. With a schedule that has
/// served a call of the same head_dim class (up to 64, up to 128) nothing waits, and the call can be captured into a graph.
/// Bits do not depend on what else runs: dq is added up in a fixed order.
Ran backward(const AttendBackwardParams& params, Context& context);

/// What ScheduleData::on_device holds of a plan on a GPU.
std::shared_ptr<const void> prepare_backward(const Plan& plan, int heads_kv, const Context& context);

}  // namespace tilewise::attend::sm90
