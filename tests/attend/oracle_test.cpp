// SPDX-License-Identifier: Apache-2.0
// Worked numbers of FlashAttention: online softmax, its backward, the bottom-right causal mask, tile counts, cut runs and empty rows.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "tests/attend/attend_testing.h"
#include "tilewise/attend/attend.h"
#include "tilewise/attend/backend.h"
#include "tilewise/attend/decode.h"
#include "tilewise/attend/merge.h"
#include "tilewise/attend/reference/backward.h"

namespace tilewise::attend::testing {
namespace {

struct RunOf {
  int32_t start, stop;
  bool is_masked;
};

// One list of runs for every row of `tile` queries, batch 1.
Plan plan_of(int64_t seqlen_q, int64_t seqlen_k, int heads, int tile, const Mask& mask, const std::vector<RunOf>& runs) {
  auto plan = std::make_shared<PlanData>();
  plan->seqlen_q = seqlen_q;
  plan->seqlen_k = seqlen_k;
  plan->heads_q = heads;
  plan->dense_reads = heads * seqlen_q * seqlen_k;
  plan->mask = mask;
  plan->by_query.tile = tile;
  const int64_t rows = (seqlen_q + tile - 1) / tile;
  for (const bool is_masked : {false, true}) {
    std::vector<int32_t> start, stop;
    for (const RunOf& run : runs) {
      if (run.is_masked != is_masked) continue;
      start.push_back(run.start);
      stop.push_back(run.stop);
    }
    const auto count = static_cast<int64_t>(start.size());
    RunList& list = is_masked ? plan->by_query.masked : plan->by_query.whole;
    list.begin = plan_array(*plan, {1, 1, rows}, std::vector<int64_t>(static_cast<size_t>(rows), 0));
    list.count = plan_array(*plan, {1, 1, rows}, std::vector<int32_t>(static_cast<size_t>(rows), static_cast<int32_t>(count)));
    list.start = plan_array(*plan, {count}, start);
    list.stop = plan_array(*plan, {count}, stop);
  }
  return plan;
}

Plan dense_plan(int64_t seqlen_q, int64_t seqlen_k, int tile, const Mask& mask) {
  return plan_of(seqlen_q, seqlen_k, 1, tile, mask, {{0, static_cast<int32_t>(seqlen_k), true}});
}

// Oracle 1 and 2 in f64: D = 1, q = 1, scale 1, so the scores are k.
struct Worked {
  HostTensor q = zeros(Dtype::f64, {1, 1, 1, 1}), k = zeros(Dtype::f64, {1, 1, 4, 1}), v = zeros(Dtype::f64, {1, 1, 4, 1});
  HostTensor out = zeros(Dtype::f64, {1, 1, 1, 1}), lse = zeros(Dtype::f32, {1, 1, 1});
  Context context;

  Worked() {
    const double scores[] = {1, 3, 2, 5};
    q.set(1, 0, 0, 0, 0);
    for (int64_t i = 0; i < 4; ++i) {
      k.set(scores[i], 0, 0, i, 0);
      v.set(static_cast<double>(i + 1), 0, 0, i, 0);
    }
  }
  AttendParams params(const Plan& plan) const {
    return {.q = q.view, .k = k.view, .v = v.view, .out = out.view, .lse = lse.view, .plan = plan, .softmax_scale = 1.0f};
  }
};

TEST(AttendOracle, OnlineSoftmaxOfFourScores) {
  Worked w;
  // After the tile {2, 3}: m 5, l 1.049787, O 4.149361.
  reference::forward(w.params(plan_of(1, 4, 1, 16, Mask::full(), {{2, 4, false}})), w.context);
  const double l1 = std::exp(w.lse.get(0, 0, 0) - 5);
  EXPECT_NEAR(l1, 1.049787, 1e-6);
  EXPECT_NEAR(w.out.get(0, 0, 0, 0) * l1, 4.149361, 3e-6);
  const HostTensor out1 = converted(w.out.view, Dtype::f64), lse1 = converted(w.lse.view, Dtype::f32);
  // Then {0, 1}: l 1.203438, O 4.438347; out 3.688057, lse 5.185182.
  reference::forward(w.params(plan_of(1, 4, 1, 16, Mask::full(), {{0, 4, false}})), w.context);
  const double l2 = std::exp(w.lse.get(0, 0, 0) - 5);
  EXPECT_NEAR(l2, 1.203438, 1e-6);
  EXPECT_NEAR(w.out.get(0, 0, 0, 0) * l2, 4.438347, 3e-6);
  EXPECT_NEAR(w.out.get(0, 0, 0, 0), 3.688057, 5e-7);
  EXPECT_NEAR(w.lse.get(0, 0, 0), 5.185182, 5e-7 + 0x1p-22);  // six decimals, and lse is f32
  // And the two tiles apart, merged.
  const HostTensor out2 = zeros(Dtype::f64, {1, 1, 1, 1}), lse2 = zeros(Dtype::f32, {1, 1, 1});
  AttendParams first = w.params(plan_of(1, 4, 1, 16, Mask::full(), {{0, 2, false}}));
  first.out = out2.view;
  first.lse = lse2.view;
  reference::forward(first, w.context);
  attend_merge({.outs = {out1.view, out2.view}, .lses = {lse1.view, lse2.view}, .out = w.out.view, .lse = w.lse.view}, w.context);
  EXPECT_NEAR(w.out.get(0, 0, 0, 0), 3.688057, 1e-6);
  EXPECT_NEAR(w.lse.get(0, 0, 0), 5.185182, 5e-7 + 0x1p-22);  // six decimals, and lse is f32
}

TEST(AttendOracle, BackwardOfFourScores) {
  Worked w;
  const AttendParams forward = w.params(plan_of(1, 4, 1, 16, Mask::full(), {{0, 4, false}}));
  reference::forward(forward, w.context);
  const HostTensor dout = zeros(Dtype::f64, {1, 1, 1, 1}), dq = zeros(Dtype::f64, {1, 1, 1, 1});
  const HostTensor dk = zeros(Dtype::f64, {1, 1, 4, 1}), dv = zeros(Dtype::f64, {1, 1, 4, 1});
  dout.set(2, 0, 0, 0, 0);
  reference::backward({.forward = forward, .dout = dout.view, .dq = dq.view, .dk = dk.view, .dv = dv.view}, w.context);
  const double p[] = {.015219, .112457, .041371, .830953}, ds[] = {-.081821, -.379668, -.056931, .518420};
  EXPECT_NEAR(2 * w.out.get(0, 0, 0, 0), 7.376113, 2e-6);  // D
  double sum = 0, expected_dq = 0;
  for (int64_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(dv.get(0, 0, i, 0), 2 * p[i], 2e-6) << "dV = 2P, key " << i;
    EXPECT_NEAR(dk.get(0, 0, i, 0), ds[i], 2e-6) << "dS, key " << i;
    sum += dk.get(0, 0, i, 0);
    expected_dq += dk.get(0, 0, i, 0) * w.k.get(0, 0, i, 0);
  }
  EXPECT_NEAR(sum, 0, 1e-6);
  EXPECT_NEAR(dq.get(0, 0, 0, 0), expected_dq, 1e-12);
}

TEST(AttendOracle, CausalIsBottomRight) {
  Context context;
  const auto counts = [&](int64_t seqlen_q, int64_t seqlen_k) {
    const HostTensor q = zeros(Dtype::f32, {1, 1, seqlen_q, 8}), k = zeros(Dtype::f32, {1, 1, seqlen_k, 8}),
                     count(Dtype::f32, {1, 1, seqlen_q, seqlen_k});
    reference::measure({.q = q.view,
                        .k = k.view,
                        .plan = dense_plan(seqlen_q, seqlen_k, 16, Mask::causal()),
                        .over = MeasureOver::query_tile,
                        .tile_k = 1,
                        .count = count.view},
                       context);
    return values_of(count.view);
  };
  EXPECT_EQ(counts(2, 5), (std::vector<double>{1, 1, 1, 1, 0, 1, 1, 1, 1, 1}));
  EXPECT_EQ(counts(5, 2), (std::vector<double>{0, 0, 0, 0, 0, 0, 1, 0, 1, 1}));
  // The first three rows of 5 x 2: out 0, lse -inf.
  Rng rng(1);
  const HostTensor q = random_normal(rng, Dtype::f32, {1, 1, 5, 8}), k = random_normal(rng, Dtype::f32, {1, 1, 2, 8});
  const HostTensor v = random_normal(rng, Dtype::f32, {1, 1, 2, 8}), out(Dtype::f32, {1, 1, 5, 8}), lse(Dtype::f32, {1, 1, 5});
  reference::forward({.q = q.view, .k = k.view, .v = v.view, .out = out.view, .lse = lse.view, .plan = dense_plan(5, 2, 16, Mask::causal())},
                     context);
  for (int64_t i = 0; i < 5; ++i) {
    EXPECT_EQ(std::isinf(lse.get(0, 0, i)), i < 3) << "query " << i;
    for (int64_t d = 0; d < 8; ++d) EXPECT_EQ(out.get(0, 0, i, d) == 0, i < 3);
  }
}

TEST(AttendOracle, CausalTileCounts) {
  struct Case {
    int64_t length;
    int tile_k;
    int tiles;
  };
  for (const Case& c : {Case{1024, 128, 36}, Case{1024, 176, 30}, Case{1000, 128, 36}, Case{1000, 176, 30}}) {
    const HostTensor q = zeros(Dtype::f32, {1, 1, c.length, 1});
    const HostTensor count(Dtype::f32, {1, 1, (c.length + 127) / 128, (c.length + c.tile_k - 1) / c.tile_k});
    Context context;
    reference::measure(
        {.q = q.view, .k = q.view, .plan = dense_plan(c.length, c.length, 128, Mask::causal()), .tile_k = c.tile_k, .count = count.view}, context);
    int tiles = 0;
    for (const double pairs : values_of(count.view)) tiles += pairs > 0 ? 1 : 0;
    EXPECT_EQ(tiles, c.tiles) << c.length << " x 128 x " << c.tile_k;
  }
}

// Every backend that takes the problem: runs cut at multiples of its key tile give the same bits, any other cut the same result to rounding.
TEST(AttendOracle, CutRunsChangeNothing) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    for (const Mask& mask : {Mask::full(), Mask::causal()}) {
      const int64_t length = 700;
      Rng rng(21);
      const HostTensor q = random_normal(rng, dtype, {1, 1, length, 64}), k = random_normal(rng, dtype, {1, 1, length, 64});
      const HostTensor v = random_normal(rng, dtype, {1, 1, length, 64});
      const HostTensor uncut_out(dtype, {1, 1, length, 64}), uncut_lse(Dtype::f32, {1, 1, length}), out(dtype, {1, 1, length, 64}),
          lse(Dtype::f32, {1, 1, length});
      AttendParams uncut{
          .q = q.view, .k = k.view, .v = v.view, .out = uncut_out.view, .lse = uncut_lse.view, .plan = dense_plan(length, length, 64, mask)};
      const auto cut = [&](int32_t step) {
        std::vector<RunOf> runs;
        for (int32_t start = 0; start < length; start += step)
          runs.push_back({start, static_cast<int32_t>(std::min<int64_t>(length, start + step)), true});
        AttendParams params = uncut;
        params.plan = plan_of(length, length, 1, 64, mask, runs);
        params.out = out.view;
        params.lse = lse.view;
        return params;
      };
      for (const Backend& backend : backends()) {
        if (backend.forward == nullptr || backend.forward_refusal(uncut)) continue;
        SCOPED_TRACE(std::string(backend.name) + " " + std::string(name(dtype)));
        Context context;
        backend.forward(uncut, context);
        for (const int32_t step : {128, 256, 384}) {
          backend.forward(cut(step), context);
          EXPECT_EQ(values_of(out.view), values_of(uncut_out.view)) << "cut at " << step;
          EXPECT_EQ(values_of(lse.view), values_of(uncut_lse.view)) << "cut at " << step;
        }
        for (const int32_t step : {1, 7, 65, 100}) {
          backend.forward(cut(step), context);
          const double unit = dtype == Dtype::f32 ? 0x1p-21 : 0x1p-7;
          EXPECT_LE(largest_difference(values_of(out.view), values_of(uncut_out.view)), unit * largest_magnitude(values_of(uncut_out.view)))
              << "cut at " << step;
          EXPECT_LE(largest_difference(values_of(lse.view), values_of(uncut_lse.view)), 0x1p-20 * largest_magnitude(values_of(uncut_lse.view)))
              << "cut at " << step;
        }
      }
    }
  }
}

// Split by keys at any place and merged by lse: the whole, to rounding; the sink logit enters once, in the merge.
TEST(AttendOracle, SplitAndMergedIsTheWhole) {
  const int64_t length = 90;
  Rng rng(22);
  const HostTensor q = random_normal(rng, Dtype::f64, {1, 2, length, 8}), k = random_normal(rng, Dtype::f64, {1, 2, length, 8});
  const HostTensor v = random_normal(rng, Dtype::f64, {1, 2, length, 8}), sink = random_normal(rng, Dtype::f32, {2});
  Context context;
  const auto run = [&](const std::vector<RunOf>& runs, const TensorView& sink_logit) {
    std::pair<HostTensor, HostTensor> result{HostTensor(Dtype::f64, {1, 2, length, 8}), HostTensor(Dtype::f32, {1, 2, length})};
    reference::forward({.q = q.view,
                        .k = k.view,
                        .v = v.view,
                        .out = result.first.view,
                        .lse = result.second.view,
                        .plan = plan_of(length, length, 2, 16, Mask::causal(), runs),
                        .sink_logit = sink_logit},
                       context);
    return result;
  };
  for (const bool has_sink : {false, true}) {
    const TensorView sink_logit = has_sink ? sink.view : TensorView();
    const auto whole = run({{0, 90, true}}, sink_logit);
    for (const int32_t cut : {1, 16, 45, 88}) {
      const int32_t second = (cut + 90) / 2;  // parts of [0, cut), [cut, second), [second, 90)
      const auto a = run({{0, cut, true}}, {}), b = run({{cut, second, true}}, {}), c = run({{second, 90, true}}, {});
      const HostTensor out(Dtype::f64, {1, 2, length, 8}), lse(Dtype::f32, {1, 2, length});
      attend_merge({.outs = {a.first.view, b.first.view, c.first.view},
                    .lses = {a.second.view, b.second.view, c.second.view},
                    .out = out.view,
                    .lse = lse.view,
                    .sink_logit = sink_logit},
                   context);
      EXPECT_LE(largest_difference(values_of(out.view), values_of(whole.first.view)), 2e-6) << "cut " << cut;  // the lse of the parts are f32
      EXPECT_LE(largest_difference(values_of(lse.view), values_of(whole.second.view)), 2e-6) << "cut " << cut;
    }
  }
}

// Oracle 9 on every backend: a row with an empty list gets 0 and -inf (the sink logit, where there is one), whatever stood in the outputs.
TEST(AttendOracle, EmptyRows) {
  for (const bool has_sink : {false, true}) {
    Rng rng(23);
    const HostTensor q = random_normal(rng, Dtype::f32, {1, 2, 70, 16}), v = random_normal(rng, Dtype::f32, {1, 2, 70, 16}),
                     sink = random_normal(rng, Dtype::f32, {2});
    const HostTensor out(Dtype::f32, {1, 2, 70, 16}), lse(Dtype::f32, {1, 2, 70});
    AttendParams params{.q = q.view, .k = q.view, .v = v.view, .out = out.view, .lse = lse.view, .plan = plan_of(70, 70, 2, 16, Mask::full(), {})};
    if (has_sink) params.sink_logit = sink.view;
    for (const Backend& backend : backends()) {
      if (backend.forward == nullptr || backend.forward_refusal(params)) continue;
      out.wipe();
      lse.wipe();
      Context context;
      EXPECT_EQ(backend.forward(params, context).pairs_read, 0) << backend.name;
      for (const double x : values_of(out.view)) ASSERT_EQ(x, 0) << backend.name;
      for (int64_t head = 0; head < 2; ++head) {
        for (int64_t i = 0; i < 70; ++i)
          ASSERT_EQ(lse.get(0, head, i), has_sink ? sink.get(head) : -std::numeric_limits<double>::infinity()) << backend.name;
      }
    }
  }
}

// Sizes of zero are sizes.
TEST(AttendOracle, EmptyTensors) {
  for (const Shape& sizes : {Shape{0, 3, 5}, Shape{1, 0, 5}, Shape{1, 3, 0}, Shape{1, 0, 0}}) {
    const int64_t batch = sizes[0], seqlen_q = sizes[1], seqlen_k = sizes[2];
    auto plan = std::make_shared<PlanData>();
    plan->batch = std::max<int64_t>(1, batch);  // any plan serves an empty batch
    plan->heads_q = 2;
    plan->seqlen_q = seqlen_q;
    plan->seqlen_k = seqlen_k;
    plan->mask = Mask::causal();
    const HostTensor q = zeros(Dtype::f32, {batch, 2, seqlen_q, 8}), k = zeros(Dtype::f32, {batch, 1, seqlen_k, 8}),
                     out(Dtype::f32, {batch, 2, seqlen_q, 8});
    const HostTensor lse(Dtype::f32, {batch, 2, seqlen_q}), dq(Dtype::f32, q.view.shape()), dk(Dtype::f32, k.view.shape()),
        dv(Dtype::f32, k.view.shape());
    const HostTensor sum(Dtype::f32, {batch, 2, seqlen_q});
    const AttendParams params{.q = q.view, .k = k.view, .v = k.view, .out = out.view, .lse = lse.view, .plan = plan};
    for (const Backend& backend : backends()) {
      SCOPED_TRACE(std::string(backend.name));
      Context context;
      if (backend.forward != nullptr && !backend.forward_refusal(params)) {
        EXPECT_EQ(backend.forward(params, context).pairs_read, 0);
        for (const double x : values_of(lse.view)) EXPECT_EQ(x, -std::numeric_limits<double>::infinity());
      }
      const AttendBackwardParams back{.forward = params, .dout = out.view, .dq = dq.view, .dk = dk.view, .dv = dv.view};
      if (backend.backward != nullptr && !backend.backward_refusal(back)) {
        backend.backward(back, context);
        for (const double x : values_of(dk.view)) EXPECT_EQ(x, 0);
      }
      const MeasureParams m{.q = q.view, .k = k.view, .plan = plan, .over = MeasureOver::query, .sum = sum.view};
      if (backend.measure != nullptr && !backend.measure_refusal(m)) {
        backend.measure(m, context);
        for (const double x : values_of(sum.view)) EXPECT_EQ(x, 0);
      }
    }
  }
}

// Spec 6, oracle 11: keys and values in pages anywhere in a pool are those of a contiguous cache, whatever the table and the size of a page.
TEST(AttendOracle, PagedIsContiguous) {
  constexpr int64_t kBatch = 2, kHeadsKv = 2, kHeadsQ = 6, kTokens = 2, kCapacity = 512, kDim = 24;
  std::mt19937_64 rng(9);
  std::normal_distribution<double> normal;
  const auto drawn = [&](const Shape& shape) {
    HostTensor tensor(Dtype::f32, shape);
    for (int64_t i = 0; i < tensor.view.numel(); ++i) tensor.view.data<float>()[i] = static_cast<float>(normal(rng));
    return tensor;
  };
  const HostTensor q = drawn({kBatch, kHeadsQ, kTokens, kDim}), k = drawn({kBatch, kHeadsKv, kCapacity, kDim}),
                   v = drawn({kBatch, kHeadsKv, kCapacity, kDim});
  HostTensor lengths(Dtype::i32, {kBatch});
  lengths.view.at<int32_t>(0) = 389;
  lengths.view.at<int32_t>(1) = 512;
  for (const char* const backend : {"reference", "cpu"}) {
    setenv("TILEWISE_BACKEND", backend, 1);
    const auto decode = [&](const Operand& keys, const Operand& values) {
      HostTensor out(Dtype::f32, q.view.shape()), lse(Dtype::f32, {kBatch, kHeadsQ, kTokens});
      Context context;
      attend_decode(
          {.q = q.view, .k = keys, .v = values, .out = out.view, .lse = lse.view, .lengths = lengths.view, .dense_band = Mask::Band{.right = 0}},
          context);
      std::vector<double> both = values_of(out.view);
      const std::vector<double> sums = values_of(lse.view);
      both.insert(both.end(), sums.begin(), sums.end());
      return both;
    };
    std::vector<double> contiguous;
    try {
      contiguous = decode(k.view, v.view);
    } catch (const Error& error) {
      unsetenv("TILEWISE_BACKEND");
      ASSERT_EQ(error.kind(), Error::Kind::unsupported) << error.what();
      ASSERT_STRNE(backend, "reference") << error.what();
      std::printf("not on %s: %s\n", backend, error.what());
      continue;
    }
    for (const int64_t page : {1, 16, 64, 256}) {
      const int64_t pages = kCapacity / page, in_pool = kBatch * pages + 5;
      std::vector<int32_t> places(static_cast<size_t>(in_pool));
      std::iota(places.begin(), places.end(), 0);
      std::shuffle(places.begin(), places.end(), rng);
      HostTensor pool_k = drawn({in_pool, kHeadsKv, page, kDim}), pool_v = drawn({in_pool, kHeadsKv, page, kDim}),
                 table(Dtype::i32, {kBatch, 1, pages});
      for (int64_t b = 0; b < kBatch; ++b) {
        for (int64_t p = 0; p < pages; ++p) {
          const int32_t place = places[static_cast<size_t>(b * pages + p)];
          table.view.at<int32_t>(b, 0, p) = place;
          for (int64_t h = 0; h < kHeadsKv; ++h) {
            for (int64_t row = 0; row < page; ++row) {
              for (int64_t d = 0; d < kDim; ++d) {
                pool_k.view.at<float>(place, h, row, d) = k.view.at<float>(b, h, p * page + row, d);
                pool_v.view.at<float>(place, h, row, d) = v.view.at<float>(b, h, p * page + row, d);
              }
            }
          }
        }
      }
      const std::vector<double> paged = decode(Paged{.pool = pool_k.view, .table = table.view}, Paged{.pool = pool_v.view, .table = table.view});
      for (size_t i = 0; i < paged.size(); ++i) ASSERT_EQ(paged[i], contiguous[i]) << backend << " page " << page << " at " << i;
    }
    unsetenv("TILEWISE_BACKEND");
  }
}

}  // namespace
}  // namespace tilewise::attend::testing
