// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/random.h"

#include "tilewise/base/hash.h"
#include "tilewise/methods/problem.h"
#include "tilewise/select/plan.h"

namespace tilewise::method {

Planned random(const Problem& problem, const RandomOptions& options, Context& context) {
  check_ranges("random", options);
  const select::Inputs inputs = inputs_of("random", problem);
  refuse_grids("random", problem);
  const select::RowGrid grid = select::score_rows(inputs, options.tile);
  const select::Scores scores = select::make_scores(inputs, grid, options.tile, context);
  const auto mix = [](uint64_t state, uint64_t next) { return splitmix64(state ^ splitmix64(next)); };
  const uint64_t base = mix(mix(static_cast<uint64_t>(options.seed), problem.seed + 1), static_cast<uint64_t>(problem.layer) + 2);
  // 2^53 steps: every double in [0, 1) of that spacing is drawn alike, so density 1 keeps all.
  const double cut = static_cast<double>(options.density) * 9007199254740992.0;
  context.parallel_for(scores.batch * scores.heads, [&](int64_t item, int) {
    const uint64_t of_head = mix(base, static_cast<uint64_t>(item));
    for (int64_t row = 0; row < grid.rows(); ++row) {
      const uint64_t of_row = mix(of_head, static_cast<uint64_t>(row));
      float* values = scores.row(item / scores.heads, item % scores.heads, row);
      for (int64_t j = 0; j < scores.key_tiles(); ++j)
        values[j] = static_cast<double>(mix(of_row, static_cast<uint64_t>(j)) >> 11) < cut ? 1.0f : 0.0f;
    }
  });
  select::Budget budget;
  budget.sink = budget.diagonal = 1;
  Planned planned;
  planned.plan = select::plan(scores, budget, context);
  return planned;
}

}  // namespace tilewise::method
