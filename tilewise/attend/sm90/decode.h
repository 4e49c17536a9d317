// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>
#include <string>

#include "tilewise/attend/decode_problem.h"

namespace tilewise::attend::sm90 {

/// Why the Hopper kernels do not take a decode; nullopt: they do. Taken: bf16 and f16 with up to 256 channels, masks of bands, k and v alike plain,
/// INT8 or INT4 with a scale for all channels of a token or more, paged (pages of one size) or not.
std::optional<std::string> refusal(const DecodeProblem& problem);

/// attend_decode on a Hopper GPU. Lengths, lists and tables are on the device, work is ordered on Context::stream, and the call returns when it is
/// queued. Bits depend on a sequence's own length and list alone. pairs_read is -1: the counts of a device plan are not known to the host.
Ran decode(const DecodeProblem& problem, Context& context);

}  // namespace tilewise::attend::sm90
