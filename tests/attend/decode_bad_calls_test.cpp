// SPDX-License-Identifier: Apache-2.0
// Bad calls of attend_decode, one wrong thing at a time: the error's kind, what its message names, and that nothing was written. Those that need no care about
// memory or plans are in tests/robustness/bad_operators.cpp.
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tests/attend/test_tensor.h"
#include "tilewise/attend/decode.h"
#include "tilewise/plan/make.h"
#include "tilewise/plan/pack.h"

namespace tilewise::attend::testing {
namespace {

using Kind = Error::Kind;

/// Two sequences of 5 and 9 tokens in a cache of 12, four heads on two, D 16: right in every way, with everything optional given.
struct Call {
  HostTensor q = zeros(Dtype::f32, {2, 4, 2, 16}), k = zeros(Dtype::f32, {2, 2, 12, 16}), v = zeros(Dtype::f32, {2, 2, 12, 16});
  HostTensor out = zeros(Dtype::f32, {2, 4, 2, 16}), lse = zeros(Dtype::f32, {2, 4, 2}), lengths = zeros(Dtype::i32, {2});
  HostTensor sink = zeros(Dtype::f32, {4}), pool = zeros(Dtype::f32, {20, 1, 4, 16}), table = zeros(Dtype::i32, {2, 2, 3});
  HostTensor codes = zeros(Dtype::i8, {2, 2, 12, 16}), scale = zeros(Dtype::f32, {2, 2, 3, 2});
  std::shared_ptr<PlanData> plan;  // free to be changed
  std::vector<HostTensor> kept;  // tensors that a case made
  DecodeParams params;
  Context context;

  Call() {
    lengths.view.at<int32_t>(0) = 5;
    lengths.view.at<int32_t>(1) = 9;
    const Plan dense = dense_plan({.seqlen_q = 2, .seqlen_k = 12, .tile = 16, .mask = Mask::causal(), .batch = 2, .heads_q = 4});
    plan = std::make_shared<PlanData>(plan::share(dense));
    params = {
        .q = q.view, .k = k.view, .v = v.view, .out = out.view, .lse = lse.view, .lengths = lengths.view, .plan = plan, .sink_logit = sink.view};
  }
  TensorView other(Dtype dtype, const Shape& shape) {
    kept.push_back(zeros(dtype, shape));
    return kept.back().view;
  }
  /// A list of one run for every row.
  RunList runs(int32_t start, int32_t stop) {
    RunList list;
    list.begin = other(Dtype::i64, {1, 1, 1});
    list.count = other(Dtype::i32, {1, 1, 1});
    list.start = other(Dtype::i32, {1});
    list.stop = other(Dtype::i32, {1});
    list.count.at<int32_t>(0, 0, 0) = 1;
    list.start.at<int32_t>(0) = start;
    list.stop.at<int32_t>(0) = stop;
    return list;
  }
  void only(RunList Lists::* list, int32_t start, int32_t stop) {
    plan->by_query = {};
    plan->by_query.tile = 16;
    plan->by_query.*list = runs(start, stop);
  }
  Quantised quantised() const { return {.data = codes.view, .scale = scale.view, .zero = {}, .group = {4, 8}}; }
  Paged paged() const {
    Paged pages;
    pages.pool = pool.view;
    pages.table = table.view;
    return pages;
  }
};

TensorView of_stride_0(const TensorView& view, int axis) {
  std::array<int64_t, Shape::kMaxRank> strides{};
  for (int a = 0; a < view.rank(); ++a) strides[static_cast<size_t>(a)] = a == axis ? 0 : view.stride(a);
  return TensorView(view.raw(), view.dtype(), view.shape(), strides);
}

TEST(AttendDecodeBadCalls, TheUnspoiledCallIsTaken) {
  Call call;
  attend_decode(call.params, call.context);
  call.params.k = call.paged();
  call.params.v = call.quantised();
  attend_decode(call.params, call.context);
  call.params.plan = {};
  call.params.dense_band = Mask::Band{.right = 0};
  attend_decode(call.params, call.context);
}

TEST(AttendDecodeBadCalls, EachIsRefusedAndNothingIsWritten) {
  struct Bad {
    const char* name;
    Kind kind;
    std::vector<std::string> says;
    std::function<void(Call&)> spoil;
  };
  const std::vector<Bad> calls{
      {"rank of q", Kind::shape, {"q has shape [2, 4, 2]", "4 axes"}, [](Call& c) { c.params.q = c.lse.view; }},
      {"no head of q", Kind::shape, {"q has 0 heads"}, [](Call& c) { c.params.q = c.other(Dtype::f32, {2, 0, 2, 16}); }},
      {"no new token", Kind::shape, {"q has 0 new tokens"}, [](Call& c) { c.params.q = c.other(Dtype::f32, {2, 4, 0, 16}); }},
      {"address of q",
       Kind::value,
       {"q lies at an address"},
       [](Call& c) { c.params.q = TensorView(static_cast<char*>(c.q.view.raw()) + 1, Dtype::f32, {2, 4, 2, 16}); }},
      {"rank of k", Kind::shape, {"k has shape [2]"}, [](Call& c) { c.params.k = TensorView(c.q.view.raw(), Dtype::f32, {2}); }},
      {"k without channels", Kind::shape, {"k has 0 channels"}, [](Call& c) { c.params.k = c.other(Dtype::f32, {2, 2, 12, 0}); }},
      {"k without a head", Kind::shape, {"k has no head"}, [](Call& c) { c.params.k = c.other(Dtype::f32, {2, 0, 12, 16}); }},
      {"k too long to count",
       Kind::shape,
       {"k has room for 2147483648 tokens"},
       [](Call& c) { c.params.k = TensorView(c.k.view.raw(), Dtype::f32, {2, 2, int64_t{1} << 31, 16}, {0, 0, 0, 1, 0}); }},
      {"heads of v", Kind::shape, {"v has 4 heads", "1 or 2"}, [](Call& c) { c.params.v = c.other(Dtype::f32, {2, 4, 12, 16}); }},
      {"out without v", Kind::value, {"out is given without v"}, [](Call& c) { c.params.v = TensorView(); }},
      {"shape of out", Kind::shape, {"out has shape [2, 4, 2, 8]"}, [](Call& c) { c.params.out = c.other(Dtype::f32, {2, 4, 2, 8}); }},
      {"dtype of out", Kind::dtype, {"out is bf16"}, [](Call& c) { c.params.out = c.other(Dtype::bf16, {2, 4, 2, 16}); }},
      {"out that is one place", Kind::shape, {"out is written", "stride 0"}, [](Call& c) { c.params.out = of_stride_0(c.out.view, 1); }},
      {"out is q", Kind::value, {"out is written and starts where q"}, [](Call& c) { c.params.out = c.q.view; }},
      {"out is k",
       Kind::value,
       {"out is written and starts where k"},
       [](Call& c) { c.params.out = TensorView(c.k.view.raw(), Dtype::f32, {2, 4, 2, 16}); }},
      {"out is v",
       Kind::value,
       {"out is written and starts where v"},
       [](Call& c) { c.params.out = TensorView(c.v.view.raw(), Dtype::f32, {2, 4, 2, 16}); }},
      {"dtype of lse", Kind::dtype, {"lse is f64"}, [](Call& c) { c.params.lse = c.other(Dtype::f64, {2, 4, 2}); }},
      {"lse that is one place", Kind::shape, {"lse is written", "stride 0"}, [](Call& c) { c.params.lse = of_stride_0(c.lse.view, 1); }},
      {"lse is q",
       Kind::value,
       {"lse is written and starts where q"},
       [](Call& c) { c.params.lse = TensorView(c.q.view.raw(), Dtype::f32, {2, 4, 2}); }},
      {"dtype of sink_logit", Kind::dtype, {"sink_logit is bf16"}, [](Call& c) { c.params.sink_logit = c.other(Dtype::bf16, {4}); }},
      {"stride of lengths",
       Kind::shape,
       {"lengths has stride 2"},
       [](Call& c) { c.params.lengths = TensorView(c.other(Dtype::i32, {4}).raw(), Dtype::i32, {2}, {2, 0, 0, 0, 0}); }},
      {"context on a GPU", Kind::device, {"cuda:0"}, [](Call& c) { c.context.device = {Device::Type::cuda, 0}; }},
      {"plan of more keys and no lengths",
       Kind::shape,
       {"plan is made for 12 keys", "hold 8"},
       [](Call& c) {
         c.params.lengths = {};
         c.params.k = c.other(Dtype::f32, {2, 2, 8, 16});
         c.params.v = c.other(Dtype::f32, {2, 2, 8, 16});
       }},
      {"plan with pools", Kind::unsupported, {"pools or orders"}, [](Call& c) { c.plan->pools = {4}; }},
      {"plan by key alone",
       Kind::unsupported,
       {"by_key alone", "complete()"},
       [](Call& c) {
         c.plan->by_key = c.plan->by_query;
         c.plan->by_query = {};
       }},
      {"plan of other heads", Kind::shape, {"plan"}, [](Call& c) { c.plan->heads_q = 8; }},
      {"run of no key", Kind::value, {"whole run [4, 4)"}, [](Call& c) { c.only(&Lists::whole, 4, 4); }},
      {"run before the first key", Kind::value, {"whole run [-1, 4)"}, [](Call& c) { c.only(&Lists::whole, -1, 4); }},
      {"whole run past the sequence", Kind::value, {"sequence 0", "whole run [2, 6)", "5 keys"}, [](Call& c) { c.only(&Lists::whole, 2, 6); }},
      {"picked key past the sequence", Kind::value, {"picked run [5, 6)"}, [](Call& c) { c.only(&Lists::picked, 5, 6); }},
      {"masked run past the plan", Kind::value, {"masked run [2, 13)", "plan has 12 keys"}, [](Call& c) { c.only(&Lists::masked, 2, 13); }},
      {"more runs than there are",
       Kind::value,
       {"has 3 runs from 0 on", "hold 1"},
       [](Call& c) {
         c.only(&Lists::whole, 0, 4);
         c.plan->by_query.whole.count.at<int32_t>(0, 0, 0) = 3;
       }},
      {"runs from before the first",
       Kind::value,
       {"runs from -1 on"},
       [](Call& c) {
         c.only(&Lists::whole, 0, 4);
         c.plan->by_query.whole.begin.at<int64_t>(0, 0, 0) = -1;
       }},
      {"a count below 0",
       Kind::value,
       {"has -2 runs"},
       [](Call& c) {
         c.only(&Lists::whole, 0, 4);
         c.plan->by_query.whole.count.at<int32_t>(0, 0, 0) = -2;
       }},
      {"codes that are floats",
       Kind::dtype,
       {"k.data is f32", "i8"},
       [](Call& c) {
         Quantised codes = c.quantised();
         codes.data = c.k.view;
         c.params.k = codes;
       }},
      {"a group below 0",
       Kind::value,
       {"k.group is -1 tokens"},
       [](Call& c) {
         Quantised codes = c.quantised();
         codes.group.tokens = -1;
         c.params.k = codes;
       }},
      {"dtype of a scale",
       Kind::dtype,
       {"k.scale is bf16"},
       [](Call& c) {
         Quantised codes = c.quantised();
         codes.scale = c.other(Dtype::bf16, {2, 2, 3, 2});
         c.params.k = codes;
       }},
      {"rank of a scale",
       Kind::shape,
       {"k.scale has shape [2]"},
       [](Call& c) {
         Quantised codes = c.quantised();
         codes.scale = c.other(Dtype::f32, {2});
         c.params.k = codes;
       }},
      {"shape of a zero",
       Kind::shape,
       {"v.zero has shape [2, 2, 3, 1]"},
       [](Call& c) {
         Quantised codes = c.quantised();
         codes.zero = c.other(Dtype::f32, {2, 2, 3, 1});
         c.params.v = codes;
       }},
      {"dtype of a pool",
       Kind::dtype,
       {"k.pool is bf16"},
       [](Call& c) {
         Paged pages = c.paged();
         pages.pool = c.other(Dtype::bf16, {20, 1, 4, 16});
         c.params.k = pages;
       }},
      {"pages of no token",
       Kind::shape,
       {"pages of 0 tokens"},
       [](Call& c) {
         Paged pages = c.paged();
         pages.pool = c.other(Dtype::f32, {20, 1, 0, 16});
         c.params.k = pages;
       }},
      {"rank of a table",
       Kind::shape,
       {"k.table has shape [2]"},
       [](Call& c) {
         Paged pages = c.paged();
         pages.table = c.lengths.view;
         c.params.k = pages;
       }},
      {"heads of a table",
       Kind::shape,
       {"k.table has 3 heads and the pool 2"},
       [](Call& c) {
         Paged pages = c.paged();
         pages.pool = c.other(Dtype::f32, {20, 2, 4, 16});
         pages.table = c.other(Dtype::i32, {2, 3, 3});
         c.params.k = pages;
       }},
      {"scale of 0", Kind::value, {"softmax_scale is 0"}, [](Call& c) { c.params.softmax_scale = 0.0f; }},
      {"a plan of spans",
       Kind::unsupported,
       {"no backend takes"},
       [](Call& c) {
         c.plan->mask.bands.clear();
         c.plan->mask.spans = c.other(Dtype::i32, {1, 1, 2, 4});
       }},
  };
  for (const Bad& bad : calls) {
    SCOPED_TRACE(bad.name);
    Call call;
    call.out.wipe();
    call.lse.wipe();
    bad.spoil(call);
    const auto out = call.out.bytes(), lse = call.lse.bytes();
    try {
      attend_decode(call.params, call.context);
      ADD_FAILURE() << "was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(name(error.kind()), name(bad.kind)) << error.what();
      const std::string_view text = error.what();
      EXPECT_TRUE(text.starts_with("attend_decode: ")) << text;
      for (const std::string& part : bad.says) EXPECT_NE(text.find(part), std::string_view::npos) << "\"" << part << "\" is not in: " << text;
    }
    EXPECT_TRUE(call.out.bytes() == out && call.lse.bytes() == lse) << "an output was written";
  }
}

}  // namespace
}  // namespace tilewise::attend::testing
