// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "bench/runner.h"
#include "tilewise/attend/attend.h"
#include "tilewise/plan/builder.h"
#include "tilewise/plan/rows.h"

// Tensors and plans that the rows of `tilewise bench` run on.
namespace tilewise::bench {

/// Inputs of one shape, kept alive by the rows that use them.
struct Inputs {
  Tensor q, k, v, out, lse;
  int64_t length, head_dim;
  int heads;

  Inputs(Dtype dtype, int heads_, int64_t length_, int64_t head_dim_, Context& context) : length(length_), head_dim(head_dim_), heads(heads_) {
    const Shape shape{1, heads, length, head_dim};
    for (Tensor* const tensor : {&q, &k, &v, &out}) *tensor = Tensor(context.memory, dtype, shape);
    lse = Tensor(context.memory, Dtype::f32, {1, heads, length});
    uint64_t seed = 1;
    for (const Tensor* const tensor : {&q, &k, &v}) {
      const uint64_t base = seed++ << 32;
      context.parallel_for(heads, [&](int64_t head, int) {
        std::mt19937_64 generator(base + static_cast<uint64_t>(head));
        std::normal_distribution<float> normal;
        for (int64_t i = 0; i < length * head_dim; ++i) {
          const int64_t place = head * length * head_dim + i;
          if (dtype == Dtype::f32) {
            static_cast<float*>(tensor->view.raw())[place] = normal(generator);
          } else {
            static_cast<bf16*>(tensor->view.raw())[place] = bf16(normal(generator));
          }
        }
      });
    }
  }

  AttendParams params(const Plan& plan) const { return {.q = q.view, .k = k.view, .v = v.view, .out = out.view, .lse = lse.view, .plan = plan}; }
  std::string shape() const { return "[1, " + std::to_string(heads) + ", " + std::to_string(length) + ", " + std::to_string(head_dim) + "]"; }
};

inline double value_at(const TensorView& view, int64_t index) {
  return static_cast<double>(view.dtype() == Dtype::f32 ? static_cast<const float*>(view.raw())[index]
                                                        : static_cast<float>(static_cast<const bf16*>(view.raw())[index]));
}

struct RandomPlan {
  Plan plan;
  double pairs = 0, density = 0;
};

/// No mask; each row of each head draws its own runs by `draw(generator)`.
template <class Draw>
RandomPlan random_plan(const Inputs& inputs, int tile, Context& context, const Draw& draw) {
  auto data = std::make_shared<PlanData>();
  data->seqlen_q = data->seqlen_k = inputs.length;
  data->heads_q = inputs.heads;
  data->mask = Mask::full();
  data->dense_reads = inputs.heads * inputs.length * inputs.length;
  const int64_t rows = (inputs.length + tile - 1) / tile;
  ListsBuilder builder(tile, 1, inputs.heads, rows);
  std::mt19937_64 generator(7);
  RandomPlan random;
  for (int head = 0; head < inputs.heads; ++head) {
    for (int64_t row = 0; row < rows; ++row) {
      RowRuns runs = draw(generator);
      const auto queries = static_cast<double>(std::min<int64_t>(tile, inputs.length - row * tile));
      for (const std::vector<Run>* const list : {&runs.whole, &runs.picked}) {
        for (const Run& run : *list) random.pairs += queries * (run.stop - run.start);
      }
      builder.set(0, head, row, std::move(runs));
    }
  }
  data->by_query = builder.build(context.memory, *data);
  random.plan = data;
  random.density = random.pairs / static_cast<double>(data->dense_reads);
  return random;
}

inline RandomPlan random_tiles(const Inputs& inputs, int tile, double density, Context& context) {
  return random_plan(inputs, tile, context, [&](std::mt19937_64& generator) {
    RowRuns runs;
    std::uniform_real_distribution<double> uniform(0, 1);
    for (int64_t k = 0; k < inputs.length; k += tile) {
      if (uniform(generator) < density) {
        runs.whole.push_back({static_cast<int32_t>(k), static_cast<int32_t>(std::min<int64_t>(inputs.length, k + tile)), {}});
      }
    }
    return runs;
  });
}

/// Runs of uniform length 1..256 at uniform starts until a share of the keys is read; where they overlap they join.
inline RandomPlan random_runs(const Inputs& inputs, double density, Context& context) {
  return random_plan(inputs, 128, context, [&](std::mt19937_64& generator) {
    std::vector<bool> is_read(static_cast<size_t>(inputs.length), false);
    std::uniform_int_distribution<int64_t> start(0, inputs.length - 1), length(1, 256);
    for (int64_t total = 0; static_cast<double>(total) < density * static_cast<double>(inputs.length);) {
      const int64_t first = start(generator), stop = std::min(inputs.length, first + length(generator));
      for (int64_t k = first; k < stop; ++k) {
        total += is_read[static_cast<size_t>(k)] ? 0 : 1;
        is_read[static_cast<size_t>(k)] = true;
      }
    }
    RowRuns runs;
    for (int64_t k = 0; k < inputs.length; ++k) {
      if (!is_read[static_cast<size_t>(k)]) continue;
      const int64_t first = k;
      while (k < inputs.length && is_read[static_cast<size_t>(k)]) ++k;
      runs.whole.push_back({static_cast<int32_t>(first), static_cast<int32_t>(k), {}});
    }
    return runs;
  });
}

inline RandomPlan random_picks(const Inputs& inputs, int64_t count, Context& context) {
  std::vector<int32_t> keys(static_cast<size_t>(inputs.length));
  std::iota(keys.begin(), keys.end(), 0);
  return random_plan(inputs, 128, context, [&](std::mt19937_64& generator) {
    RowRuns runs;
    std::shuffle(keys.begin(), keys.end(), generator);
    for (int64_t i = 0; i < std::min(count, inputs.length); ++i)
      runs.picked.push_back({keys[static_cast<size_t>(i)], keys[static_cast<size_t>(i)] + 1, {}});
    return runs;
  });
}

}  // namespace tilewise::bench
