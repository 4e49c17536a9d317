// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cpu/decode.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "tests/attend/cpu/cpu_testing.h"
#include "tests/attend/decode_testing.h"
#include "tilewise/attend/reference/decode.h"
#include "tilewise/machine/cpu/thread_pool.h"
#include "tilewise/prepare/quantise.h"

namespace tilewise::attend {
namespace {

using machine::cpu::Target;
using testing::DecodeCase;
using testing::DecodeOptions;

class CpuDecode : public ::testing::TestWithParam<Target> {};
INSTANTIATE_TEST_SUITE_P(Targets, CpuDecode, ::testing::ValuesIn(machine::cpu::available_targets().begin(), machine::cpu::available_targets().end()),
                         [](const auto& tested) { return std::string(machine::cpu::name(tested.param)); });

// Twice the rounding of f32 sums, or of the dot instruction's.
constexpr double kEpsilon = 0x1p-22;

TEST_P(CpuDecode, IsTheDefinition) {
  const testing::ForcedTarget forced(GetParam());
  // Each target takes its share of the cases, and all the first ones.
  const auto targets = machine::cpu::available_targets().size();
  for (uint64_t seed = 0; seed < 300; ++seed) {
    if (seed >= 40 && seed % targets != static_cast<size_t>(GetParam())) continue;
    testing::Rng rng(seed);
    const DecodeCase c = testing::make_case(rng, testing::random_decode(rng, false));
    Context context;
    const Ran ran = cpu::decode(check_decode(c.params(), context), context);
    EXPECT_EQ(ran.target, machine::cpu::name(GetParam()));
    testing::expect_answer(c, kEpsilon, "seed " + std::to_string(seed) + ": " + describe(c.options));
    if (HasFatalFailure()) return;
  }
}

// Of a drawn decode, one that its definition in plain loops computes soon.
DecodeOptions small(DecodeOptions options) {
  options.batch = 2;
  if (options.capacity > 1000) options.capacity *= 2;
  options.heads_kv = std::min(options.heads_kv, 2);
  options.group = std::min(options.group, 3);
  options.queries = std::min(options.queries, 2);
  options.plan_groups = std::min(options.plan_groups, options.heads_kv);
  return options;
}

// Lists longer than an item (4,096 keys) are cut and merged.
TEST_P(CpuDecode, LongListsAreMerged) {
  const testing::ForcedTarget forced(GetParam());
  int cut = 0;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    testing::Rng rng(1000 + 10 * static_cast<uint64_t>(GetParam()) + seed);
    DecodeOptions options = small(testing::random_decode(rng, true));
    options.is_ragged = seed % 2 == 0;
    if (seed % 3 != 0) options.plan_groups = 0;
    if (seed % 3 == 1) options.band = {Mask::kAll, 0, 0};
    const DecodeCase c = testing::make_case(rng, options);
    Context context;
    const DecodeProblem problem = check_decode(c.params(), context);
    for (const DecodeUnit& unit : problem.units) cut += unit.keys > 4096 ? 1 : 0;
    cpu::decode(problem, context);
    testing::expect_answer(c, kEpsilon, "seed " + std::to_string(seed) + ": " + describe(c.options));
    if (HasFatalFailure()) return;
  }
  EXPECT_GE(cut, 1) << "units of more than one part";
}

// The drawn cases above and those of attend_random_cases_test must reach every corner.
TEST(CpuDecodeCases, ReachEveryCorner) {
  std::map<std::string, int> seen;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    testing::Rng rng(seed);
    const DecodeOptions o = testing::random_decode(rng, false);
    ++seen["tokens " + std::to_string(o.queries)];
    ++seen["storage " + std::to_string(static_cast<int>(o.storage_k)) + std::to_string(static_cast<int>(o.storage_v))];
    ++seen["dtype " + std::to_string(static_cast<int>(o.dtype))];
    ++seen["page " + std::to_string(o.page)];
    ++seen["lists " + std::string(o.plan_groups == 0 ? "band" : o.plan_groups == 1 ? "one" : o.plan_groups == o.heads_kv ? "Hkv" : "Hq")];
    seen["scale by channel"] += o.storage_k != testing::Storage::plain && o.group_channels != 0 ? 1 : 0;
    seen["scale by key"] += o.storage_k != testing::Storage::plain && o.group_channels == 0 ? 1 : 0;
    seen["sink"] += o.has_sink ? 1 : 0;
    seen["softcap"] += o.softcap != 0 ? 1 : 0;
    seen["a length of 0"] += o.is_ragged && o.batch > 1 ? 1 : 0;
    seen["lse alone"] += !o.has_v ? 1 : 0;
    seen["one head of v"] += o.is_v_broadcast && o.heads_kv > 1 ? 1 : 0;
    seen["odd channels"] += o.head_dim % 4 != 0 ? 1 : 0;
  }
  for (const auto& [corner, count] : seen) EXPECT_GE(count, 5) << corner;
  EXPECT_EQ(seen.size(), 4U + 9U + 3U + 6U + 4U + 8U);
}

// Two runs of one problem.
void expect_same_bits(const DecodeCase& a, const DecodeCase& b, const std::string& what) {
  if (a.options.has_v) {
    EXPECT_EQ(testing::values_of(a.out.view), testing::values_of(b.out.view)) << what;
  }
  if (a.options.has_lse) {
    EXPECT_EQ(testing::values_of(a.lse.view), testing::values_of(b.lse.view)) << what;
  }
}

TEST_P(CpuDecode, BitsDoNotDependOnThreads) {
  const testing::ForcedTarget forced(GetParam());
  for (uint64_t seed = 0; seed < 6; ++seed) {
    DecodeOptions options;
    const auto make = [&] {  // the same numbers each time, outputs of their own
      testing::Rng rng(2000 + seed);
      options = small(testing::random_decode(rng, seed % 2 == 0));
      options.layout = testing::Layout::contiguous;
      return testing::make_case(rng, options);
    };
    const DecodeCase serial = make();
    Context context;
    cpu::decode(check_decode(serial.params(), context), context);
    for (const int threads : {2, 3, 7}) {
      const DecodeCase c = make();
      context.executor = make_thread_pool(threads);
      cpu::decode(check_decode(c.params(), context), context);
      expect_same_bits(serial, c, std::to_string(threads) + " threads, seed " + std::to_string(seed) + ": " + describe(options));
    }
  }
}

// A sequence gets the bits that it gets alone, whatever lies beside it.
TEST_P(CpuDecode, BitsDoNotDependOnTheBatch) {
  const testing::ForcedTarget forced(GetParam());
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    for (const int page : {0, 16}) {
      testing::Rng rng(9);
      DecodeOptions options{.batch = 3, .heads_kv = 2, .group = 3, .queries = 2, .capacity = 4800, .head_dim = 40, .head_dim_v = 24, .dtype = dtype};
      options.page = page;
      options.is_pool_per_head = true;
      const DecodeCase c = testing::make_case(rng, options);
      const DecodeParams together = c.params();
      Context context;
      cpu::decode(check_decode(together, context), context);
      const auto of = [](const Operand& operand, int64_t b) -> Operand {
        if (const auto* const view = std::get_if<TensorView>(&operand)) return view->slice(0, b, 1);
        Paged paged = std::get<Paged>(operand);
        paged.table = paged.table.slice(0, b, 1);
        return paged;
      };
      for (int64_t b = 0; b < options.batch; ++b) {
        const testing::HostTensor out(dtype, {1, 6, 2, 24}), lse(Dtype::f32, {1, 6, 2});
        DecodeParams alone = together;
        alone.q = together.q.slice(0, b, 1);
        alone.k = of(together.k, b);
        alone.v = of(together.v, b);
        alone.out = out.view;
        alone.lse = lse.view;
        alone.lengths = together.lengths.slice(0, b, 1);
        cpu::decode(check_decode(alone, context), context);
        EXPECT_EQ(testing::values_of(out.view), testing::values_of(together.out.slice(0, b, 1))) << describe(options) << ", sequence " << b;
        EXPECT_EQ(testing::values_of(lse.view), testing::values_of(together.lse.slice(0, b, 1))) << describe(options) << ", sequence " << b;
      }
    }
  }
}

// What quantise() makes, against the reference over the numbers that its codes stand for.
TEST_P(CpuDecode, CodesStandForNumbers) {
  const testing::ForcedTarget forced(GetParam());
  constexpr int64_t kKeys = 500, kDim = 64;
  for (const Dtype codes : {Dtype::i8, Dtype::u8}) {
    for (const Quantised::Group group : {Quantised::Group{1, 0}, Quantised::Group{50, 1}, Quantised::Group{16, 32}}) {
      testing::Rng rng(4);
      const testing::HostTensor q = testing::random_normal(rng, Dtype::f32, {1, 4, 2, kDim}),
                                k = testing::random_normal(rng, Dtype::f32, {1, 2, kKeys, kDim});
      const testing::HostTensor out(Dtype::f32, {1, 4, 2, kDim}), exact(Dtype::f32, {1, 4, 2, kDim}), lse(Dtype::f32, {1, 4, 2}),
          exact_lse(Dtype::f32, {1, 4, 2});
      const testing::HostTensor numbers(Dtype::f32, {1, 2, kKeys, kDim});
      const Shape scales{1, 2, (kKeys + group.tokens - 1) / group.tokens, group.channels == 0 ? 1 : (kDim + group.channels - 1) / group.channels};
      const testing::HostTensor data(codes, {1, 2, kKeys, codes == Dtype::u8 ? kDim / 2 : kDim}), scale(Dtype::f32, scales), zero(Dtype::f32, scales);
      const Quantised quantised{.data = data.view, .scale = scale.view, .zero = zero.view, .group = group};
      Context context;
      quantise({.x = k.view, .out = quantised}, context);
      dequantise(quantised, numbers.view, context);
      DecodeParams params{.q = q.view, .k = quantised, .v = quantised, .out = out.view, .lse = lse.view, .dense_band = Mask::Band{.right = 0}};
      cpu::decode(check_decode(params, context), context);
      params.k = params.v = numbers.view;
      params.out = exact.view;
      params.lse = exact_lse.view;
      reference::decode(check_decode(params, context), context);
      const std::vector<double> got = testing::values_of(out.view), want = testing::values_of(exact.view);
      for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-5) << codes << " groups of " << group.tokens << " x " << group.channels;
      const std::vector<double> got_lse = testing::values_of(lse.view), want_lse = testing::values_of(exact_lse.view);
      for (size_t i = 0; i < got_lse.size(); ++i) EXPECT_NEAR(got_lse[i], want_lse[i], 1e-5);
    }
  }
}

}  // namespace
}  // namespace tilewise::attend
