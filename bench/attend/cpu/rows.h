// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "bench/attend/cpu/backward_rows.h"
#include "bench/attend/cpu/inputs.h"
#include "bench/runner.h"
#include "tilewise/attend/attend.h"
#include "tilewise/methods/registry.h"
#include "tilewise/plan/builder.h"
#include "tilewise/plan/rows.h"

// The rows of `tilewise bench`: attention, its backward and selection on the CPU, with their bars.
namespace tilewise::bench {

/// Holds a few queries of the output against f64 over the keys that the plan lists.
inline std::string check_forward(const Inputs& inputs, const Plan& plan) {
  const int64_t dim = inputs.head_dim;
  const double scale = 1 / std::sqrt(static_cast<double>(dim)), bound = inputs.q.view.dtype() == Dtype::f32 ? 1e-5 : 2e-2;
  const Mask::Band& band = plan->mask.bands[0];
  for (const int head : {0, inputs.heads - 1}) {
    for (const int64_t query : {int64_t{0}, inputs.length / 2 + 5, inputs.length - 1}) {
      const int64_t base = head * inputs.length * dim;
      std::vector<double> out(static_cast<size_t>(dim), 0.0);
      double sum = 0;
      const auto add = [&](int64_t key) {
        double s = 0;
        for (int64_t d = 0; d < dim; ++d) s += value_at(inputs.q.view, base + query * dim + d) * value_at(inputs.k.view, base + key * dim + d);
        const double p = std::exp(s * scale);
        sum += p;
        for (int64_t d = 0; d < dim; ++d) out[static_cast<size_t>(d)] += p * value_at(inputs.v.view, base + key * dim + d);
      };
      const Lists& lists = plan->by_query;
      for (const RunList* const list : {&lists.whole, &lists.masked, &lists.picked}) {
        const plan::Runs runs = plan::runs_of(*list, 0, head, inputs.heads, query / lists.tile);
        for (int i = 0; i < runs.count; ++i) {
          const int64_t stop = list == &lists.picked ? int64_t{runs.start[i]} + 1 : plan::run_stop(runs, i, list->grain, inputs.length);
          for (int64_t key = runs.start[i]; key < stop; ++key) {
            if (list != &lists.masked || plan::band_allows(band, query, key)) add(key);
          }
        }
      }
      for (int64_t d = 0; d < dim; ++d) {
        const double exact = sum == 0 ? 0 : out[static_cast<size_t>(d)] / sum, got = value_at(inputs.out.view, base + query * dim + d);
        if (!(std::fabs(got - exact) <= bound * (1 + std::fabs(exact)))) {
          return "head " + std::to_string(head) + " query " + std::to_string(query) + " channel " + std::to_string(d) + ": " + std::to_string(got) +
                 ", exact " + std::to_string(exact);
        }
      }
    }
  }
  return "";
}

inline Row attend_row(const std::shared_ptr<Inputs>& inputs, const RandomPlan& plan, std::string name, Context& context) {
  Row row;
  row.name = std::move(name);
  row.shape = inputs->shape();
  row.flop = 4 * plan.pairs * static_cast<double>(inputs->head_dim);
  row.density = plan.density;
  row.run = [inputs, plan, &context] { attend_forward(inputs->params(plan.plan), context); };
  row.fault = [inputs, plan] { return check_forward(*inputs, plan.plan); };
  return row;
}

struct Shapes {
  int heads = 8;
  int64_t length = 8192, long_length = 16384;
};

inline Group empty_group(machine::cpu::Target target, Dtype dtype) {
  return {.target = target,
          .instruction = dtype == Dtype::bf16 && target == machine::cpu::Target::avx512bf16 ? machine::cpu::Instruction::dot_bf16
                                                                                            : machine::cpu::Instruction::fma_f32,
          .rows = {}};
}

/// Attention, its backward and selection for one target, dtype and head_dim: what the bars name.
inline void add_attention_rows(Group& group, Dtype dtype, int64_t head_dim, const Shapes& shapes, Context& context) {
  const bool is_f32 = dtype == Dtype::f32;
  const auto inputs = std::make_shared<Inputs>(dtype, shapes.heads, shapes.length, head_dim, context);
  const auto longer = std::make_shared<Inputs>(dtype, shapes.heads, shapes.long_length, head_dim, context);
  const auto dense_plan = [&](const Inputs& of, const Mask& mask) {
    RandomPlan dense;
    dense.plan = plan_with("dense", {.q = of.q.view, .k = of.k.view, .mask = mask}, {}, context).plan;
    const auto n = static_cast<double>(of.length);
    dense.pairs = of.heads * (mask.bands[0].right == 0 ? n * (n + 1) / 2 : n * n);
    dense.density = 1;
    return dense;
  };
  const auto add = [&](Row row, Row::Figure figure, int against, double bar) {
    row.figure = figure;
    row.against = against;
    row.bar = bar;
    group.rows.push_back(std::move(row));
  };
  const RandomPlan dense = dense_plan(*inputs, Mask::full());
  add(attend_row(inputs, dense, "dense", context), Row::Figure::of_peak, -1, is_f32 || head_dim >= 128 ? 0.85 : 0.80);
  add(attend_row(longer, dense_plan(*longer, Mask::causal()), "causal", context), Row::Figure::of_peak, -1, 0.80);
  const auto sparse = [&](const RandomPlan& plan, const char* name, double bar) {
    add(attend_row(inputs, plan, name, context), Row::Figure::of_rate, 0, bar);
  };
  const RandomPlan some_tiles = random_tiles(*inputs, 128, 0.1, context);
  sparse(some_tiles, "tiles 128 density .1", 0.93);
  sparse(random_tiles(*inputs, 128, 0.05, context), "tiles 128 density .05", 0.88);
  sparse(random_tiles(*inputs, 64, 0.1, context), "tiles 64 density .1", 0.88);
  sparse(random_tiles(*inputs, 64, 0.05, context), "tiles 64 density .05", 0.83);
  sparse(random_runs(*inputs, 0.1, context), "runs of 1..256", 0.75);
  sparse(random_picks(*inputs, 1024, context), "1024 picked keys", 0.75);
  const auto backward = static_cast<int>(group.rows.size());
  add(backward_row(inputs, dense, "backward", context), Row::Figure::of_peak, -1, is_f32 ? 0.75 : 0.65);
  add(backward_row(inputs, some_tiles, "backward tiles 128 density .1", context), Row::Figure::of_rate, backward, 0.85);

  if (is_f32) {
    const int64_t tiles = (shapes.length + dense.plan->by_query.tile - 1) / dense.plan->by_query.tile;
    const auto sums = std::make_shared<Tensor>(context.memory, Dtype::f32, Shape{1, shapes.heads, tiles, tiles});
    Row row;
    row.name = "measure per tile";
    row.shape = inputs->shape();
    row.flop = 2 * dense.pairs * static_cast<double>(head_dim);
    // The dense row has run first and left its lse: every query's probabilities add up to 1.
    const auto lse = std::make_shared<Tensor>(context.memory, Dtype::f32, inputs->lse.view.shape());
    row.run = [inputs, dense, sums, lse, &context] {
      if (lse->view.at<float>(0, 0, 0) == 0) {
        attend_forward(inputs->params(dense.plan), context);
        std::copy_n(inputs->lse.view.data<float>(), inputs->lse.view.numel(), lse->view.data<float>());
      }
      measure({.q = inputs->q.view, .k = inputs->k.view, .plan = dense.plan, .lse = lse->view, .over = MeasureOver::tile, .sum = sums->view},
              context);
    };
    lse->fill_zero();
    row.fault = [sums, inputs, tile = dense.plan->by_query.tile]() -> std::string {
      for (int64_t t = 0; t < sums->view.dim(2); ++t) {
        double total = 0;
        for (int64_t k = 0; k < sums->view.dim(3); ++k) total += static_cast<double>(sums->view.at<float>(0, 0, t, k));
        const double queries = static_cast<double>(std::min<int64_t>(tile, inputs->length - t * tile));
        if (!(std::fabs(total - queries) <= 1e-3 * queries))
          return "row " + std::to_string(t) + " holds " + std::to_string(total) + " of " + std::to_string(queries);
      }
      return "";
    };
    add(std::move(row), Row::Figure::of_peak, -1, 0.80);

    for (const char* const method : {"xattention", "mean_pool", "minference", "flexprefill"}) {
      Row select;
      select.name = std::string("select ") + method;
      select.shape = longer->shape();
      const OptionValues options = method == std::string("xattention") ? parse_options(method, "stride=16") : OptionValues{};
      select.run = [longer, method, options, &context] {
        plan_with(method, {.q = longer->q.view, .k = longer->k.view, .mask = Mask::causal()}, options, context);
      };
      add(std::move(select), Row::Figure::of_time, 1, 0.06);
    }
  }
}

}  // namespace tilewise::bench
