// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "tilewise/infer/model.h"

namespace tilewise::infer {

/// Angle per position of each channel pair, [head_dim / 2], for a sequence of `seqlen` tokens in all: the variants `dynamic` and `longrope` look at it.
/// Sources  linear: arXiv 2306.15595; dynamic: NTK-aware scaling, arXiv 2309.00071 section 3.1; yarn: arXiv 2309.00071 section 3.2; longrope:
///          arXiv 2402.13753; llama3: arXiv 2407.21783 section 3.4 with the parameters of its config.json.
std::vector<double> rope_frequencies(const ModelConfig& config, int64_t seqlen);

}  // namespace tilewise::infer
