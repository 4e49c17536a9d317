// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>
#include <string>

#include "tilewise/attend/params.h"

namespace tilewise::attend::sm90 {

/// Why the Hopper kernel does not take a measurement; nullopt: it does. Taken: the largest logit (max alone) of tiles, of bf16 or f16 with 64, 128, 192 or
/// 256 channels, over plans of whole and masked runs under one band; tile_q a multiple of 64, any tile_k.
std::optional<std::string> refusal(const MeasureParams& params);

/// measure() on a Hopper GPU. The plan's arrays are on the device (copy_to_device()), work is ordered on Context::stream, and the call returns when it is
/// queued; it allocates nothing. pairs_read is -1: the counts of a device plan are not known to the host.
Ran measure(const MeasureParams& params, Context& context);

}  // namespace tilewise::attend::sm90
