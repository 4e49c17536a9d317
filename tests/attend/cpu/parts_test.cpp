// SPDX-License-Identifier: Apache-2.0
// Parts of a plan that the random problems seldom meet in the shapes where they go their own way: long rows of neighbourhoods, spans that are bands, boxes,
// callers that reorder themselves, and what an order may cost.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>

#include "tests/attend/attend_testing.h"
#include "tests/attend/cpu/cpu_testing.h"
#include "tilewise/attend/check.h"
#include "tilewise/attend/cpu/block.h"
#include "tilewise/attend/cpu/forward.h"
#include "tilewise/attend/cpu/measure.h"
#include "tilewise/machine/cpu/context.h"
#include "tilewise/prepare/reorder.h"

namespace tilewise::attend::testing {
namespace {

using machine::cpu::available_targets;
using machine::cpu::Target;

const auto kForward = [](const AttendParams& params, Context& context) { return cpu::forward(params, context); };

class EveryTarget : public ::testing::TestWithParam<Target> {};
std::string target_name(const ::testing::TestParamInfo<Target>& info) { return std::string(machine::cpu::name(info.param)); }
INSTANTIATE_TEST_SUITE_P(CpuParts, EveryTarget, ::testing::ValuesIn(available_targets().begin(), available_targets().end()), target_name);

// A plan of one masked run a row over all keys: its pairs are the mask's.
RandomPlan plan_of_mask(const Mask& mask, int64_t seqlen, int heads, int tile, const std::vector<int32_t>& order = {}) {
  auto data = std::make_shared<PlanData>();
  data->seqlen_q = data->seqlen_k = seqlen;
  data->heads_q = heads;
  data->mask = mask;
  RandomPlan plan;
  std::vector<int64_t> tokens(static_cast<size_t>(seqlen));
  std::iota(tokens.begin(), tokens.end(), 0);
  if (!order.empty()) {
    tokens.assign(order.begin(), order.end());
    data->order_q.token = data->order_k.token = plan_array(*data, {1, 1, static_cast<int64_t>(order.size())}, order);
  }
  plan.slots = plan.slots_k = static_cast<int64_t>(tokens.size());
  const int64_t rows = (plan.slots + tile - 1) / tile;
  RunList& masked = data->by_query.masked;
  data->by_query.tile = tile;
  masked.begin = plan_array(*data, {1, 1, rows}, std::vector<int64_t>(static_cast<size_t>(rows), 0));
  masked.count = plan_array(*data, {1, 1, rows}, std::vector<int32_t>(static_cast<size_t>(rows), 1));
  masked.start = plan_array(*data, {1}, std::vector<int32_t>{0});
  masked.stop = plan_array(*data, {1}, std::vector<int32_t>{static_cast<int32_t>(plan.slots)});
  plan.plan = data;
  plan.tokens_k.assign(static_cast<size_t>(heads), tokens);
  plan.reads = heads * seqlen * seqlen;
  plan.pairs.assign(static_cast<size_t>(heads * seqlen * plan.slots), 0);
  for (int h = 0; h < heads; ++h) {
    for (int64_t q = 0; q < seqlen; ++q) {
      for (int64_t slot = 0; slot < plan.slots; ++slot) {
        const int64_t key = tokens[static_cast<size_t>(slot)];
        plan.pairs[static_cast<size_t>((h * seqlen + q) * plan.slots + slot)] = key >= 0 && test_mask_sees(*data, 0, h, q, key) ? 1 : 0;
      }
    }
  }
  return plan;
}

ForwardProblem problem_of(RandomPlan plan, Dtype dtype, int tile) {
  Rng rng(3);
  ForwardProblem f;
  ProblemOptions& o = f.options;
  o.plan.heads_q = plan.plan->heads_q;
  o.plan.heads_kv = 1;
  o.plan.seqlen_q = o.plan.seqlen_k = plan.plan->seqlen_q;
  o.plan.tile = tile;
  o.dtype = dtype;
  o.head_dim = 16;
  const Shape shape{1, o.plan.heads_q, o.plan.seqlen_q, 16}, shape_kv{1, 1, o.plan.seqlen_k, 16};
  f.q = random_normal(rng, dtype, shape);
  f.k = random_normal(rng, dtype, shape_kv);
  f.v = random_normal(rng, dtype, shape_kv);
  f.out = HostTensor(dtype, shape);
  f.lse = HostTensor(Dtype::f32, {1, o.plan.heads_q, o.plan.seqlen_q});
  f.sink_logit = random_normal(rng, Dtype::f32, {o.plan.heads_q});
  f.plan = std::move(plan);
  return f;
}

// Boxes of `box` cells of a grid, the text behind it last; what is missing of a box is padding.
std::vector<int32_t> box_order(const std::vector<Mask::Axis>& grid, const std::vector<int>& box, int64_t first, int64_t seqlen) {
  std::vector<int32_t> tokens;
  int64_t cells = 1, boxes = 1, size = 1;
  for (size_t a = 0; a < grid.size(); ++a) {
    cells *= grid[a].length;
    boxes *= (grid[a].length + box[a] - 1) / box[a];
    size *= box[a];
  }
  for (int64_t at = 0; at < boxes; ++at) {
    for (int64_t cell = 0; cell < size; ++cell) {
      int64_t box_rest = at, cell_rest = cell, token = 0, factor = 1;
      bool is_real = true;
      for (size_t a = grid.size(); a-- > 0;) {
        const int64_t count = (grid[a].length + box[a] - 1) / box[a], coordinate = box_rest % count * box[a] + cell_rest % box[a];
        box_rest /= count;
        cell_rest /= box[a];
        is_real = is_real && coordinate < grid[a].length;
        token += coordinate * factor;
        factor *= grid[a].length;
      }
      tokens.push_back(is_real ? static_cast<int32_t>(first + token) : -1);
    }
  }
  for (int64_t t = 0; t < seqlen; ++t) {
    if (t < first || t >= first + cells) tokens.push_back(static_cast<int32_t>(t));
  }
  return tokens;
}

TEST_P(EveryTarget, Neighbourhoods) {
  const ForcedTarget forced(GetParam());
  Context context = cpu_context(2);
  struct Case {
    std::vector<Mask::Axis> grid;
    std::vector<int> box;
    int64_t first, text;
  };
  const std::vector<Case> cases{
      {{{500, 60, 7, 2, false}}, {64}, 5, 9},
      {{{300, 40, 1, 1, true}}, {32}, 0, 0},
      {{{19, 6, 2, 1, false}, {23, 8, 8, 2, false}}, {8, 8}, 3, 11},
      {{{6, 3, 1, 1, true}, {9, 4, 3, 2, false}, {11, 5, 5, 1, false}}, {2, 4, 8}, 0, 7},
      {{{3, 2, 1, 1, false}, {4, 3, 2, 1, false}, {5, 2, 1, 2, false}, {7, 7, 1, 1, false}}, {1, 2, 4, 4}, 2, 1},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    const Case& c = cases[i];
    Mask mask;
    std::vector<Mask::Axis> wide = c.grid;  // another class of heads
    int64_t cells = 1;
    for (Mask::Axis& axis : wide) {
      cells *= axis.length;
      axis.window = axis.length / axis.dilation;
      axis.stride = 1;
    }
    mask.grids = {c.grid, wide};
    mask.first = c.first;
    mask.head_class = {1, 0};
    const int64_t seqlen = c.first + cells + c.text;
    for (const bool has_order : {false, true}) {
      for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
        const std::vector<int32_t> order = has_order ? box_order(c.grid, c.box, c.first, seqlen) : std::vector<int32_t>{};
        const int tile = has_order ? 64 : 128;
        expect_forward(problem_of(plan_of_mask(mask, seqlen, 2, tile, order), dtype, tile), kForward, context,
                       "case " + std::to_string(i) + (has_order ? " in boxes" : ""));
        if (HasFailure()) return;
      }
    }
  }
}

// Documents and prefixes are bands of each lane and are tested by the kernel; scattered spans are asked when keys are cut.
TEST_P(EveryTarget, Spans) {
  const ForcedTarget forced(GetParam());
  Context context = cpu_context(2);
  const int64_t seqlen = 400;
  const auto documents = [](int32_t q) { return std::array<int32_t, 4>{q / 90 * 90, std::min(q / 90 * 90 + 90, 400), 0, 0}; };
  const auto causal_documents = [](int32_t q) { return std::array<int32_t, 4>{0, 0, q / 90 * 90, q + 1}; };
  const auto prefix = [](int32_t q) { return std::array<int32_t, 4>{0, 37, std::max(37, q - 50), std::max(37, q + 1)}; };
  const auto touching = [](int32_t q) { return std::array<int32_t, 4>{0, 64, 64, std::max(64, q)}; };
  const auto two_prefixes = [](int32_t q) { return std::array<int32_t, 4>{0, q % 7, 100 + q / 4, 140 + q / 2}; };
  const auto late_first = [](int32_t q) { return std::array<int32_t, 4>{200, 210 + q % 3, 3, 50}; };
  const auto some_empty = [](int32_t q) {
    return q % 5 == 0 ? std::array<int32_t, 4>{9, 9, 3, 3} : std::array<int32_t, 4>{0, 20, q / 2, q / 2 + 60};
  };
  const std::vector<std::function<std::array<int32_t, 4>(int32_t)>> forms{documents,    causal_documents, prefix,    touching,
                                                                          two_prefixes, late_first,       some_empty};
  for (size_t i = 0; i < forms.size(); ++i) {
    std::vector<int32_t> spans;
    for (int32_t q = 0; q < seqlen; ++q) {
      const std::array<int32_t, 4> span = forms[i](q);
      spans.insert(spans.end(), span.begin(), span.end());
    }
    Mask mask;
    mask.spans = TensorView::of(spans.data(), {1, 1, seqlen, 4});
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const ForwardProblem problem = problem_of(plan_of_mask(mask, seqlen, 1, 128), dtype, 128);
      expect_forward(problem, kForward, context, "spans " + std::to_string(i));
      if (HasFailure()) return;
    }
  }
}

// A caller that reorders gets the bits that forward gives when it reorders, and padding stays as it was and is not read.
TEST_P(EveryTarget, InSlotsGivesTheSameBits) {
  const ForcedTarget forced(GetParam());
  Context context = cpu_context(2);
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    Rng rng(seed);
    ProblemOptions o = random_options(rng, true);
    o.plan.has_order_q = chance(rng, 0.8);
    o.plan.has_order_k = chance(rng, 0.8);
    o.plan.is_by_key = false;
    o.plan.heads_kv = o.plan.heads_q;  // an order for each head of k
    o.is_v_broadcast = false;
    const ForwardProblem problem = make_problem(rng, o);
    const PlanData& plan = *problem.plan.plan;
    problem.out.wipe();
    problem.lse.wipe();
    cpu::forward(problem.params(), context);

    ForwardProblem own = problem;
    own.q = slots_of(problem.q, plan.order_q, o.layout, context);
    own.k = slots_of(problem.k, plan.order_k, o.layout, context);
    own.v = slots_of(problem.v, plan.order_k, o.layout, context);
    const int64_t slots_q = own.q.view.dim(2);
    own.out = HostTensor(o.dtype, {o.plan.batch, o.plan.heads_q, slots_q, problem.out.view.dim(3)}, o.layout);
    own.lse = HostTensor(Dtype::f32, {o.plan.batch, o.plan.heads_q, slots_q}, o.layout);
    const std::vector<double> untouched = values_of(own.lse.view);
    AttendParams params = own.params();
    params.in_slots = true;
    cpu::forward(params, context);
    const HostTensor out(o.dtype, problem.out.view.shape()), lse(Dtype::f32, problem.lse.view.shape());
    if (o.has_out) {
      prepare::to_tokens(own.out.view, plan.order_q, out.view, context);
      EXPECT_EQ(values_of(out.view), values_of(problem.out.view)) << "seed " << seed << " " << describe(o);
      EXPECT_TRUE(own.out.gaps_are_untouched());
    }
    if (o.has_lse) {
      prepare::to_tokens(own.lse.view, plan.order_q, lse.view, context);
      EXPECT_EQ(values_of(lse.view), values_of(problem.lse.view)) << "seed " << seed << " " << describe(o);
      EXPECT_TRUE(own.lse.gaps_are_untouched());
      const std::vector<double> written = values_of(own.lse.view);
      for (int64_t b = 0; b < o.plan.batch && plan.order_q.token.has_value(); ++b) {
        for (int64_t h = 0; h < o.plan.heads_q; ++h) {
          for (int64_t s = 0; s < slots_q; ++s) {
            const TensorView& token = plan.order_q.token;
            if (token.at<int32_t>(token.dim(0) == 1 ? 0 : b, h * token.dim(1) / o.plan.heads_q, s) >= 0) continue;
            const auto at = static_cast<size_t>((b * o.plan.heads_q + h) * slots_q + s);
            EXPECT_EQ(written[at], untouched[at]) << "a padding slot was written, seed " << seed;
          }
        }
      }
    }
    // The definition agrees on what in_slots means.
    if (seed % 4 == 0 && o.has_lse) {
      Context serial;
      own.lse.wipe();
      reference::forward(params, serial);
      prepare::to_tokens(own.lse.view, plan.order_q, lse.view, context);
      const DenseResult exact = exact_forward(problem);
      EXPECT_LE(largest_difference(values_of(lse.view), exact.lse), 1e-5) << "seed " << seed;
    }
    if (HasFailure()) return;
  }
}

// The same of measure: q, k, lse and bias in slots, queries and keys of the result too. Padding holds NaN and has no pair.
TEST_P(EveryTarget, MeasureInSlotsGivesTheSameBits) {
  const ForcedTarget forced(GetParam());
  Context context = cpu_context(2);
  constexpr std::array kOvers{MeasureOver::tile,  MeasureOver::query_tile, MeasureOver::query_run,
                              MeasureOver::query, MeasureOver::key,        MeasureOver::offset};
  int padded = 0;
  for (uint64_t seed = 1; seed <= 36; ++seed) {
    Rng rng(seed);
    const MeasureOver over = kOvers[seed % kOvers.size()];
    ProblemOptions o = random_options(rng, true);
    o.plan.has_order_q = chance(rng, 0.8);
    o.plan.has_order_k = chance(rng, 0.8);
    o.plan.is_by_key = false;
    if (o.plan.mask == MaskKind::grid) o.plan.mask = MaskKind::spans;  // its lengths are tied
    o.plan.heads_kv = o.plan.heads_q = static_cast<int>(uniform(rng, 1, 3));  // an order for each head of k
    o.plan.groups = chance(rng, 0.5) ? 1 : o.plan.heads_q;
    o.plan.seqlen_q = std::min<int64_t>(o.plan.seqlen_q, 140);
    o.plan.seqlen_k = std::min<int64_t>(o.plan.seqlen_k, 140);
    o.head_dim = std::min<int64_t>(o.head_dim, 64);
    if (over == MeasureOver::key || over == MeasureOver::offset) o.plan.pools.clear();
    ForwardProblem forward = make_problem(rng, o);
    const PlanData& plan = *forward.plan.plan;
    const MeasureParams sizes{.q = forward.q.view, .k = forward.k.view, .plan = forward.plan.plan, .over = over, .tile_k = 24};
    const Shape by_token = measure_shape(sizes);
    const MeasureProblem measurement = make_measure(rng, std::move(forward), over, by_token, 0, 24);
    cpu::measure(measurement.params, context);

    const auto in_slots = [&](const TensorView& tokens, const Order& order) {
      const Tensor slots = prepare::to_slots(tokens, order, context);
      const bool has_channels = tokens.rank() == 4;
      const Tensor own(host_memory(), tokens.dtype(), slots.view.shape());
      std::memcpy(own.view.raw(), slots.view.raw(), static_cast<size_t>(own.view.numel()) * size_of(tokens.dtype()));
      for (int64_t b = 0; b < own.view.dim(0) && order.token.has_value(); ++b) {
        for (int64_t h = 0; h < own.view.dim(1); ++h) {
          for (int64_t s = 0; s < own.view.dim(2); ++s) {
            if (order.token.at<int32_t>(order.token.dim(0) == 1 ? 0 : b, h * order.token.dim(1) / own.view.dim(1), s) >= 0) continue;
            ++padded;
            for (int64_t d = 0; d < (has_channels ? own.view.dim(3) : 1); ++d)
              from_double(own.view, has_channels ? own.view.offset(b, h, s, d) : own.view.offset(b, h, s), std::numeric_limits<double>::quiet_NaN());
          }
        }
      }
      return converted(own.view, tokens.dtype(), o.layout);
    };
    MeasureParams params = measurement.params;
    const HostTensor q = in_slots(params.q, plan.order_q), k = in_slots(params.k, plan.order_k);
    HostTensor lse, bias;
    if (params.lse.has_value()) lse = in_slots(params.lse, plan.order_q);
    if (params.key_bias.has_value()) bias = in_slots(params.key_bias, plan.order_k);
    params.in_slots = true;
    params.q = q.view;
    params.k = k.view;
    if (params.lse.has_value()) params.lse = lse.view;
    if (params.key_bias.has_value()) params.key_bias = bias.view;
    const Shape by_slot = measure_shape(params);
    const HostTensor sum(Dtype::f32, by_slot), max(Dtype::f32, by_slot), count(Dtype::f32, by_slot);
    params.sum = sum.view, params.max = max.view, params.count = count.view;
    const auto expect_same = [&](const char* whose) {
      for (const auto& [name, got, tokens, nothing] : {std::tuple{"sum", &sum, &measurement.params.sum, 0.0},
                                                       std::tuple{"max", &max, &measurement.params.max, -std::numeric_limits<double>::infinity()},
                                                       std::tuple{"count", &count, &measurement.params.count, 0.0}}) {
        if (!tokens->has_value()) continue;
        const bool is_by_query = over == MeasureOver::query_tile || over == MeasureOver::query_run || over == MeasureOver::query;
        const Order& order = is_by_query ? plan.order_q : plan.order_k;
        if ((!is_by_query && over != MeasureOver::key) || !order.token.has_value()) {
          EXPECT_EQ(values_of(got->view), values_of(*tokens)) << whose << ": " << name << ", seed " << seed << " " << describe(o);
          continue;
        }
        const int64_t columns = by_slot.rank == 4 ? by_slot[3] : 1, slots = by_slot[2];
        const auto at = [&](const TensorView& view, int64_t b, int64_t h, int64_t row, int64_t column) {
          return to_double(view, view.rank() == 4 ? view.offset(b, h, row, column) : view.offset(b, h, row));
        };
        for (int64_t i = 0; i < by_slot[0] * by_slot[1] * slots; ++i) {
          const int64_t s = i % slots, h = i / slots % by_slot[1], b = i / slots / by_slot[1];
          const int64_t token = order.token.at<int32_t>(order.token.dim(0) == 1 ? 0 : b, h * order.token.dim(1) / by_slot[1], s);
          for (int64_t column = 0; column < columns; ++column) {
            ASSERT_EQ(at(got->view, b, h, s, column), token < 0 ? nothing : at(*tokens, b, h, token, column))
                << whose << ": " << name << ", slot " << s << " token " << token << ", seed " << seed << " " << describe(o);
          }
        }
      }
    };
    cpu::measure(params, context);
    expect_same("cpu");
    if (seed % 5 == 0 && GetParam() == Target::portable) {  // the definition agrees with itself on what in_slots means
      Context serial;
      reference::measure(measurement.params, serial);
      reference::measure(params, serial);
      expect_same("reference");
    }
    if (HasFailure()) return;
  }
  EXPECT_GT(padded, 100);
}

TEST(CpuParts, InSlotsRefusesOtherLengths) {
  Rng rng(1);
  ProblemOptions o;
  o.plan.has_order_q = o.plan.has_order_k = true;
  ForwardProblem problem = make_problem(rng, o);
  while (problem.plan.slots_k == o.plan.seqlen_k) problem = make_problem(rng, o);  // no padding drawn
  AttendParams params = problem.params();
  params.in_slots = true;
  Context context = cpu_context(1);
  try {
    cpu::forward(params, context);
    FAIL() << "took tensors in token order as slots";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::shape);
    EXPECT_NE(std::string(error.what()).find("in_slots"), std::string::npos) << error.what();
  }
}

// A row of a million keys is one item of work and may take half a second: its kernel asks before every strip whether to go on.
TEST(CpuParts, AStopIsSeenInsideALongRow) {
  struct Stop {
    mutable int asked = 0;
    int granted = 0;
  };
  constexpr int kKeys = 100 * cpu::kStripKeys, kDim = 8;
  const std::vector<float> q(cpu::kBlockLanes * kDim, 0.0f), k(size_t{kKeys} * kDim, 0.0f);
  const cpu::Segment all{0, kKeys, ~uint64_t{0}, 0, false};
  const cpu::LaneBand band{};
  for (const auto& [granted, strips] : {std::pair{1000, 100}, std::pair{3, 3}, std::pair{0, 0}}) {
    const Stop stop{.granted = granted};
    cpu::MeasureBlock measure{};
    cpu::Block& block = measure.block;
    block.q = q.data();
    block.k = k.data();
    block.q_stride = block.k_stride = block.head_dim = kDim;
    block.lanes = cpu::kBlockLanes;
    block.segments = &all;
    block.num_segments = 1;
    block.band = &band;
    block.scale = 1;
    block.is_stopped = [](const void* at) {
      const Stop& s = *static_cast<const Stop*>(at);
      return s.asked++ == s.granted;
    };
    block.stop = &stop;
    float keys = 0;
    measure.walk = cpu::MeasureWalk::lanes;
    measure.take = [](void* state, int first, int, int32_t, const float*, const float*, const float* count) {
      if (first == 0) *static_cast<float*>(state) += count[0];
    };
    measure.state = &keys;
    const Buffer workspace(host_memory(), cpu::portable::measure_table.workspace_bytes(kDim));
    measure.workspace = static_cast<std::byte*>(workspace.data());
    cpu::portable::measure_table.measure_f32(measure);
    EXPECT_EQ(stop.asked, strips + 1);
    EXPECT_EQ(keys, static_cast<float>(strips * cpu::kStripKeys));
  }
}

// An order adds one copy of k and v, and a block's rows a worker: nothing that grows with the queries.
TEST(CpuParts, AnOrderAddsTheCopiesOfKeysAlone) {
  const auto peak_of = [](bool has_order_q, bool has_order_k, int64_t seqlen_q) {
    Rng rng(5);
    ProblemOptions o;
    o.plan.seqlen_q = seqlen_q;
    o.plan.seqlen_k = 300;
    o.plan.heads_q = 4;
    o.plan.heads_kv = 2;
    o.plan.has_order_q = has_order_q;
    o.plan.has_order_k = has_order_k;
    const ForwardProblem problem = make_problem(rng, o);
    Context context = cpu_context(2);
    const auto counting = std::make_shared<CountingMemory>(context.memory);
    context.memory = counting;
    cpu::forward(problem.params(), context);
    return static_cast<int64_t>(counting->peak_bytes());
  };
  const int64_t plain = peak_of(false, false, 300), row = 64 * 4;
  const int64_t blocks = 2 * 2 * 2 * 64 * row;  // two workers; q and out of two blocks
  EXPECT_LE(peak_of(true, false, 300), plain + blocks);
  EXPECT_LE(peak_of(true, false, 900), plain + blocks);
  EXPECT_LE(peak_of(false, true, 300), plain + 2 * 4 * 309 * row);  // k and v, up to four orders, up to nine slots of padding
}

}  // namespace
}  // namespace tilewise::attend::testing
