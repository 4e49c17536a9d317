// SPDX-License-Identifier: Apache-2.0
// Bad calls of operators on tensors: pool, quantise, decode, and one or two of each entry of attend whose many others are in tests/attend/bad_calls_test.cpp.
#include <cmath>

#include "tests/robustness/bad_call.h"
#include "tilewise/tilewise.h"

namespace tilewise::testing {
namespace {

using Kind = Error::Kind;

TensorView on_gpu(const TensorView& view) { return TensorView(view.raw(), view.dtype(), view.shape(), {Device::Type::cuda, 0}); }
TensorView every_other(const TensorView& view, const Shape& shape) {
  std::array<int64_t, Shape::kMaxRank> strides{};
  int64_t step = 2;
  for (int axis = shape.rank - 1; axis >= 0; --axis) {
    strides[static_cast<size_t>(axis)] = step;
    step *= shape[axis];
  }
  return TensorView(view.raw(), view.dtype(), shape, strides);
}

std::vector<BadCall> of_pool() {
  static Context context;
  static const Tensor x = zeros(Dtype::bf16, {2, 4, 20, 16}), means = zeros(Dtype::f32, {2, 4, 5, 16}), four = zeros(Dtype::f32, {2, 4, 4, 16});
  static const Tensor half = zeros(Dtype::f16, {2, 4, 5, 16}), token = zeros(Dtype::i32, {1, 2, 20}), i = zeros(Dtype::i32, {2, 4, 20, 16});
  static const std::vector<int32_t> from_one{1, 20}, falls{0, 12, 8, 20}, ends_early{0, 10};
  const auto wrong = [](const PoolParams& p) { return [p] { pool(p, context); }; };
  const auto wrong_back = [](const PoolBackwardParams& p) { return [p] { pool_backward(p, context); }; };
  const Order short_order{.token = token.view.slice(2, 0, 19), .boxes = {}}, of_i64{.token = on_gpu(four.view), .boxes = {}};
  const auto params = [](const TensorView& in, const TensorView& out, int tile = 4, std::span<const int32_t> edge = {}, Order order = {}) {
    return PoolParams{.x = in, .out = out, .tile = tile, .edge = edge, .order = std::move(order)};
  };
  return {
      {"pool: no x", Kind::shape, {"pool: x has shape []"}, wrong(params({}, means.view))},
      {"pool: rank of x", Kind::shape, {"pool: x has shape [1, 2, 20]"}, wrong(params(token.view, means.view))},
      {"pool: no out", Kind::shape, {"pool: out has shape []"}, wrong(params(x.view, {}))},
      {"pool: shape of out", Kind::shape, {"out has shape [2, 4, 4, 16]", "5"}, wrong(params(x.view, four.view))},
      {"pool: dtype of x", Kind::dtype, {"x is i32"}, wrong(params(i.view, means.view))},
      {"pool: dtype of out", Kind::dtype, {"out is f16"}, wrong(params(x.view, half.view))},
      {"pool: tile 0", Kind::value, {"tile is 0"}, wrong(params(x.view, means.view, 0))},
      {"pool: tile below 0", Kind::value, {"tile is -4"}, wrong(params(x.view, means.view, -4))},
      {"pool: edge from 1", Kind::value, {"edges", "from 1"}, wrong(params(x.view, means.view, 4, from_one))},
      {"pool: edge that falls", Kind::value, {"edges must rise"}, wrong(params(x.view, means.view, 4, falls))},
      {"pool: edge that ends early", Kind::value, {"edges", "to 10"}, wrong(params(x.view, means.view, 4, ends_early))},
      {"pool: order of other slots", Kind::shape, {"order's token", "19"}, wrong(params(x.view, means.view, 4, {}, short_order))},
      {"pool: order of another dtype", Kind::shape, {"order's token is f32"}, wrong(params(x.view, means.view, 4, {}, of_i64))},
      {"pool: stride", Kind::shape, {"last axis of x has stride 2"}, wrong(params(every_other(x.view, {1, 4, 20, 16}), means.view.slice(0, 0, 1)))},
      {"pool: device", Kind::device, {"x is on"}, wrong(params(on_gpu(x.view), means.view))},
      {"pool: no memory", Kind::value, {"out has a null pointer"}, wrong(params(x.view, TensorView(nullptr, Dtype::f32, {2, 4, 5, 16})))},
      {"pool_backward: shape of dout",
       Kind::shape,
       {"pool_backward: dout has shape [2, 4, 4, 16]"},
       wrong_back({.dout = four.view, .dx = x.view, .tile = 4})},
      {"pool_backward: no dx", Kind::shape, {"pool_backward: dx has shape []"}, wrong_back({.dout = means.view, .dx = {}, .tile = 4})},
      {"pool_backward: dtype of dout", Kind::dtype, {"dout is f16", "bf16"}, wrong_back({.dout = half.view, .dx = x.view, .tile = 4})},
      {"pool_backward: tile", Kind::value, {"pool_backward", "tile is 0"}, wrong_back({.dout = means.view, .dx = x.view, .tile = 0})},
      {"pool_backward: edge", Kind::value, {"pool_backward", "edges"}, wrong_back({.dout = means.view, .dx = x.view, .tile = 4, .edge = falls})},
  };
}

std::vector<BadCall> of_quantise() {
  static Context context;
  static const Tensor x = zeros(Dtype::f32, {2, 3, 20, 16}), i = zeros(Dtype::i32, {2, 3, 20, 16}), longer = zeros(Dtype::f32, {2, 3, 21, 16});
  static const Tensor codes = zeros(Dtype::i8, {2, 3, 20, 16}), fours = zeros(Dtype::u8, {2, 3, 20, 8}), scale = zeros(Dtype::f32, {2, 3, 5, 1});
  static const Tensor few = zeros(Dtype::f32, {2, 3, 4, 1}), one = zeros(Dtype::f32, {1, 1, 5, 1}), halves = zeros(Dtype::f16, {2, 3, 5, 1});
  const Quantised good{.data = codes.view, .scale = scale.view, .zero = {}, .group = {4, 0}};
  const auto spoiled = [good](const std::function<void(Quantised&)>& spoil) {
    Quantised q = good;
    spoil(q);
    return q;
  };
  const auto to = [](const Quantised& q) { return [q] { quantise({.x = x.view, .out = q}, context); }; };
  const auto from = [](const Quantised& q) { return [q] { dequantise(q, x.view, context); }; };
  const auto back = [good](const TensorView& in, const TensorView& dout, const TensorView& dx) {
    return [=] { quantise_backward({.x = in, .quantised = good, .dout = dout, .dx = dx}, context); };
  };
  return {
      {"quantise: no x", Kind::shape, {"quantise: x has shape []"}, [=] { quantise({.x = {}, .out = good}, context); }},
      {"quantise: dtype of x", Kind::dtype, {"x is i32"}, [=] { quantise({.x = i.view, .out = good}, context); }},
      {"quantise: device", Kind::device, {"x is on"}, [=] { quantise({.x = on_gpu(x.view), .out = good}, context); }},
      {"quantise: no memory",
       Kind::value,
       {"x", "null pointer"},
       [=] { quantise({.x = TensorView(nullptr, Dtype::f32, {2, 3, 20, 16}), .out = good}, context); }},
      {"quantise: no data", Kind::shape, {"data has shape []"}, to(spoiled([](Quantised& q) { q.data = {}; }))},
      {"quantise: data of another length", Kind::shape, {"data has shape [2, 3, 19, 16]"}, to(spoiled([](Quantised& q) {
         q.data = codes.view.slice(2, 0, 19);
       }))},
      {"quantise: dtype of data", Kind::dtype, {"data is f32"}, to(spoiled([](Quantised& q) { q.data = x.view; }))},
      {"quantise: INT4 of the same size", Kind::shape, {"half as many bytes"}, to(spoiled([](Quantised& q) {
         q.data = TensorView(codes.view.raw(), Dtype::u8, {2, 3, 20, 16});
       }))},
      {"quantise: no scale", Kind::shape, {"scale has shape []"}, to(spoiled([](Quantised& q) { q.scale = {}; }))},
      {"quantise: groups of scale", Kind::shape, {"scale has shape [2, 3, 4, 1]", "groups of 4 tokens"}, to(spoiled([](Quantised& q) {
         q.scale = few.view;
       }))},
      {"quantise: one scale for all is not written", Kind::shape, {"scale has shape [1, 1, 5, 1]"}, to(spoiled([](Quantised& q) {
         q.scale = one.view;
       }))},
      {"quantise: dtype of scale", Kind::dtype, {"scale is f16"}, to(spoiled([](Quantised& q) { q.scale = halves.view; }))},
      {"quantise: groups of zero", Kind::shape, {"zero has shape [2, 3, 4, 1]"}, to(spoiled([](Quantised& q) { q.zero = few.view; }))},
      {"quantise: group", Kind::value, {"group is -1 tokens"}, to(spoiled([](Quantised& q) { q.group.tokens = -1; }))},
      {"quantise: channels", Kind::value, {"-2 channels"}, to(spoiled([](Quantised& q) { q.group.channels = -2; }))},
      {"dequantise: no out", Kind::shape, {"dequantise: out has shape []"}, [=] { dequantise(good, {}, context); }},
      {"dequantise: dtype of out", Kind::dtype, {"out is i32"}, [=] { dequantise(good, i.view, context); }},
      {"dequantise: length of out",
       Kind::shape,
       {"data has shape [2, 3, 20, 16]", "[2, 3, 21, 16]"},
       [=] { dequantise(good, longer.view, context); }},
      {"dequantise: scale", Kind::shape, {"dequantise", "scale"}, from(spoiled([](Quantised& q) { q.scale = few.view; }))},
      {"dequantise: INT4 of another D", Kind::shape, {"dequantise", "data"}, from(spoiled([](Quantised& q) { q.data = fours.view.slice(3, 0, 4); }))},
      {"quantise_backward: x", Kind::shape, {"quantise_backward: x"}, back({}, x.view, x.view)},
      {"quantise_backward: dout", Kind::shape, {"dout has shape [2, 3, 21, 16]"}, back(x.view, longer.view, x.view)},
      {"quantise_backward: dx", Kind::shape, {"dx has shape [2, 3, 21, 16]"}, back(x.view, x.view, longer.view)},
      {"quantise_backward: dtype of dx", Kind::dtype, {"dx is i32"}, back(x.view, x.view, i.view)},
      {"quantise_backward: device", Kind::device, {"dout is on"}, back(x.view, on_gpu(x.view), x.view)},
  };
}

/// Two sequences of 5 and 9 tokens in pages of 4, two K/V heads; spoiled, then decoded.
void decode_with(const std::function<void(DecodeParams&)>& spoil) {
  static const Tensor q = zeros(Dtype::f32, {2, 4, 1, 16}), pool = zeros(Dtype::f32, {20, 1, 4, 16}), table = zeros(Dtype::i32, {2, 2, 3});
  static const Tensor out = zeros(Dtype::f32, {2, 4, 1, 16}), lse = zeros(Dtype::f32, {2, 4, 1}), lengths = zeros(Dtype::i32, {2});
  lengths.view.at<int32_t>(0) = 5;
  lengths.view.at<int32_t>(1) = 9;
  table.fill_zero();
  const Paged pages{.pool = pool.view, .table = table.view, .statistics = {}};
  DecodeParams params{
      .q = q.view, .k = pages, .v = pages, .out = out.view, .lse = lse.view, .lengths = lengths.view, .dense_band = Mask::Band{Mask::kAll, 0, 0}};
  Context context;
  spoil(params);
  attend_decode(params, context);
}

std::vector<BadCall> of_decode() {
  static const Tensor i = zeros(Dtype::i32, {2, 4, 1, 16}), nine = zeros(Dtype::f32, {2, 4, 9, 16}), three = zeros(Dtype::f32, {2, 3, 1, 16}),
                      halves = zeros(Dtype::bf16, {2, 2, 12, 16});
  static const Tensor narrow = zeros(Dtype::f32, {2, 2, 12, 8}), codes = zeros(Dtype::i8, {2, 2, 12, 16}), scale = zeros(Dtype::f32, {2, 2, 3, 1}),
                      three_b = zeros(Dtype::f32, {3, 2, 12, 16});
  const auto bad = [](const char* what, Kind kind, std::vector<std::string> says, const std::function<void(DecodeParams&)>& spoil) {
    says.insert(says.begin(), "attend_decode");
    return BadCall{std::string("attend_decode: ") + what, kind, std::move(says), [spoil] { decode_with(spoil); }};
  };
  const auto k_table = [](DecodeParams& p) -> TensorView& { return std::get<Paged>(p.k).table; };
  return {
      bad("no q", Kind::value, {"q is absent"}, [](DecodeParams& p) { p.q = {}; }),
      bad("dtype of q", Kind::dtype, {"q is i32"}, [](DecodeParams& p) { p.q = i.view; }),
      bad("more than 8 new tokens", Kind::unsupported, {"q has 9 new tokens"}, [](DecodeParams& p) { p.q = nine.view; }),
      bad("heads of q", Kind::shape, {"q has 3", "k has 2"}, [](DecodeParams& p) { p.q = three.view; }),
      bad("head_dim of k", Kind::shape, {"head_dim", "8"}, [](DecodeParams& p) { p.k = narrow.view; }),
      bad("batch of k", Kind::shape, {"batch", "[3, 2, 12, 16]"}, [](DecodeParams& p) { p.k = three_b.view; }),
      bad("dtype of k", Kind::dtype, {"k is bf16"}, [](DecodeParams& p) { p.k = halves.view; }),
      bad("dtype of table", Kind::dtype, {"k.table is f32"}, [=](DecodeParams& p) { k_table(p) = TensorView(p.lse.raw(), Dtype::f32, {2, 2, 1}); }),
      bad("batch of table", Kind::shape, {"k.table has shape [1, 2, 3]"}, [=](DecodeParams& p) { k_table(p) = k_table(p).slice(0, 0, 1); }),
      bad("no table", Kind::value, {"k.table is absent"}, [=](DecodeParams& p) { k_table(p) = {}; }),
      bad("a page that is not stored", Kind::value, {"page"}, [=](DecodeParams& p) { k_table(p).at<int32_t>(1, 0, 2) = -1; }),
      bad("a page past the pool", Kind::value, {"page", "20"}, [=](DecodeParams& p) { k_table(p).at<int32_t>(1, 1, 1) = 20; }),
      bad("scale of codes", Kind::shape, {"v.scale"},
          [](DecodeParams& p) { p.v = Quantised{.data = codes.view, .scale = scale.view, .zero = {}, .group = {2, 0}}; }),
      bad("codes without a scale", Kind::value, {"v.scale is absent"},
          [](DecodeParams& p) { p.v = Quantised{.data = codes.view, .scale = {}, .zero = {}, .group = {4, 0}}; }),
      bad("v without out", Kind::value, {"v is given without out"}, [](DecodeParams& p) { p.out = {}; }),
      bad("nothing to write", Kind::value, {"out and lse"}, [](DecodeParams& p) { p.out = {}, p.lse = {}, p.v = TensorView(); }),
      bad("shape of lse", Kind::shape, {"lse has shape"}, [](DecodeParams& p) { p.lse = p.lse.slice(1, 0, 3); }),
      bad("dtype of lengths", Kind::dtype, {"lengths is f32"}, [](DecodeParams& p) { p.lengths = TensorView(p.lse.raw(), Dtype::f32, {2}); }),
      bad("shape of lengths", Kind::shape, {"lengths has shape [1]"}, [](DecodeParams& p) { p.lengths = p.lengths.slice(0, 0, 1); }),
      bad("a length below 0", Kind::value, {"lengths[0] is -1"}, [](DecodeParams& p) { p.lengths.at<int32_t>(0) = -1; }),
      bad("a length beyond capacity", Kind::value, {"lengths[1] is 13", "12"}, [](DecodeParams& p) { p.lengths.at<int32_t>(1) = 13; }),
      bad("a length beyond the plan", Kind::value, {"lengths[1] is 9", "8 keys"},
          [](DecodeParams& p) {
            p.dense_band = {};
            p.plan = dense_plan({.seqlen_q = 1, .seqlen_k = 8, .tile = 16, .batch = 2, .heads_q = 4});
          }),
      bad("plan for more queries", Kind::shape, {"plan"},
          [](DecodeParams& p) {
            p.dense_band = {};
            p.plan = dense_plan({.seqlen_q = 2, .seqlen_k = 12, .tile = 16, .batch = 2, .heads_q = 4});
          }),
      bad("neither plan nor band", Kind::value, {"plan", "dense_band"}, [](DecodeParams& p) { p.dense_band = {}; }),
      bad("plan and band", Kind::value, {"plan", "dense_band"},
          [](DecodeParams& p) { p.plan = dense_plan({.seqlen_q = 1, .seqlen_k = 12, .tile = 16, .batch = 2, .heads_q = 4}); }),
      bad("a band too wide", Kind::value, {"dense_band reaches"}, [](DecodeParams& p) { p.dense_band->left = int64_t{1} << 41; }),
      bad("sink of the band", Kind::value, {"dense_band.sink is -1"}, [](DecodeParams& p) { p.dense_band->sink = -1; }),
      bad("scale NaN", Kind::value, {"softmax_scale is nan"}, [](DecodeParams& p) { p.softmax_scale = NAN; }),
      bad("scale 0", Kind::value, {"softmax_scale is 0"}, [](DecodeParams& p) { p.softmax_scale = 0.0f; }),
      bad("softcap below 0", Kind::value, {"softcap is -1"}, [](DecodeParams& p) { p.softcap = -1; }),
      bad("softcap infinite", Kind::value, {"softcap is inf"}, [](DecodeParams& p) { p.softcap = INFINITY; }),
      bad("device of q", Kind::device, {"q is on"}, [](DecodeParams& p) { p.q = on_gpu(p.q); }),
      bad("sink_logit", Kind::shape, {"sink_logit"}, [](DecodeParams& p) { p.sink_logit = narrow.view; }),
  };
}

std::vector<BadCall> of_attend() {
  static Context context;
  static const Tensor f = zeros(Dtype::f32, {1, 2, 10, 8}), lse = zeros(Dtype::f32, {1, 2, 10}), out = zeros(Dtype::f32, {1, 2, 10, 8}),
                      sum = zeros(Dtype::f32, {1, 2, 10});
  static const Plan plan = dense_plan({.seqlen_q = 10, .seqlen_k = 10, .tile = 16, .heads_q = 2}),
                    other = dense_plan({.seqlen_q = 11, .seqlen_k = 10, .tile = 16, .heads_q = 2});
  const AttendParams forward{.q = f.view, .k = f.view, .v = f.view, .out = out.view, .lse = lse.view, .plan = plan};
  AttendParams of_other = forward;
  of_other.plan = other;
  AttendParams with_schedule = forward;
  with_schedule.schedule = attend_prepare(other, 2, context);
  const auto backward = [](const AttendParams& p, const TensorView& dq) {
    return [=] { attend_backward({.forward = p, .dout = out.view, .dlse = {}, .dq = dq, .dk = f.view, .dv = f.view, .dsink_logit = {}}, context); };
  };
  return {
      {"attend_forward: plan of other lengths", Kind::shape, {"attend_forward", "plan"}, [=] { attend_forward(of_other, context); }},
      {"attend_backward: plan of other lengths", Kind::shape, {"attend_backward", "plan"}, backward(of_other, f.view)},
      {"attend_backward: no dq", Kind::value, {"attend_backward", "dq"}, backward(forward, {})},
      {"attend_backward: shape of dq", Kind::shape, {"attend_backward", "dq", "[1, 2, 10]"}, backward(forward, lse.view)},
      {"attend_backward: schedule of another plan", Kind::value, {"attend_backward", "schedule"}, backward(with_schedule, f.view)},
      {"measure: plan of other lengths",
       Kind::shape,
       {"measure", "plan"},
       [] { measure({.q = f.view, .k = f.view, .plan = other, .over = MeasureOver::query, .sum = sum.view}, context); }},
      {"measure: in_slots of other lengths",
       Kind::shape,
       {"measure", "in_slots", "11 query slots"},
       [] { measure({.q = f.view, .k = f.view, .plan = other, .in_slots = true, .over = MeasureOver::query, .sum = sum.view}, context); }},
      {"measure: tile_k",
       Kind::value,
       {"measure", "tile_k", "-1"},
       [] { measure({.q = f.view, .k = f.view, .plan = plan, .over = MeasureOver::tile, .tile_k = -1, .sum = sum.view}, context); }},
      {"attend_prepare: no plan", Kind::value, {"attend_prepare", "null"}, [] { attend_prepare({}, 2, context); }},
      {"attend_prepare: heads", Kind::value, {"attend_prepare", "heads_kv", "3"}, [] { attend_prepare(plan, 3, context); }},
      {"attend_prepare: no heads", Kind::value, {"attend_prepare", "heads_kv", "0"}, [] { attend_prepare(plan, 0, context); }},
      {"attend_merge: no part",
       Kind::value,
       {"attend_merge"},
       [] { attend_merge({.outs = {}, .lses = {}, .out = out.view, .lse = lse.view}, context); }},
      {"attend_merge: two outs and one lse",
       Kind::shape,
       {"attend_merge", "2", "1"},
       [] { attend_merge({.outs = {f.view, f.view}, .lses = {lse.view}, .out = out.view, .lse = lse.view}, context); }},
      {"cpu_context: threads", Kind::value, {"threads", "-1"}, [] { cpu_context(-1); }},
      {"cpu_context: threads above", Kind::value, {"threads", "1025"}, [] { cpu_context(1025); }},
      {"make_thread_pool: threads", Kind::value, {"make_thread_pool", "0"}, [] { make_thread_pool(0); }},
      {"make_thread_pool: threads above", Kind::value, {"make_thread_pool", "100000"}, [] { make_thread_pool(100000); }},
  };
}

}  // namespace

std::vector<BadCall> bad_operators() {
  std::vector<BadCall> all;
  for (const auto& calls : {of_pool(), of_quantise(), of_decode(), of_attend()}) all.insert(all.end(), calls.begin(), calls.end());
  return all;
}

}  // namespace tilewise::testing
