// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "tilewise/prepare/rotary.h"

namespace tilewise::infer {
namespace {

using Frequencies = std::vector<double>;

/// Turns that a pair makes over the positions trained on decide: few (below `low_turns`) are interpolated, many (above `high_turns`) left alone.
Frequencies llama3(Frequencies plain, const RopeScaling& rope) {
  for (double& frequency : plain) {
    const double turns = static_cast<double>(rope.original_positions) * frequency / (2 * std::numbers::pi);
    const double kept = std::clamp((turns - rope.low_turns) / (rope.high_turns - rope.low_turns), 0.0, 1.0);
    frequency *= kept + (1 - kept) / rope.factor;
  }
  return plain;
}

/// The same idea with a ramp over channels between the two numbers of turns.
Frequencies yarn(Frequencies plain, double theta, const RopeScaling& rope) {
  const auto pairs = static_cast<double>(plain.size());
  // The pair, as a real number, that makes `turns` turns.
  const auto pair_of = [&](double turns) {
    return pairs * std::log(static_cast<double>(rope.original_positions) / (turns * 2 * std::numbers::pi)) / std::log(theta);
  };
  double first = pair_of(rope.high_turns), last = pair_of(rope.low_turns);
  if (rope.is_rounded) first = std::floor(first), last = std::ceil(last);
  first = std::max(first, 0.0);
  last = std::min(last, 2 * pairs - 1);
  if (first == last) last += .001;
  for (size_t i = 0; i < plain.size(); ++i) {
    const double scaled = std::clamp((static_cast<double>(i) - first) / (last - first), 0.0, 1.0);
    plain[i] *= 1 - scaled + scaled / rope.factor;
  }
  return plain;
}

Frequencies longrope(Frequencies plain, const RopeScaling& rope, int64_t seqlen) {
  const std::vector<double>& factors = seqlen > rope.original_positions ? rope.long_factors : rope.short_factors;
  for (size_t i = 0; i < plain.size(); ++i) plain[i] /= factors[i];
  return plain;
}

}  // namespace

std::vector<double> rope_frequencies(const ModelConfig& config, int64_t seqlen) {
  const RopeScaling& rope = config.rope;
  const int head_dim = config.head_dim;
  double theta = config.rope_theta;
  if (rope.kind == RopeScaling::Kind::dynamic && seqlen > rope.original_positions) {
    const double stretch = rope.factor * static_cast<double>(seqlen) / static_cast<double>(rope.original_positions) - (rope.factor - 1);
    theta *= std::pow(stretch, static_cast<double>(head_dim) / (head_dim - 2));
  }
  Frequencies plain = prepare::rotary_frequencies(head_dim, theta);
  switch (rope.kind) {
    case RopeScaling::Kind::plain:
    case RopeScaling::Kind::dynamic: break;
    case RopeScaling::Kind::linear:
      for (double& frequency : plain) frequency /= rope.factor;
      break;
    case RopeScaling::Kind::llama3: return llama3(std::move(plain), rope);
    case RopeScaling::Kind::yarn: return yarn(std::move(plain), theta, rope);
    case RopeScaling::Kind::longrope: return longrope(std::move(plain), rope, seqlen);
  }
  return plain;
}

}  // namespace tilewise::infer
