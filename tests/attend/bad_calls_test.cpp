// SPDX-License-Identifier: Apache-2.0
// Bad input, one wrong thing at a time: the error has the right kind, says which argument, what it got and what it takes, and nothing was written.
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "tests/attend/attend_testing.h"
#include "tilewise/attend/attend.h"
#include "tilewise/attend/merge.h"
#include "tilewise/attend/reference/backward.h"

namespace tilewise::attend::testing {
namespace {

using Kind = Error::Kind;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// A call of each entry point that is right in every way, B 2, Hq 4, Hkv 2, Sq 20, Sk 24, D 16, Dv 8, with everything optional given.
struct Calls {
  ForwardProblem problem;
  HostTensor dout, dlse, dq, dk, dv, dsink, bias, sum, max, count;
  std::shared_ptr<PlanData> plan;  // the problem's, free to be changed
  AttendParams forward;
  AttendBackwardParams backward;
  MeasureParams measuring;
  MergeParams merge;
  Context context;
  std::vector<HostTensor> kept;  // tensors that a case made

  Calls() : problem(make()) {
    Rng rng(2);
    const PlanData& source = *problem.plan.plan;
    plan = std::make_shared<PlanData>();
    plan->seqlen_q = source.seqlen_q;
    plan->seqlen_k = source.seqlen_k;
    plan->dense_reads = source.dense_reads;
    plan->batch = source.batch;
    plan->heads_q = source.heads_q;
    plan->by_query = source.by_query;
    plan->mask = source.mask;
    forward = problem.params();
    forward.plan = plan;
    forward.softmax_scale = 0.3f;
    forward.softcap = 20;
    dout = random_normal(rng, Dtype::f32, problem.out.view.shape());
    dlse = random_normal(rng, Dtype::f32, problem.lse.view.shape());
    dq = zeros(Dtype::f32, problem.q.view.shape());
    dk = zeros(Dtype::f32, problem.k.view.shape());
    dv = zeros(Dtype::f32, problem.v.view.shape());
    dsink = zeros(Dtype::f32, {4});
    backward = {.forward = forward, .dout = dout.view, .dlse = dlse.view, .dq = dq.view, .dk = dk.view, .dv = dv.view, .dsink_logit = dsink.view};
    bias = random_normal(rng, Dtype::f32, {2, 4, 24});
    sum = zeros(Dtype::f32, {2, 4, 2, 3});
    max = zeros(Dtype::f32, {2, 4, 2, 3});
    count = zeros(Dtype::f32, {2, 4, 2, 3});
    measuring = {.q = forward.q,
                 .k = forward.k,
                 .plan = plan,
                 .lse = dlse.view,
                 .key_bias = bias.view,
                 .over = MeasureOver::tile,
                 .tile_q = 16,
                 .tile_k = 8,
                 .softmax_scale = 0.3f,
                 .softcap = 20,
                 .sum = sum.view,
                 .max = max.view,
                 .count = count.view};
    merge = {.outs = {dout.view, dout.view},
             .lses = {dlse.view, dlse.view},
             .out = problem.out.view,
             .lse = problem.lse.view,
             .sink_logit = problem.sink_logit.view};
  }

  static ForwardProblem make() {
    Rng rng(1);
    ProblemOptions options;
    options.plan = {.batch = 2, .seqlen_q = 20, .seqlen_k = 24, .heads_q = 4, .heads_kv = 2, .tile = 16, .has_picked = true, .has_rows = true};
    options.plan.longest_run = 6;
    options.head_dim = 16;
    options.head_dim_v = 8;
    options.has_sink = true;
    return make_problem(rng, options);
  }

  TensorView other(Dtype dtype, const Shape& shape) {
    kept.push_back(zeros(dtype, shape));
    return kept.back().view;
  }
  // The same elements in memory that is twice as wide.
  TensorView spread(const TensorView& view) {
    std::array<int64_t, Shape::kMaxRank> strides{};
    int64_t step = 2;
    for (int axis = view.rank() - 1; axis >= 0; --axis) {
      strides[static_cast<size_t>(axis)] = step;
      step *= view.dim(axis);
    }
    kept.push_back(HostTensor(view.dtype(), {step}));
    return TensorView(kept.back().view.raw(), view.dtype(), view.shape(), strides);
  }
  std::vector<std::vector<unsigned char>> outputs() const {
    std::vector<std::vector<unsigned char>> bytes;
    for (const HostTensor* tensor : {&problem.out, &problem.lse, &dq, &dk, &dv, &dsink, &sum, &max, &count}) bytes.push_back(tensor->bytes());
    return bytes;
  }
};

TensorView on_gpu(const TensorView& view) { return TensorView(view.raw(), view.dtype(), view.shape(), {Device::Type::cuda, 0}); }
TensorView shifted(const TensorView& view) { return TensorView(static_cast<char*>(view.raw()) + 1, view.dtype(), view.shape()); }
TensorView without_memory(const TensorView& view) { return TensorView(nullptr, view.dtype(), view.shape()); }
TensorView broadcast(const TensorView& view, int axis) {
  std::array<int64_t, Shape::kMaxRank> strides{};
  for (int a = 0; a < view.rank(); ++a) strides[static_cast<size_t>(a)] = a == axis ? 0 : view.stride(a);
  return TensorView(view.raw(), view.dtype(), view.shape(), strides);
}

struct Bad {
  const char* name;
  Kind kind;
  std::vector<std::string> says;  // argument, what it got, what it takes
  std::function<void(Calls&)> spoil;
};

// Runs `call` on every spoiled set of arguments.
void expect_refused(const std::vector<Bad>& cases, const char* function, const std::function<void(Calls&)>& call) {
  for (const Bad& bad : cases) {
    SCOPED_TRACE(std::string(function) + ": " + bad.name);
    Calls calls;
    bad.spoil(calls);
    const auto before = calls.outputs();
    try {
      call(calls);
      ADD_FAILURE() << "was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(name(error.kind()), name(bad.kind)) << error.what();
      const std::string_view text = error.what();
      EXPECT_TRUE(text.starts_with(std::string(function) + ": ")) << text;
      for (const std::string& part : bad.says) EXPECT_NE(text.find(part), std::string_view::npos) << "\"" << part << "\" is not in: " << text;
    }
    EXPECT_TRUE(calls.outputs() == before) << "an output was written";
  }
}

// The same calls, unspoiled, are taken; so each case below fails for its own reason.
TEST(AttendBadCalls, RightCallsAreTaken) {
  Calls calls;
  reference::forward(calls.forward, calls.context);
  reference::backward(calls.backward, calls.context);
  reference::measure(calls.measuring, calls.context);
  attend_merge(calls.merge, calls.context);
}

std::vector<Bad> operand_cases(const std::function<AttendParams&(Calls&)>& p) {
  return {
      {"q absent", Kind::value, {"q is absent", "[B, Hq, Sq, D]"}, [p](Calls& c) { p(c).q = {}; }},
      {"k absent", Kind::value, {"k is absent", "[B, Hkv, Sk, D]"}, [p](Calls& c) { p(c).k = {}; }},
      {"q of rank 3", Kind::shape, {"q has shape [4, 20, 16]", "4 axes"}, [p](Calls& c) { p(c).q = c.other(Dtype::f32, {4, 20, 16}); }},
      {"k of rank 5", Kind::shape, {"k has shape [1, 2, 2, 24, 16]", "4 axes"}, [p](Calls& c) { p(c).k = c.other(Dtype::f32, {1, 2, 2, 24, 16}); }},
      {"q of integers", Kind::dtype, {"q is i32", "f32, bf16, f16 or f64"}, [p](Calls& c) { p(c).q = c.other(Dtype::i32, {2, 4, 20, 16}); }},
      {"k in another dtype", Kind::dtype, {"k is bf16", "takes f32"}, [p](Calls& c) { p(c).k = c.other(Dtype::bf16, {2, 2, 24, 16}); }},
      {"v in another dtype", Kind::dtype, {"v is f16", "takes f32"}, [p](Calls& c) { p(c).v = c.other(Dtype::f16, {2, 2, 24, 8}); }},
      {"out in another dtype", Kind::dtype, {"out is bf16", "takes f32"}, [p](Calls& c) { p(c).out = c.other(Dtype::bf16, {2, 4, 20, 8}); }},
      {"lse in bf16", Kind::dtype, {"lse is bf16", "takes f32"}, [p](Calls& c) { p(c).lse = c.other(Dtype::bf16, {2, 4, 20}); }},
      {"q and k of different batch",
       Kind::shape,
       {"differ in batch", "[2, 4, 20, 16]", "[3, 2, 24, 16]"},
       [p](Calls& c) { p(c).k = c.other(Dtype::f32, {3, 2, 24, 16}); }},
      {"q and k of different head_dim",
       Kind::shape,
       {"differ in head_dim", "[2, 2, 24, 8]"},
       [p](Calls& c) { p(c).k = c.other(Dtype::f32, {2, 2, 24, 8}); }},
      {"head_dim 0",
       Kind::shape,
       {"head_dim 0", "1 or more"},
       [p](Calls& c) {
         p(c).q = c.other(Dtype::f32, {2, 4, 20, 0});
         p(c).k = c.other(Dtype::f32, {2, 2, 24, 0});
       }},
      {"no heads in k", Kind::shape, {"no head", "[2, 0, 24, 16]"}, [p](Calls& c) { p(c).k = c.other(Dtype::f32, {2, 0, 24, 16}); }},
      {"heads that do not divide",
       Kind::shape,
       {"must divide", "q has 4", "k has 3"},
       [p](Calls& c) { p(c).k = c.other(Dtype::f32, {2, 3, 24, 16}); }},
      {"q with a stride in D", Kind::shape, {"q has stride 2", "takes 1"}, [p](Calls& c) { p(c).q = c.spread(p(c).q); }},
      {"v with a stride in Dv", Kind::shape, {"v has stride 2", "takes 1"}, [p](Calls& c) { p(c).v = c.spread(p(c).v); }},
      {"lse with a stride in Sq", Kind::shape, {"lse has stride 2", "takes 1"}, [p](Calls& c) { p(c).lse = c.spread(p(c).lse); }},
      {"q on a GPU", Kind::device, {"q is on cuda:0", "runs on cpu"}, [p](Calls& c) { p(c).q = on_gpu(p(c).q); }},
      {"out on a GPU", Kind::device, {"out is on cuda:0", "runs on cpu"}, [p](Calls& c) { p(c).out = on_gpu(p(c).out); }},
      {"k without memory", Kind::value, {"k [2, 2, 24, 16] has a null pointer"}, [p](Calls& c) { p(c).k = without_memory(p(c).k); }},
      {"q at an odd address", Kind::value, {"q lies at an address", "multiple of 4"}, [p](Calls& c) { p(c).q = shifted(p(c).q); }},
      {"v without out", Kind::value, {"v is given without out", "give both"}, [p](Calls& c) { p(c).out = {}; }},
      {"out without v", Kind::value, {"out is given without v", "give both"}, [p](Calls& c) { p(c).v = {}; }},
      {"v of another length", Kind::shape, {"v has shape [2, 2, 25, 8]", "Sk 24"}, [p](Calls& c) { p(c).v = c.other(Dtype::f32, {2, 2, 25, 8}); }},
      {"v of another batch", Kind::shape, {"v has shape [1, 2, 24, 8]", "B 2"}, [p](Calls& c) { p(c).v = c.other(Dtype::f32, {1, 2, 24, 8}); }},
      {"v with as many heads as q", Kind::shape, {"v has 4 heads", "1 or 2"}, [p](Calls& c) { p(c).v = c.other(Dtype::f32, {2, 4, 24, 8}); }},
      {"v without channels", Kind::shape, {"v has 0 channels", "1 or more"}, [p](Calls& c) { p(c).v = c.other(Dtype::f32, {2, 2, 24, 0}); }},
      {"out of the shape of q",
       Kind::shape,
       {"out has shape [2, 4, 20, 16]", "takes [2, 4, 20, 8]"},
       [p](Calls& c) { p(c).out = c.other(Dtype::f32, {2, 4, 20, 16}); }},
      {"lse of the heads of k",
       Kind::shape,
       {"lse has shape [2, 2, 20]", "takes [2, 4, 20]"},
       [p](Calls& c) { p(c).lse = c.other(Dtype::f32, {2, 2, 20}); }},
      {"sink_logit of the heads of k",
       Kind::shape,
       {"sink_logit has shape [2]", "takes [4]"},
       [p](Calls& c) { p(c).sink_logit = c.other(Dtype::f32, {2}); }},
      {"sink_logit in f64", Kind::dtype, {"sink_logit is f64", "takes f32"}, [p](Calls& c) { p(c).sink_logit = c.other(Dtype::f64, {4}); }},
      {"softmax_scale 0", Kind::value, {"softmax_scale is 0", "finite number above 0"}, [p](Calls& c) { p(c).softmax_scale = 0.0f; }},
      {"softmax_scale negative", Kind::value, {"softmax_scale is -1", "above 0"}, [p](Calls& c) { p(c).softmax_scale = -1.0f; }},
      {"softmax_scale NaN", Kind::value, {"softmax_scale is nan", "finite"}, [p](Calls& c) { p(c).softmax_scale = kNaN; }},
      {"softmax_scale infinite", Kind::value, {"softmax_scale is inf", "finite"}, [p](Calls& c) { p(c).softmax_scale = kInf; }},
      {"softcap negative", Kind::value, {"softcap is -2", "0 or above"}, [p](Calls& c) { p(c).softcap = -2.0f; }},
      {"softcap NaN", Kind::value, {"softcap is nan", "finite"}, [p](Calls& c) { p(c).softcap = kNaN; }},
      {"softcap infinite", Kind::value, {"softcap is inf", "0 is none"}, [p](Calls& c) { p(c).softcap = kInf; }},
      {"no plan", Kind::value, {"plan is null", "plan_with"}, [p](Calls& c) { p(c).plan = nullptr; }},
      {"a plan for more queries", Kind::shape, {"plan is made for 21 queries and 24 keys", "20 and 24"}, [](Calls& c) { c.plan->seqlen_q = 21; }},
      {"a plan for fewer keys", Kind::shape, {"plan is made for 20 queries and 23 keys", "20 and 24"}, [](Calls& c) { c.plan->seqlen_k = 23; }},
      {"a plan for another batch", Kind::shape, {"batch 3", "batch 2"}, [](Calls& c) { c.plan->batch = 3; }},
      {"a plan for other heads", Kind::shape, {"8 query heads", "4 heads"}, [](Calls& c) { c.plan->heads_q = 8; }},
  };
}

// What is wrong with the arrays of a plan, seen without reading them.
std::vector<Bad> plan_cases() {
  const auto view = [](Calls& c, Dtype dtype, const Shape& shape) { return c.other(dtype, shape); };
  return {
      {"begin as i32",
       Kind::dtype,
       {"by_query.whole.begin is i32", "takes i64"},
       [view](Calls& c) { c.plan->by_query.whole.begin = view(c, Dtype::i32, {1, 1, 2}); }},
      {"begin for another batch",
       Kind::shape,
       {"whole.begin is made for batch 3", "1 or 2"},
       [view](Calls& c) { c.plan->by_query.whole.begin = view(c, Dtype::i64, {3, 1, 2}); }},
      {"groups that do not divide",
       Kind::shape,
       {"masked.begin has 3 head groups", "divisor of 4"},
       [view](Calls& c) { c.plan->by_query.masked.begin = view(c, Dtype::i64, {1, 3, 2}); }},
      {"rows for another tile",
       Kind::shape,
       {"picked has 5 and 2 rows", "takes 2"},
       [view](Calls& c) { c.plan->by_query.picked.begin = view(c, Dtype::i64, {1, 1, 5}); }},
      {"no count", Kind::value, {"whole has begin but lacks count or start"}, [](Calls& c) { c.plan->by_query.whole.count = {}; }},
      {"count of rank 2",
       Kind::shape,
       {"whole.count has shape [1, 2]", "3 axes"},
       [view](Calls& c) { c.plan->by_query.whole.count = view(c, Dtype::i32, {1, 2}); }},
      {"stop shorter than start",
       Kind::shape,
       {"masked.stop has 0 entries", "as start has"},
       [view](Calls& c) { c.plan->by_query.masked.stop = view(c, Dtype::i32, {0}); }},
      {"rows of two words",
       Kind::shape,
       {"masked.rows has shape", "2]", "1]"},
       [view](Calls& c) { c.plan->by_query.masked.rows = view(c, Dtype::u64, {c.plan->by_query.masked.start.dim(0), 2}); }},
      {"grain 0", Kind::value, {"whole.grain is 0", "1 or more"}, [](Calls& c) { c.plan->by_query.whole.grain = 0; }},
      {"tile 0", Kind::value, {"by_query.tile is 0", "1 to 256"}, [](Calls& c) { c.plan->by_query.tile = 0; }},
      {"tile 512", Kind::value, {"by_query.tile is 512", "1 to 256"}, [](Calls& c) { c.plan->by_query.tile = 512; }},
      {"edge as i64", Kind::dtype, {"by_query.edge is i64", "takes i32"}, [view](Calls& c) { c.plan->by_query.edge = view(c, Dtype::i64, {3}); }},
      {"arrays on a GPU",
       Kind::device,
       {"whole.start is on cuda:0", "runs on cpu"},
       [](Calls& c) { c.plan->by_query.whole.start = on_gpu(c.plan->by_query.whole.start); }},
      {"no mask", Kind::value, {"mask has 0 of bands, spans and grids", "exactly one"}, [](Calls& c) { c.plan->mask.bands.clear(); }},
      {"two masks", Kind::value, {"mask has 2 of bands, spans and grids", "exactly one"}, [](Calls& c) { c.plan->mask.grids.resize(1); }},
      {"head_class too short", Kind::shape, {"mask.head_class has 3 entries", "none or 4"}, [](Calls& c) { c.plan->mask.head_class = {0, 0, 0}; }},
      {"head_class beyond the bands", Kind::value, {"names class 1", "the mask has 1"}, [](Calls& c) { c.plan->mask.head_class = {0, 1, 0, 0}; }},
      {"spans for other queries",
       Kind::shape,
       {"mask.spans has shape [1, 1, 24, 4]", "20, 4]"},
       [view](Calls& c) {
         c.plan->mask.bands.clear();
         c.plan->mask.spans = view(c, Dtype::i32, {1, 1, 24, 4});
       }},
      {"order with too few slots",
       Kind::shape,
       {"order_k.token has 23 slots", "24 tokens"},
       [view](Calls& c) { c.plan->order_k.token = view(c, Dtype::i32, {1, 1, 23}); }},
      {"order as i64",
       Kind::dtype,
       {"order_q.token is i64", "takes i32"},
       [view](Calls& c) { c.plan->order_q.token = view(c, Dtype::i64, {1, 1, 20}); }},
      {"pool of 0", Kind::value, {"group of 0", "1 or more"}, [](Calls& c) { c.plan->pools = {0}; }},
      {"pools and an order per query head",
       Kind::shape,
       {"order_k.token has 4 head groups", "divisor of 2"},
       [view](Calls& c) {
         c.plan->pools = {4};
         c.plan->order_k.token = view(c, Dtype::i32, {1, 4, 24});
       }},
  };
}

TEST(AttendBadCalls, Forward) {
  const auto call = [](Calls& c) { attend_forward(c.forward, c.context); };
  expect_refused(operand_cases([](Calls& c) -> AttendParams& { return c.forward; }), "attend_forward", call);
  expect_refused(plan_cases(), "attend_forward", call);
  expect_refused(
      {
          {"nothing to write",
           Kind::value,
           {"out and lse are both absent", "nothing to write"},
           [](Calls& c) { c.forward.out = c.forward.v = c.forward.lse = {}; }},
          {"out with a broadcast axis",
           Kind::shape,
           {"out is written", "axis 1 of size 4 has stride 0"},
           [](Calls& c) { c.forward.out = broadcast(c.forward.out, 1); }},
          {"lse with a broadcast axis",
           Kind::shape,
           {"lse is written", "axis 0 of size 2 has stride 0"},
           [](Calls& c) { c.forward.lse = broadcast(c.forward.lse, 0); }},
          {"out over v",
           Kind::value,
           {"out is written and starts where v starts"},
           [](Calls& c) { c.forward.out = TensorView(c.forward.v.raw(), Dtype::f32, {2, 4, 20, 8}); }},
          {"lse over out",
           Kind::value,
           {"out is written and starts where lse starts"},
           [](Calls& c) { c.forward.lse = TensorView(c.forward.out.raw(), Dtype::f32, {2, 4, 20}); }},
          {"a context on a GPU", Kind::device, {"q is on cpu", "runs on cuda:0"}, [](Calls& c) { c.context.device = {Device::Type::cuda, 0}; }},
      },
      "attend_forward", call);
}

// The reference reads every entry of a plan before it runs; the others trust what validate() let through.
TEST(AttendBadCalls, EntriesOfAPlan) {
  const auto start = [](Calls& c) { return c.plan->by_query.masked.start.data<int32_t>(); };
  const auto stop = [](Calls& c) { return c.plan->by_query.masked.stop.data<int32_t>(); };
  const std::vector<Bad> cases = {
      {"a run before the first key", Kind::value, {"plan: "}, [start](Calls& c) { start(c)[0] = -1; }},
      {"a run beyond the last key", Kind::value, {"plan: "}, [stop](Calls& c) { stop(c)[0] = 25; }},
      {"a reversed run", Kind::value, {"plan: "}, [start, stop](Calls& c) { stop(c)[0] = start(c)[0] - 1; }},
      {"a run twice",
       Kind::value,
       {"plan: "},
       [](Calls& c) {
         for (const RunList* list : {&c.plan->by_query.whole, &c.plan->by_query.masked, &c.plan->by_query.picked}) {
           for (int64_t row = 0; row < list->count.numel(); ++row) {
             if (list->count.data<int32_t>()[row] < 2) continue;
             const int64_t first = list->begin.data<int64_t>()[row];
             list->start.data<int32_t>()[first + 1] = list->start.data<int32_t>()[first];
             if (list->stop.has_value()) list->stop.data<int32_t>()[first + 1] = list->stop.data<int32_t>()[first];
             return;
           }
         }
         FAIL() << "no row has two runs";
       }},
      {"begin beyond the runs", Kind::value, {"plan: "}, [](Calls& c) { c.plan->by_query.masked.begin.data<int64_t>()[1] = 1000; }},
      {"a negative count", Kind::value, {"plan: "}, [](Calls& c) { c.plan->by_query.masked.count.data<int32_t>()[0] = -1; }},
      {"a token twice in an order", Kind::value, {"plan: "}, [](Calls& c) { c.plan->order_k.token = c.other(Dtype::i32, {1, 1, 24}); }},
  };
  expect_refused(cases, "attend_forward", [](Calls& c) { reference::forward(c.forward, c.context); });
  expect_refused(cases, "attend_backward", [](Calls& c) { reference::backward(c.backward, c.context); });
  expect_refused(cases, "measure", [](Calls& c) { reference::measure(c.measuring, c.context); });
}

TEST(AttendBadCalls, Backward) {
  const auto call = [](Calls& c) { attend_backward(c.backward, c.context); };
  expect_refused(operand_cases([](Calls& c) -> AttendParams& { return c.backward.forward; }), "attend_backward", call);
  expect_refused(
      {
          {"lse absent", Kind::value, {"lse is absent", "as attend_forward wrote it"}, [](Calls& c) { c.backward.forward.lse = {}; }},
          {"v and out absent", Kind::value, {"v is absent"}, [](Calls& c) { c.backward.forward.v = c.backward.forward.out = {}; }},
          {"dout absent", Kind::value, {"dout is absent"}, [](Calls& c) { c.backward.dout = {}; }},
          {"dout of the shape of q",
           Kind::shape,
           {"dout has shape [2, 4, 20, 16]", "takes [2, 4, 20, 8]"},
           [](Calls& c) { c.backward.dout = c.other(Dtype::f32, {2, 4, 20, 16}); }},
          {"dout in another dtype",
           Kind::dtype,
           {"dout is bf16", "takes f32"},
           [](Calls& c) { c.backward.dout = c.other(Dtype::bf16, {2, 4, 20, 8}); }},
          {"dlse of another shape",
           Kind::shape,
           {"dlse has shape [2, 4, 21]", "takes [2, 4, 20]"},
           [](Calls& c) { c.backward.dlse = c.other(Dtype::f32, {2, 4, 21}); }},
          {"dlse in f64", Kind::dtype, {"dlse is f64", "takes f32"}, [](Calls& c) { c.backward.dlse = c.other(Dtype::f64, {2, 4, 20}); }},
          {"dq absent", Kind::value, {"dq is absent"}, [](Calls& c) { c.backward.dq = {}; }},
          {"dk of the heads of q",
           Kind::shape,
           {"dk has shape [2, 4, 24, 16]", "takes [2, 2, 24, 16]"},
           [](Calls& c) { c.backward.dk = c.other(Dtype::f32, {2, 4, 24, 16}); }},
          {"dv in f64", Kind::dtype, {"dv is f64", "takes f32"}, [](Calls& c) { c.backward.dv = c.other(Dtype::f64, {2, 2, 24, 8}); }},
          {"dq with a stride in D", Kind::shape, {"dq has stride 2", "takes 1"}, [](Calls& c) { c.backward.dq = c.spread(c.backward.dq); }},
          {"dk with a broadcast axis", Kind::shape, {"dk is written", "stride 0"}, [](Calls& c) { c.backward.dk = broadcast(c.backward.dk, 1); }},
          {"dq over q",
           Kind::value,
           {"dq is written and starts where q starts"},
           [](Calls& c) { c.backward.dq = TensorView(c.backward.forward.q.raw(), Dtype::f32, {2, 4, 20, 16}); }},
          {"dq over dk, though q is not k",
           Kind::value,
           {"dq and dk start at one address"},
           [](Calls& c) { c.backward.dk = TensorView(c.backward.dq.raw(), Dtype::f32, {2, 2, 24, 16}); }},
          {"dsink_logit without sink_logit",
           Kind::value,
           {"dsink_logit is given without sink_logit"},
           [](Calls& c) { c.backward.forward.sink_logit = {}; }},
          {"dsink_logit of another shape",
           Kind::shape,
           {"dsink_logit has shape [2, 2]", "takes [4]"},
           [](Calls& c) { c.backward.dsink_logit = c.other(Dtype::f32, {2, 2}); }},
          {"dsink_logit over dq",
           Kind::value,
           {"dsink_logit"},
           [](Calls& c) { c.backward.dsink_logit = TensorView(c.backward.dq.raw(), Dtype::f32, {4}); }},
      },
      "attend_backward", call);
}

TEST(AttendBadCalls, Measure) {
  const auto call = [](Calls& c) { measure(c.measuring, c.context); };
  expect_refused(
      {
          {"q absent", Kind::value, {"q is absent"}, [](Calls& c) { c.measuring.q = {}; }},
          {"heads that do not divide",
           Kind::shape,
           {"must divide", "k has 3"},
           [](Calls& c) { c.measuring.k = c.other(Dtype::f32, {2, 3, 24, 16}); }},
          {"no plan", Kind::value, {"plan is null"}, [](Calls& c) { c.measuring.plan = nullptr; }},
          {"a plan for other lengths", Kind::shape, {"plan is made for 20 queries and 99 keys"}, [](Calls& c) { c.plan->seqlen_k = 99; }},
          {"lse of another shape",
           Kind::shape,
           {"lse has shape [2, 4]", "takes [2, 4, 20]"},
           [](Calls& c) { c.measuring.lse = c.other(Dtype::f32, {2, 4}); }},
          {"key_bias over queries",
           Kind::shape,
           {"key_bias has shape [2, 4, 20]", "takes [2, 4, 24]"},
           [](Calls& c) { c.measuring.key_bias = c.other(Dtype::f32, {2, 4, 20}); }},
          {"key_bias in bf16",
           Kind::dtype,
           {"key_bias is bf16", "takes f32"},
           [](Calls& c) { c.measuring.key_bias = c.other(Dtype::bf16, {2, 4, 24}); }},
          {"tile_q that does not divide", Kind::value, {"tile_q is 12", "plan's tile 16"}, [](Calls& c) { c.measuring.tile_q = 12; }},
          {"tile_q negative", Kind::value, {"tile_q is -16", "plan's tile 16"}, [](Calls& c) { c.measuring.tile_q = -16; }},
          {"tile_k negative", Kind::value, {"tile_k is -1", "1 or more"}, [](Calls& c) { c.measuring.tile_k = -1; }},
          {"nothing to write",
           Kind::value,
           {"sum, max and count are all absent", "[2, 4, 2, 3] f32"},
           [](Calls& c) { c.measuring.sum = c.measuring.max = c.measuring.count = {}; }},
          {"sum for another tile", Kind::shape, {"sum has shape [2, 4, 2, 3]", "takes [2, 4, 2, 2]"}, [](Calls& c) { c.measuring.tile_k = 16; }},
          {"count as i32", Kind::dtype, {"count is i32", "takes f32"}, [](Calls& c) { c.measuring.count = c.other(Dtype::i32, {2, 4, 2, 3}); }},
          {"max over sum", Kind::value, {"starts where"}, [](Calls& c) { c.measuring.max = c.measuring.sum; }},
          {"max with a broadcast axis",
           Kind::shape,
           {"max is written", "stride 0"},
           [](Calls& c) { c.measuring.max = broadcast(c.measuring.max, 0); }},
          {"over something else", Kind::value, {"over is 77", "MeasureOver"}, [](Calls& c) { c.measuring.over = static_cast<MeasureOver>(77); }},
          {"softmax_scale NaN", Kind::value, {"softmax_scale is nan"}, [](Calls& c) { c.measuring.softmax_scale = kNaN; }},
          {"softcap negative", Kind::value, {"softcap is -1"}, [](Calls& c) { c.measuring.softcap = -1; }},
          {"keys of pools",
           Kind::unsupported,
           {"over key or offset", "pooled keys"},
           [](Calls& c) {
             c.plan->pools = {4};
             c.measuring.over = MeasureOver::key;
             c.measuring.key_bias = {};
           }},
          {"bias of pools", Kind::unsupported, {"key_bias", "pooled keys"}, [](Calls& c) { c.plan->pools = {4}; }},
          {"runs of a plan by_key",
           Kind::unsupported,
           {"query_run", "complete()"},
           [](Calls& c) {
             std::swap(c.plan->by_query, c.plan->by_key);
             c.plan->by_key.tile = 24;
             c.plan->by_query.tile = 16;
             c.plan->by_key = {};
             c.plan->by_key.whole = {
                 .begin = c.other(Dtype::i64, {1, 1, 1}), .count = c.other(Dtype::i32, {1, 1, 1}), .start = c.other(Dtype::i32, {1})};
             c.measuring.over = MeasureOver::query_run;
           }},
      },
      "measure", call);
}

TEST(AttendBadCalls, Merge) {
  const auto call = [](Calls& c) { attend_merge(c.merge, c.context); };
  expect_refused(
      {
          {"no part", Kind::value, {"lses is empty"}, [](Calls& c) { c.merge.lses.clear(); }},
          {"an out too few", Kind::shape, {"outs has 1 parts, lses has 2"}, [](Calls& c) { c.merge.outs.pop_back(); }},
          {"out without outs", Kind::value, {"given without outs"}, [](Calls& c) { c.merge.outs.clear(); }},
          {"nothing to write",
           Kind::value,
           {"out and lse are both absent"},
           [](Calls& c) {
             c.merge.outs.clear();
             c.merge.out = c.merge.lse = {};
           }},
          {"parts of different shapes",
           Kind::shape,
           {"lses[1] has shape [2, 4, 21]", "takes [2, 4, 20]"},
           [](Calls& c) { c.merge.lses[1] = c.other(Dtype::f32, {2, 4, 21}); }},
          {"lse in f64", Kind::dtype, {"lses[0] is f64", "takes f32"}, [](Calls& c) { c.merge.lses[0] = c.other(Dtype::f64, {2, 4, 20}); }},
          {"outs in two dtypes",
           Kind::dtype,
           {"outs[1] is bf16", "takes f32"},
           [](Calls& c) { c.merge.outs[1] = c.other(Dtype::bf16, {2, 4, 20, 8}); }},
          {"sink_logit of other heads",
           Kind::shape,
           {"sink_logit has shape [2]", "takes [4]"},
           [](Calls& c) { c.merge.sink_logit = c.other(Dtype::f32, {2}); }},
          {"a context on a GPU", Kind::unsupported, {"CPU alone", "cuda:0"}, [](Calls& c) { c.context.device = {Device::Type::cuda, 0}; }},
      },
      "attend_merge", call);
}

}  // namespace
}  // namespace tilewise::attend::testing
