// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "tilewise/select/plan.h"

// Seeded scores and budgets that a GPU takes: lengths off the tile, masks of every shape of band, ties, sums that round, scores that are not finite.
namespace tilewise::testing {

struct Random {
  std::mt19937_64 engine;
  explicit Random(uint64_t seed) : engine(seed) {}
  int64_t operator()(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }
  bool chance(double share) { return std::uniform_real_distribution<double>(0, 1)(engine) < share; }
};

inline Mask random_mask(Random& random, int64_t seqlen_k, int heads) {
  Mask mask;
  const auto band = [&] {
    switch (random(0, 4)) {
      case 0: return Mask::Band{};
      case 1: return Mask::Band{Mask::kAll, 0, 0};
      case 2: return Mask::Band{random(0, seqlen_k), random(0, seqlen_k / 2), 0};
      case 3: return Mask::Band{random(-3, seqlen_k / 2), random(-3, 5), random(0, seqlen_k)};
      default: return Mask::Band{random(0, seqlen_k / 2), 0, random(0, seqlen_k)};
    }
  };
  mask.bands = {band()};
  if (!random.chance(0.3)) return mask;
  mask.bands.push_back(band());
  mask.bands.push_back(band());
  for (int head = 0; head < heads; ++head) mask.head_class.push_back(static_cast<uint8_t>(random(0, 2)));
  return mask;
}

inline select::Scores random_scores(Random& random, int64_t most_tokens) {
  select::Scores scores;
  const int64_t tiles[] = {1, 3, 16, 64};
  scores.tile_k = static_cast<int>(tiles[random(0, 3)]);
  scores.batch = random(1, 2);
  scores.heads = static_cast<int>(random(1, 3));
  const int64_t seqlen_q = random(1, most_tokens), seqlen_k = random(1, most_tokens);
  scores.mask = random_mask(random, seqlen_k, scores.heads);
  const int tile_q = static_cast<int>(std::max<int64_t>(16, scores.tile_k));
  scores.grid = random.chance(0.5) ? plan::RowGrid::on_key_tiles(seqlen_q, seqlen_k, tile_q) : plan::RowGrid::plain(seqlen_q, seqlen_k, tile_q);
  scores.grid.heads = scores.heads;
  scores.values = Tensor(host_memory(), Dtype::f32, {scores.batch, scores.heads, scores.grid.rows(), scores.key_tiles()});
  const int form = static_cast<int>(random(0, 4));
  auto* const values = static_cast<float*>(scores.values.view.raw());
  for (int64_t i = 0; i < scores.values.view.numel(); ++i) {
    const double uniform = std::uniform_real_distribution<double>(0, 1)(random.engine);
    switch (form) {
      case 0: values[i] = static_cast<float>(uniform); break;
      case 1: values[i] = static_cast<float>(random(0, 4)) / 4; break;                // ties and zeros
      case 2: values[i] = static_cast<float>(std::exp(-60 * uniform)); break;         // sums that round
      case 3: values[i] = static_cast<float>(std::exp(-200 * uniform)) * 1e-6f; break;  // down to denormals
      default: values[i] = 1.0f / 3;
    }
    if (form == 0 && random.chance(0.002)) values[i] = random.chance(0.5) ? std::nanf("") : std::numeric_limits<float>::infinity();
  }
  return scores;
}

inline select::Budget random_budget(Random& random, const select::Scores& scores) {
  select::Budget budget;
  const auto numbers = [&](auto one) {
    std::vector<decltype(one())> list;
    const int64_t count = random.chance(0.7) ? 1 : scores.heads;
    for (int64_t i = 0; i < count; ++i) list.push_back(one());
    return list;
  };
  const auto share = [&] { return random.chance(0.1) ? 1.0f : static_cast<float>(random(0, 100)) / 100; };
  if (random.chance(0.6)) budget.mass = numbers(share);
  if (random.chance(0.3)) budget.share = numbers(share);
  if (random.chance(0.3)) budget.count = numbers([&] { return random(0, scores.key_tiles() + 1); });
  if (random.chance(0.2)) budget.at_least = numbers([&] { return static_cast<float>(random(0, 10)) / 10; });
  if (random.chance(0.3)) budget.floor = random(0, 4);
  if (random.chance(0.5)) budget.sink = random(0, 3);
  if (random.chance(0.5)) budget.diagonal = random(0, 3);
  budget.forced = random.chance(0.5) ? select::Budget::Forced::counted : select::Budget::Forced::beside;
  return budget;
}

}  // namespace tilewise::testing
