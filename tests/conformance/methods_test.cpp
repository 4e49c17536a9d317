// SPDX-License-Identifier: Apache-2.0
// What every registered method must hold to, whatever it computes. A new method is tested here without a line of its own.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <random>
#include <stop_token>
#include <string>

#include "tests/methods/definition_testing.h"
#include "tilewise/attend/attend.h"
#include "tilewise/base/memory.h"
#include "tilewise/machine/cpu/thread_pool.h"
#include "tilewise/methods/options.h"
#include "tilewise/plan/count.h"
#include "tilewise/plan/validate.h"

namespace tilewise {
namespace {

using testing::Bits;
using testing::Sizes;
using testing::TestProblem;

struct NamedMask {
  std::string name;
  Mask mask;
  bool is_plain = false;  // causal or full: a method must take it unless it says that it is causal only
};

/// Masks for a problem; spans need its lengths.
std::vector<NamedMask> masks_for(const Sizes& s, std::vector<int32_t>& spans) {
  std::vector<NamedMask> masks = {{"causal", Mask::causal(), true}, {"full", Mask::full(), true}};
  Mask window, mixed;
  window.bands = {Mask::Band{40, 7, 9}};
  mixed.bands = {Mask::causal().bands[0], Mask::Band{50, 0, 16}};
  for (int h = 0; h < s.heads_q; ++h) mixed.head_class.push_back(static_cast<uint8_t>(h % 2));
  masks.push_back({"window", window});
  masks.push_back({"mixed", mixed});
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t q = 0; q < s.seqlen_q; ++q) {
      const auto cut = [&](int64_t key) { return static_cast<int32_t>(std::min(key, s.seqlen_k)); };
      spans.insert(spans.end(), {0, std::min(cut(q % 7 + b), cut(s.seqlen_k / 2)), cut(s.seqlen_k / 2), cut(s.seqlen_k / 2 + q)});
    }
  }
  Mask of_spans;
  of_spans.spans = TensorView::of(spans.data(), {1, s.batch, s.seqlen_q, 4});
  if (s.batch > 0) masks.push_back({"spans", of_spans});
  return masks;
}

const std::vector<Sizes>& sizes() {
  static const std::vector<Sizes> all = {
      {1, 2, 1, 200, 200, 16},  // ragged, grouped heads
      {2, 4, 2, 131, 131, 32},  // batch
      {1, 2, 2, 65, 301, 16},   // fewer queries than keys, off the tile
      {1, 2, 1, 64, 192, 16},   // fewer queries, on the tile
      {1, 2, 1, 150, 70, 16},   // more queries than keys
      {1, 4, 1, 1, 129, 16},    // one query
      {2, 2, 1, 1, 1, 16},      // one token
      {1, 1, 1, 127, 127, 16}, {1, 1, 1, 128, 128, 16}, {1, 1, 1, 129, 129, 16}, {1, 1, 1, 63, 63, 16}, {1, 1, 1, 257, 257, 16},
  };
  return all;
}

/// Options that make a method work hard on short inputs, beside its defaults.
std::vector<OptionValues> option_sets(const MethodInfo& info) {
  std::vector<OptionValues> sets = {{}};
  OptionValues small;
  if (info.has_option("tile")) small["tile"] = int64_t{16};
  if (info.has_option("stride")) small["stride"] = int64_t{8};
  if (info.has_option("local")) small["local"] = int64_t{23}, small["init"] = int64_t{5};
  if (info.has_option("nearest"))
    small["nearest"] = int64_t{1}, small["first"] = int64_t{0}, small["vertical"] = int64_t{30}, small["slash"] = int64_t{50};
  if (info.has_option("blocks")) small["blocks"] = int64_t{2};
  sets.push_back(small);
  for (const OptionInfo& option : info.options) {  // each way that an option names
    if (!std::holds_alternative<std::string>(option.default_value)) continue;
    for (size_t at = 0; at < option.range.size();) {
      const size_t comma = std::min(option.range.find(", ", at), option.range.size());
      OptionValues way = small;
      way[option.name] = option.range.substr(at, comma - at);
      if (way[option.name] != option.default_value) sets.push_back(way);
      at = comma + 2;
    }
  }
  if (info.has_option("aligned")) {
    OptionValues aligned = small;
    aligned["aligned"] = true;
    sets.push_back(aligned);
  }
  if (info.has_option("density")) {
    small["density"] = .3;
    sets.push_back(small);
  }
  return sets;
}

/// Two plans that any kernel would run alike.
void expect_same(const PlanData& a, const PlanData& b) {
  EXPECT_EQ(a.dense_reads, b.dense_reads);
  const auto bytes = [](const TensorView& view) {
    return view.has_value() ? std::string(static_cast<const char*>(view.raw()), static_cast<size_t>(view.numel()) * size_of(view.dtype()))
                            : std::string();
  };
  for (const auto& member : {&Lists::whole, &Lists::masked, &Lists::picked}) {
    const RunList &x = a.by_query.*member, &y = b.by_query.*member;
    EXPECT_TRUE(bytes(x.begin) == bytes(y.begin) && bytes(x.count) == bytes(y.count) && bytes(x.start) == bytes(y.start) &&
                bytes(x.stop) == bytes(y.stop));
    EXPECT_EQ(x.grain, y.grain);
  }
  EXPECT_TRUE(bytes(a.by_query.edge) == bytes(b.by_query.edge));
}

/// The plan is well formed, reads allowed pairs only, and gives every query that may read something a key.
void expect_sound(const Plan& plan, const TestProblem& test, const NamedMask& mask, const Sizes& s) {
  ASSERT_NE(plan, nullptr);
  EXPECT_EQ(plan->seqlen_q, s.seqlen_q);
  EXPECT_EQ(plan->seqlen_k, s.seqlen_k);
  EXPECT_EQ(plan->batch, s.batch);
  EXPECT_EQ(plan->heads_q, s.heads_q);
  ASSERT_NO_THROW(validate(plan));
  ASSERT_NO_THROW(validate(plan, test.problem.mask));
  Bits read = testing::bits_of(*plan, false), tested = testing::bits_of(*plan, true);
  const Bits allowed = testing::bits_of_mask(mask.mask, s.batch, s.heads_q, s.seqlen_q, s.seqlen_k);
  int64_t beyond = 0, uncovered = 0;
  for (size_t i = 0; i < read.values.size(); ++i) {
    ASSERT_LE(read.values[i], 1) << "a pair is read twice";
    beyond += tested.values[i] > allowed.values[i] ? 1 : 0;
  }
  EXPECT_EQ(beyond, 0) << "pairs outside the model's mask";
  for (size_t line = 0; mask.is_plain && s.seqlen_k > 0 && line < read.values.size() / static_cast<size_t>(s.seqlen_k); ++line) {
    const auto at = static_cast<std::ptrdiff_t>(line * static_cast<size_t>(s.seqlen_k)), next = at + s.seqlen_k;
    const bool may = std::count(allowed.values.begin() + at, allowed.values.begin() + next, uint8_t{1}) > 0;
    const bool does = std::count(tested.values.begin() + at, tested.values.begin() + next, uint8_t{1}) > 0;
    uncovered += may && !does ? 1 : 0;
  }
  EXPECT_EQ(uncovered, 0) << "queries that could read a key and do not";
  EXPECT_EQ(read.count(), reads(plan));
  EXPECT_LE(reads(plan), plan->dense_reads) << "density is at most 1";
}

class EveryMethod : public ::testing::TestWithParam<std::string> {
 protected:
  const MethodInfo& info() const { return method_info(GetParam()); }
  void plan_everything() const;
};

/// The kernels that the library chooses, then the reference, which takes every mask: one that a method runs attention for may be refused before.
class OnBackend {
 public:
  explicit OnBackend(const std::string& name) { setenv("TILEWISE_BACKEND", name.c_str(), 1); }
  ~OnBackend() { unsetenv("TILEWISE_BACKEND"); }
};

TEST_P(EveryMethod, PlansSoundlyOrRefusesByName) {
  for (const std::string backend : {"auto", "reference"}) {
    const OnBackend on_backend(backend);
    plan_everything();
    if (::testing::Test::HasFatalFailure()) return;
  }
}

void EveryMethod::plan_everything() const {
  unsigned seed = 1;
  for (const Sizes& s : sizes()) {
    std::vector<int32_t> spans;
    for (const NamedMask& mask : masks_for(s, spans)) {
      for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
        const TestProblem test(s, dtype, mask.mask, ++seed);
        for (const OptionValues& options : option_sets(info())) {
          SCOPED_TRACE(::testing::Message() << GetParam() << " " << format_options(GetParam(), options) << " " << s << " " << dtype << " "
                                            << mask.name << " seed " << seed);
          Context context;
          try {
            const Plan plan = plan_with(GetParam(), test.problem, options, context).plan;
            expect_sound(plan, test, mask, s);
            if (::testing::Test::HasFatalFailure()) return;
            expect_same(*plan, *plan_with(GetParam(), test.problem, options, context).plan);
            Context shuffled;
            shuffled.executor = std::make_shared<testing::ShuffledExecutor>(3);
            expect_same(*plan, *plan_with(GetParam(), test.problem, options, shuffled).plan);
          } catch (const Error& error) {
            EXPECT_EQ(error.kind(), Error::Kind::unsupported) << error.what();
            EXPECT_EQ(std::string(error.what()).rfind(GetParam(), 0), 0u) << "the message begins with the method: " << error.what();
            const bool may_refuse = !mask.is_plain || (info().is_causal_only && mask.name == "full");
            EXPECT_TRUE(may_refuse) << error.what();
          }
        }
      }
    }
  }
}

TEST_P(EveryMethod, GivesThePoolTheSamePlan) {
  const TestProblem test({1, 4, 2, 700, 700, 16}, Dtype::f32, Mask::causal(), 11);
  for (const OptionValues& options : option_sets(info())) {
    Context serial, pooled;
    pooled.executor = make_thread_pool(4);
    expect_same(*plan_with(GetParam(), test.problem, options, serial).plan, *plan_with(GetParam(), test.problem, options, pooled).plan);
  }
}

TEST_P(EveryMethod, TakesEmptyProblems) {
  for (const Sizes& s : std::vector<Sizes>{{1, 2, 1, 0, 0, 16}, {1, 2, 1, 0, 50, 16}, {1, 2, 1, 50, 0, 16}, {0, 2, 1, 50, 50, 16}}) {
    for (const Mask& mask : {Mask::causal(), Mask::full()}) {
      if (info().is_causal_only && mask.bands[0].right != 0) continue;
      SCOPED_TRACE(::testing::Message() << s);
      const TestProblem test(s, Dtype::f32, mask, 1);
      Context context;
      const Plan plan = plan_with(GetParam(), test.problem, {}, context).plan;
      ASSERT_NE(plan, nullptr);
      EXPECT_EQ(plan->seqlen_q, s.seqlen_q);
      EXPECT_EQ(plan->dense_reads, 0);
      EXPECT_EQ(reads(plan), 0);
    }
  }
}

TEST_P(EveryMethod, TakesNaNWithoutHarm) {
  TestProblem test({1, 2, 1, 150, 150, 16}, Dtype::f32, Mask::causal(), 5);
  test.q.set(0, 1, 70, 3, std::nanf(""));
  test.k.set(0, 0, 20, 5, HUGE_VALF);
  Context context;
  for (const OptionValues& options : option_sets(info())) {
    const Plan plan = plan_with(GetParam(), test.problem, options, context).plan;
    ASSERT_NO_THROW(validate(plan));
  }
}

TEST_P(EveryMethod, ChecksTheRangeOfEveryOption) {
  const TestProblem test({1, 1, 1, 64, 64, 16}, Dtype::f32, Mask::causal(), 5);
  Context context;
  for (const OptionInfo& option : info().options) {
    std::vector<OptionValue> bad = {std::string("none of these")};
    if (std::holds_alternative<int64_t>(option.default_value) || std::holds_alternative<double>(option.default_value)) {
      const size_t middle = option.range.find(" to ");
      ASSERT_NE(middle, std::string::npos) << option.name;
      const double low = std::stod(option.range), high = std::stod(option.range.substr(middle + 4));
      bad.push_back(low - 1);
      if (high < 1e18) bad.push_back(high + 1);
      bad.push_back(true);
    } else {
      bad.push_back(int64_t{7});
    }
    for (const OptionValue& value : bad) {
      try {
        plan_with(GetParam(), test.problem, {{option.name, value}}, context);
        ADD_FAILURE() << GetParam() << " took " << option.name << " = " << method::to_text(value);
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), Error::Kind::value) << error.what();
        EXPECT_NE(std::string(error.what()).find(option.name), std::string::npos) << error.what();
      }
    }
  }
  EXPECT_THROW(plan_with(GetParam(), test.problem, {{"no_such_option", int64_t{1}}}, context), Error);
}

TEST_P(EveryMethod, RefusesTensorsThatDoNotFit) {
  const TestProblem good({1, 4, 2, 64, 64, 16}, Dtype::f32, Mask::causal(), 5);
  const testing::TestTensor three = testing::make_tensor(Dtype::f32, 1, 3, 64, 16), wide = testing::make_tensor(Dtype::f32, 1, 2, 64, 24),
                            half = testing::make_tensor(Dtype::bf16, 1, 2, 64, 16), many = testing::make_tensor(Dtype::f32, 2, 2, 64, 16);
  std::vector<int32_t> integers(4 * 64 * 16), beyond(64 * 4, 65);
  struct Call {
    std::string what;
    Error::Kind kind;
    std::function<void(Problem&)> change;
  };
  const std::vector<Call> calls = {
      {"no q", Error::Kind::shape, [](Problem& p) { p.q = {}; }},
      {"no k", Error::Kind::shape, [](Problem& p) { p.k = {}; }},
      {"rank 3", Error::Kind::shape, [&](Problem& p) { p.q = TensorView::of(integers.data(), {4, 64, 16}); }},
      {"heads that do not divide", Error::Kind::shape, [&](Problem& p) { p.k = three.view; }},
      {"head_dim", Error::Kind::shape, [&](Problem& p) { p.k = wide.view; }},
      {"batch", Error::Kind::shape, [&](Problem& p) { p.k = many.view; }},
      {"mixed dtypes", Error::Kind::dtype, [&](Problem& p) { p.k = half.view; }},
      {"integers", Error::Kind::dtype, [&](Problem& p) { p.q = p.k = TensorView::of(integers.data(), {1, 4, 64, 16}); }},
      {"channels apart", Error::Kind::shape, [&](Problem& p) { p.q = p.k = good.q.view.permute({0, 1, 3, 2}); }},
      {"another device", Error::Kind::device,
       [](Problem& p) { p.q = p.k = TensorView(p.q.raw(), Dtype::f32, {1, 4, 64, 16}, Device{Device::Type::cuda, 0}); }},
      {"scale 0", Error::Kind::value, [](Problem& p) { p.softmax_scale = 0.0f; }},
      {"scale nan", Error::Kind::value, [](Problem& p) { p.softmax_scale = std::nanf(""); }},
      {"softcap below 0", Error::Kind::value, [](Problem& p) { p.softcap = -1; }},
      {"no mask", Error::Kind::value, [](Problem& p) { p.mask = {}; }},
      {"two masks", Error::Kind::value, [&](Problem& p) { p.mask.spans = TensorView::of(integers.data(), {1, 1, 64, 4}); }},
      {"spans of other lengths", Error::Kind::shape, [&](Problem& p) { p.mask = {}, p.mask.spans = TensorView::of(integers.data(), {1, 1, 60, 4}); }},
      {"head_class too short", Error::Kind::shape, [](Problem& p) { p.mask.head_class = {0, 0}; }},
      {"a class that is not there", Error::Kind::value, [](Problem& p) { p.mask.head_class = {0, 0, 1, 0}; }},
      {"spans past the keys", Error::Kind::value, [&](Problem& p) { p.mask = {}, p.mask.spans = TensorView::of(beyond.data(), {1, 1, 64, 4}); }},
      {"a band too wide", Error::Kind::value, [](Problem& p) { p.mask.bands[0].left = (int64_t{1} << 40) + 1; }},
      {"a sink below 0", Error::Kind::value, [](Problem& p) { p.mask.bands[0].sink = -1; }},
  };
  for (const Call& call : calls) {
    Problem problem = good.problem;
    call.change(problem);
    Context context;
    try {
      plan_with(GetParam(), problem, {}, context);
      ADD_FAILURE() << GetParam() << " took " << call.what;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), call.kind) << call.what << ": " << error.what();
      EXPECT_EQ(std::string(error.what()).rfind(GetParam() + ": ", 0), 0u) << error.what();
    }
  }
}

std::vector<int32_t> identity(int64_t copies, int64_t tokens) {
  std::vector<int32_t> order;
  for (int64_t i = 0; i < copies * tokens; ++i) order.push_back(static_cast<int32_t>(i % tokens));
  return order;
}

TEST_P(EveryMethod, TakesTheIdentityForNoOrder) {
  for (const Sizes& s : std::vector<Sizes>{{2, 4, 2, 131, 131, 32}, {1, 2, 1, 65, 301, 16}, {1, 2, 1, 150, 70, 16}}) {
    TestProblem test(s, Dtype::f32, Mask::causal(), 5);
    const std::vector<int32_t> queries = identity(s.batch * s.heads_q, s.seqlen_q), keys = identity(s.heads_kv, s.seqlen_k);
    for (const OptionValues& options : option_sets(info())) {
      SCOPED_TRACE(::testing::Message() << GetParam() << " " << format_options(GetParam(), options) << " " << s);
      Context context;
      const Plan plain = plan_with(GetParam(), test.problem, options, context).plan;
      test.problem.order_q.token = TensorView::of(queries.data(), {s.batch, s.heads_q, s.seqlen_q});
      expect_same(*plain, *plan_with(GetParam(), test.problem, options, context).plan);
      test.problem.order_k.token = TensorView::of(keys.data(), {1, s.heads_kv, s.seqlen_k});
      const Plan ordered = plan_with(GetParam(), test.problem, options, context).plan;
      expect_same(*plain, *ordered);
      EXPECT_TRUE(testing::bits_of(*plain, true) == testing::bits_of(*ordered, true));
      test.problem.order_q = test.problem.order_k = {};
    }
  }
}

/// Orders of a problem: which axis has one, whether heads and batch entries differ, how many slots hold nothing.
struct OrderCase {
  const char* name;
  bool has_q, has_k, is_own_of_head, is_own_of_entry;
  int64_t padding;
};
constexpr OrderCase kOrderCases[] = {{"queries", true, false, false, false, 0},
                                     {"keys", false, true, false, false, 0},
                                     {"both, of each head", true, true, true, false, 0},
                                     {"both, of each entry, with padding", true, true, false, true, 7},
                                     {"keys of each head with padding", false, true, true, true, 21}};

struct DrawnOrders {
  std::vector<int32_t> queries, keys;
  Order order_q, order_k;

  DrawnOrders(const OrderCase& c, const Sizes& s, unsigned seed) {
    std::mt19937 engine(seed);
    const int64_t entries = c.is_own_of_entry ? s.batch : 1;
    const auto draw = [&](std::vector<int32_t>& tokens, int64_t groups, int64_t seqlen) {
      for (int64_t i = 0; i < entries * groups; ++i) {
        std::vector<int32_t> order = identity(1, seqlen);
        order.insert(order.end(), static_cast<size_t>(c.padding), -1);
        std::shuffle(order.begin(), order.end(), engine);
        tokens.insert(tokens.end(), order.begin(), order.end());
      }
      return TensorView::of(tokens.data(), {entries, groups, seqlen + c.padding});
    };
    if (c.has_q) order_q.token = draw(queries, c.is_own_of_head ? s.heads_q : 1, s.seqlen_q);
    if (c.has_k) order_k.token = draw(keys, !c.is_own_of_head ? 1 : c.has_q ? s.heads_kv : s.heads_q, s.seqlen_k);
  }
  DrawnOrders(const DrawnOrders&) = delete;
};

TEST_P(EveryMethod, PlansSoundlyUnderRandomOrders) {
  unsigned seed = 100;
  for (const Sizes& s : std::vector<Sizes>{{2, 4, 2, 131, 131, 32}, {1, 2, 1, 65, 301, 16}, {1, 2, 2, 150, 70, 16}, {2, 2, 1, 1, 40, 16}}) {
    std::vector<int32_t> spans;
    for (const NamedMask& mask : masks_for(s, spans)) {
      for (const OrderCase& c : kOrderCases) {
        const DrawnOrders orders(c, s, ++seed);
        TestProblem test(s, seed % 2 == 0 ? Dtype::f32 : Dtype::bf16, mask.mask, seed);
        test.problem.order_q = orders.order_q;
        test.problem.order_k = orders.order_k;
        for (const OptionValues& options : option_sets(info())) {
          SCOPED_TRACE(::testing::Message() << GetParam() << " " << format_options(GetParam(), options) << " " << s << " " << mask.name
                                            << ", order of " << c.name << ", seed " << seed);
          Context context;
          try {
            const Plan plan = plan_with(GetParam(), test.problem, options, context).plan;
            EXPECT_EQ(plan->order_q.token.has_value(), c.has_q && (s.seqlen_q > 1 || c.padding > 0));
            EXPECT_EQ(plan->order_k.token.has_value(), c.has_k);
            expect_sound(plan, test, mask, s);
            if (::testing::Test::HasFatalFailure()) return;
            Context shuffled;
            shuffled.executor = std::make_shared<testing::ShuffledExecutor>(3);
            expect_same(*plan, *plan_with(GetParam(), test.problem, options, shuffled).plan);
          } catch (const Error& error) {
            EXPECT_EQ(error.kind(), Error::Kind::unsupported) << error.what();
            EXPECT_TRUE(!mask.is_plain || (info().is_causal_only && mask.name == "full")) << error.what();
          }
        }
      }
    }
  }
}

TEST_P(EveryMethod, RefusesOrdersThatLoseTokens) {
  TestProblem test({1, 2, 1, 60, 60, 16}, Dtype::f32, Mask::causal(), 5);
  const std::vector<int32_t> good = identity(1, 60);
  std::vector<int32_t> twice = good, beyond = good;
  std::swap(twice[0], twice[1]);
  twice[2] = 3;
  beyond[0] = 60;
  std::vector<int64_t> wide(60);
  const std::vector<std::pair<TensorView, Error::Kind>> calls = {
      {TensorView::of(twice.data(), {1, 1, 60}), Error::Kind::value}, {TensorView::of(beyond.data(), {1, 1, 60}), Error::Kind::value},
      {TensorView::of(good.data(), {1, 1, 59}), Error::Kind::shape},  {TensorView::of(good.data(), {1, 3, 20}), Error::Kind::shape},
      {TensorView::of(good.data(), {60}), Error::Kind::shape},        {TensorView::of(wide.data(), {1, 1, 60}), Error::Kind::dtype}};
  for (const bool is_query : {false, true}) {
    for (const auto& [token, kind] : calls) {
      Problem problem = test.problem;
      (is_query ? problem.order_q : problem.order_k).token = token;
      Context context;
      try {
        plan_with(GetParam(), problem, {}, context);
        ADD_FAILURE() << "took an order " << token.shape();
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), kind) << error.what();
        EXPECT_NE(std::string(error.what()).find(is_query ? "order_q" : "order_k"), std::string::npos) << error.what();
      }
    }
  }
}

TEST_P(EveryMethod, StopsWhenAsked) {
  const TestProblem test({1, 2, 1, 200, 200, 16}, Dtype::f32, Mask::causal(), 5);
  std::stop_source stop;
  stop.request_stop();
  Context context;
  context.cancel = stop.get_token();
  try {
    plan_with(GetParam(), test.problem, {}, context);
    ADD_FAILURE() << "went on";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::cancelled);
  }
}

TEST_P(EveryMethod, GivesItsMemoryBack) {
  const TestProblem test({1, 2, 1, 200, 200, 16}, Dtype::bf16, Mask::causal(), 5);
  const auto memory = std::make_shared<CountingMemory>(host_memory());
  Context context;
  context.memory = memory;
  {
    const Planned planned = plan_with(GetParam(), test.problem, {}, context);
    EXPECT_GT(memory->bytes(), 0u) << "the plan comes from Context::memory";
  }
  EXPECT_EQ(memory->bytes(), 0u);
}

/// The output of attention with the plan equals a softmax over the pairs that its bits name.
void expect_attended(const Plan& plan, const TestProblem& test, const testing::TestTensor& v, const Sizes& s, Context& context) {
  std::vector<float> out(static_cast<size_t>(s.batch * s.heads_q * s.seqlen_q * s.dim));
  const Shape shape{s.batch, s.heads_q, s.seqlen_q, s.dim};
  attend_forward({.q = test.q.view, .k = test.k.view, .v = v.view, .out = TensorView::of(out.data(), shape), .plan = plan}, context);
  Bits bits = testing::bits_of(*plan, true);
  for (int h = 0; h < s.heads_q; ++h) {
    for (int64_t i = 0; i < s.seqlen_q; ++i) {
      std::vector<double> weight(static_cast<size_t>(s.seqlen_k), 0.0);
      double total = 0;
      for (int64_t k = 0; k < s.seqlen_k; ++k) {
        if (bits.at(0, h, i, k) == 0) continue;
        double dot = 0;
        for (int64_t d = 0; d < s.dim; ++d) dot += test.q.get(0, h, i, d) * test.k.get(0, test.head_kv(h), k, d);
        total += weight[static_cast<size_t>(k)] = std::exp(dot / std::sqrt(static_cast<double>(s.dim)));
      }
      for (int64_t d = 0; d < s.dim; ++d) {
        double sum = 0;
        for (int64_t k = 0; k < s.seqlen_k; ++k) sum += weight[static_cast<size_t>(k)] * v.get(0, test.head_kv(h), k, d);
        ASSERT_NEAR(out[static_cast<size_t>((h * s.seqlen_q + i) * s.dim + d)], total > 0 ? sum / total : 0, 2e-5) << "head " << h << " query " << i;
      }
    }
  }
}

// A plan is only as good as what attention makes of it, in token order and under others.
TEST_P(EveryMethod, IsAttendedAsItsBitsSay) {
  for (const Sizes& s : std::vector<Sizes>{{1, 4, 2, 131, 131, 16}, {1, 2, 1, 65, 150, 16}}) {
    TestProblem test(s, Dtype::f32, Mask::causal(), 17);
    const testing::TestTensor v = testing::random_tensor(Dtype::f32, s.batch, s.heads_kv, s.seqlen_k, s.dim, 18);
    const DrawnOrders orders(kOrderCases[3], s, 19);
    for (const OptionValues& options : option_sets(info())) {
      Context context;
      test.problem.order_q = test.problem.order_k = {};
      expect_attended(plan_with(GetParam(), test.problem, options, context).plan, test, v, s, context);
      test.problem.order_q = orders.order_q;
      test.problem.order_k = orders.order_k;
      expect_attended(plan_with(GetParam(), test.problem, options, context).plan, test, v, s, context);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const MethodInfo& info : methods()) all.push_back(info.name);
  return all;
}

INSTANTIATE_TEST_SUITE_P(Registry, EveryMethod, ::testing::ValuesIn(names()), [](const auto& test) { return test.param; });

}  // namespace
}  // namespace tilewise
