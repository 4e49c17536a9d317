// SPDX-License-Identifier: Apache-2.0
// Bad calls of public entries, one wrong thing each: the error's kind, and that its message names the function or file and what is wrong with which
// argument. 170 more of attend, which must leave their outputs alone, are in tests/attend/bad_calls_test.cpp, the program's in tests/app/bad_calls_test.cpp.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "tests/base/temporary_folder.h"
#include "tests/plan/plan_testing.h"
#include "tests/robustness/bad_call.h"
#include "tilewise/base/safetensors.h"
#include "tilewise/plan/pack.h"
#include "tilewise/tilewise.h"

namespace tilewise::testing {
namespace {

using Kind = Error::Kind;
using Bad = BadCall;

const Plan& good() {
  static const Plan plan = dense_plan({.seqlen_q = 100, .seqlen_k = 100, .tile = 32, .heads_q = 2});
  return plan;
}
std::shared_ptr<PlanData> changed(const std::function<void(PlanData&)>& change) {
  std::shared_ptr<PlanData> data = clone(good());
  change(*data);
  return data;
}

/// Every function that takes a plan refuses none.
std::vector<Bad> null_plans() {
  static Context context;
  static const TemporaryFolder folder;
  const Plan none;
  const std::vector<std::pair<const char*, std::function<void()>>> calls{{"validate", [=] { validate(none); }},
                                                                         {"validate", [=] { validate(none, Mask::causal()); }},
                                                                         {"complete", [=] { complete(none, context); }},
                                                                         {"retile", [=] { retile(none, context, 64); }},
                                                                         {"refine", [=] { refine(none, context, 64); }},
                                                                         {"coarsen", [=] { coarsen(none, context, 64); }},
                                                                         {"reads", [=] { reads(none); }},
                                                                         {"reads", [=] { reads(none, 0); }},
                                                                         {"allowed_pairs", [=] { allowed_pairs(none); }},
                                                                         {"allowed_pairs", [=] { allowed_pairs(none, 0); }},
                                                                         {"density", [=] { density(none); }},
                                                                         {"density", [=] { density(none, 0); }},
                                                                         {"dense_reads_of", [=] { dense_reads_of(none, 0); }},
                                                                         {"fill", [=] { fill(none); }},
                                                                         {"max_runs", [=] { max_runs(none); }},
                                                                         {"empty_rows", [=] { empty_rows(none); }},
                                                                         {"to_bits", [=] { to_bits(none); }},
                                                                         {"to_tiles", [=] { to_tiles(none, 16, 16); }},
                                                                         {"content_hash", [=] { content_hash(none); }},
                                                                         {"save_plan", [=] { save_plan(none, folder.file("plan")); }},
                                                                         {"unite", [=] { unite(none, good(), context); }},
                                                                         {"unite", [=] { unite(good(), none, context); }},
                                                                         {"intersect", [=] { intersect(none, none, context); }},
                                                                         {"combine_heads",
                                                                          [=] {
                                                                            const Plan plans[] = {good(), none};
                                                                            const int heads[] = {0, 0};
                                                                            combine_heads(plans, heads, context);
                                                                          }},
                                                                         {"bsr_of_plan", [=] { bsr_of_plan({.plan = none}, context); }}};
  std::vector<Bad> bad{{"find_fault: no plan", Kind::value, {"validate", "null"}, [=] { find_fault(none); }},
                       {"content_hash_text: no plan", Kind::value, {"content_hash", "null"}, [=] { content_hash_text(none); }}};
  for (const auto& [function, run] : calls)
    bad.push_back({std::string(function) + ": no plan (" + std::to_string(bad.size()) + ")", Kind::value, {function, "null"}, run});
  return bad;
}

std::vector<Bad> numbers_out_of_range() {
  static Context context;
  const auto dense = [](const DensePlanParams& params) { return [params] { dense_plan(params); }; };
  Mask too_wide = Mask::causal(), no_class = Mask::causal(), many_classes = Mask::causal(), sink = Mask::causal(), few_heads = Mask::causal();
  too_wide.bands[0].left = int64_t{1} << 41;
  sink.bands[0].sink = -1;
  no_class.head_class = {0, 3};
  few_heads.head_class = {0};
  many_classes.bands.assign(17, Mask::Band{});
  static Tensor spans = zeros(Dtype::i32, {1, 1, 100, 4});
  Mask of_spans;
  of_spans.spans = spans.view;
  Mask grid;
  grid.grids = {{{.length = 10, .window = 3}}};
  std::vector<Bad> bad{
      {"dense_plan: seqlen_q", Kind::value, {"dense_plan", "seqlen_q -1"}, dense({.seqlen_q = -1, .seqlen_k = 10})},
      {"dense_plan: seqlen_k", Kind::value, {"dense_plan", "seqlen_k"}, dense({.seqlen_q = 1, .seqlen_k = int64_t{1} << 31})},
      {"dense_plan: tile below", Kind::value, {"tile is 15"}, dense({.seqlen_q = 9, .seqlen_k = 9, .tile = 15})},
      {"dense_plan: tile above", Kind::value, {"tile is 257"}, dense({.seqlen_q = 9, .seqlen_k = 9, .tile = 257})},
      {"dense_plan: batch", Kind::value, {"batch 0"}, dense({.seqlen_q = 9, .seqlen_k = 9, .batch = 0})},
      {"dense_plan: heads", Kind::value, {"heads_q 0"}, dense({.seqlen_q = 9, .seqlen_k = 9, .heads_q = 0})},
      {"dense_plan: no mask", Kind::unsupported, {"takes a mask of bands"}, dense({.seqlen_q = 9, .seqlen_k = 9, .mask = {}})},
      {"dense_plan: spans", Kind::unsupported, {"bands"}, dense({.seqlen_q = 100, .seqlen_k = 9, .mask = of_spans})},
      {"dense_plan: grid", Kind::unsupported, {"bands"}, dense({.seqlen_q = 10, .seqlen_k = 10, .mask = grid})},
      {"dense_plan: band side", Kind::value, {"left 2199023255552"}, dense({.seqlen_q = 9, .seqlen_k = 9, .mask = too_wide})},
      {"dense_plan: sink", Kind::value, {"sink -1"}, dense({.seqlen_q = 9, .seqlen_k = 9, .mask = sink})},
      {"dense_plan: class", Kind::value, {"mask class 3"}, dense({.seqlen_q = 9, .seqlen_k = 9, .mask = no_class, .heads_q = 2})},
      {"dense_plan: classes of heads", Kind::value, {"names 1 heads"}, dense({.seqlen_q = 9, .seqlen_k = 9, .mask = few_heads, .heads_q = 2})},
      {"dense_plan: 17 classes", Kind::value, {"17 classes"}, dense({.seqlen_q = 9, .seqlen_k = 9, .mask = many_classes})},
      {"complete: tile", Kind::value, {"complete", "tile 8"}, [] { complete(good(), context, 8); }},
      {"retile: tile_q", Kind::value, {"retile", "tile 7"}, [] { retile(good(), context, 7); }},
      {"retile: tile_k", Kind::value, {"retile", "tile 300"}, [] { retile(good(), context, 0, 300); }},
      {"refine: coarser", Kind::value, {"refine", "coarsen()"}, [] { refine(good(), context, 64); }},
      {"coarsen: finer", Kind::value, {"coarsen", "refine()"}, [] { coarsen(good(), context, 16); }},
      {"reads: head", Kind::value, {"reads", "head 2 of a plan with 2"}, [] { reads(good(), 2); }},
      {"reads: negative head", Kind::value, {"reads", "head -1"}, [] { reads(good(), -1); }},
      {"allowed_pairs: head", Kind::value, {"allowed_pairs", "head 9"}, [] { allowed_pairs(good(), 9); }},
      {"density: head", Kind::value, {"density", "head 2"}, [] { density(good(), 2); }},
      {"dense_reads_of: head", Kind::value, {"dense_reads_of", "head -3"}, [] { dense_reads_of(good(), -3); }},
      {"to_tiles: tile_q", Kind::value, {"to_tiles", "0 x 16"}, [] { to_tiles(good(), 0, 16); }},
      {"to_tiles: tile_k", Kind::value, {"to_tiles", "16 x -1"}, [] { to_tiles(good(), 16, -1); }},
      {"bsr_of_plan: block_q", Kind::value, {"bsr_of_plan", "block_q is -1"}, [] { bsr_of_plan({.plan = good(), .block_q = -1}, context); }},
      {"bsr_of_plan: block_k", Kind::value, {"bsr_of_plan", "block_k -2"}, [] { bsr_of_plan({.plan = good(), .block_k = -2}, context); }},
      {"ListsBuilder: tile", Kind::value, {"ListsBuilder", "tile is 0"}, [] { ListsBuilder(0, 1, 1, 1); }},
      {"ListsBuilder: batch", Kind::value, {"ListsBuilder", "batch 0"}, [] { ListsBuilder(64, 0, 1, 1); }},
      {"ListsBuilder: groups", Kind::value, {"groups 0"}, [] { ListsBuilder(64, 1, 0, 1); }},
      {"ListsBuilder: rows", Kind::value, {"num_rows -1"}, [] { ListsBuilder(64, 1, 1, -1); }},
      {"ListsBuilder: edge", Kind::shape, {"edge has 2"}, [] { ListsBuilder(64, 1, 1, 3, {0, 64}); }},
      {"ListsBuilder::set: batch", Kind::value, {"set", "(1, 0, 0)"}, [] { ListsBuilder(64, 1, 1, 1).set(1, 0, 0, {}); }},
      {"ListsBuilder::set: row", Kind::value, {"set", "(0, 0, -1)"}, [] { ListsBuilder(64, 1, 1, 1).set(0, 0, -1, {}); }},
      {"ListsBuilder::share: itself", Kind::value, {"share"}, [] { ListsBuilder(64, 1, 1, 1).share(0, 0, 0, 0); }},
      {"rotary: theta",
       Kind::value,
       {"rotary", "theta"},
       [] {
         const Tensor x = zeros(Dtype::f32, {1, 1, 4, 8});
         rotary({.x = x.view, .out = x.view, .theta = -1}, context);
       }},
      {"rotary: theta NaN",
       Kind::value,
       {"rotary", "theta"},
       [] {
         const Tensor x = zeros(Dtype::f32, {1, 1, 4, 8});
         rotary({.x = x.view, .out = x.view, .theta = std::nan("")}, context);
       }},
      {"rotary: position", Kind::value, {"rotary", "position"}, [] {
         const Tensor x = zeros(Dtype::f32, {1, 1, 4, 8});
         rotary({.x = x.view, .out = x.view, .first_position = -1}, context);
       }}};
  for (int64_t size : {INT64_MAX, int64_t{1} << 62}) {
    bad.push_back({"Tensor: [" + std::to_string(size) + ", 64]", Kind::shape, {"Tensor"}, [size] { Tensor(host_memory(), Dtype::f32, {size, 64}); }});
  }
  return bad;
}

std::vector<Bad> wrong_tensors() {
  static Context context;
  static const Tensor f = zeros(Dtype::f32, {1, 2, 10, 8}), odd = zeros(Dtype::f32, {1, 2, 10, 7}), i = zeros(Dtype::i32, {1, 2, 10, 8});
  static const Tensor flat = zeros(Dtype::f32, {10}), bits = zeros(Dtype::boolean, {1, 2, 100, 100}), wide = zeros(Dtype::f32, {1, 2, 10, 16});
  const auto on_gpu = [](const TensorView& view) { return TensorView(view.raw(), view.dtype(), view.shape(), {Device::Type::cuda, 0}); };
  const auto every_other = [](const TensorView& view) { return TensorView(view.raw(), view.dtype(), {1, 2, 10, 4}, {160, 80, 8, 2, 0}); };
  const auto of_bits = [](const PlanOfBitsParams& params) { return [params] { plan_of_bits(params, context); }; };
  Mask no_spans = Mask::causal();
  no_spans.bands.clear();
  return {
      {"rotary: rank", Kind::shape, {"rotary"}, [] { rotary({.x = flat.view, .out = flat.view}, context); }},
      {"rotary: odd D", Kind::shape, {"rotary"}, [] { rotary({.x = odd.view, .out = odd.view}, context); }},
      {"rotary: out", Kind::shape, {"rotary", "out"}, [] { rotary({.x = f.view, .out = wide.view}, context); }},
      {"rotary: dtype", Kind::dtype, {"rotary"}, [] { rotary({.x = i.view, .out = i.view}, context); }},
      {"rotary: stride", Kind::unsupported, {"rotary"}, [=] { rotary({.x = every_other(f.view), .out = every_other(f.view)}, context); }},
      {"rotary: device", Kind::device, {"rotary"}, [=] { rotary({.x = on_gpu(f.view), .out = on_gpu(f.view)}, context); }},
      {"rotary: absent", Kind::shape, {"rotary"}, [] { rotary({}, context); }},
      {"plan_of_bits: absent", Kind::shape, {"plan_of_bits", "bits"}, of_bits({})},
      {"plan_of_bits: rank", Kind::shape, {"plan_of_bits", "bits is [10]"}, of_bits({.bits = flat.view})},
      {"plan_of_bits: dtype", Kind::dtype, {"bits is f32"}, of_bits({.bits = f.view})},
      {"plan_of_bits: device", Kind::device, {"bits lies on"}, of_bits({.bits = on_gpu(bits.view)})},
      {"plan_of_bits: batch", Kind::shape, {"batch 3"}, of_bits({.bits = zeros(Dtype::boolean, {2, 1, 3, 3}).view, .batch = 3})},
      {"plan_of_bits: tile", Kind::value, {"tile is 0"}, of_bits({.bits = bits.view, .tile = 0})},
      {"plan_of_bits: mask", Kind::value, {"forms"}, of_bits({.bits = bits.view, .mask = no_spans})},
      {"Shape: of rank 6", Kind::shape, {"Shape", "rank 6"}, [] { Shape({1, 1, 1, 1, 1, 1}); }},
      {"Shape: below 0", Kind::shape, {"Shape", "-1"}, [] { Shape({2, -1}); }},
      {"TensorView: data of another type", Kind::dtype, {"TensorView::data"}, [] { f.view.data<int32_t>(); }},
      {"write_safetensors: absent",
       Kind::unsupported,
       {"absent"},
       [] {
         const NamedTensor t[] = {{"t", {}}};
         write_safetensors("/dev/null", t);
       }},
      {"write_safetensors: stride",
       Kind::unsupported,
       {"\"t\""},
       [=] {
         const NamedTensor t[] = {{"t", every_other(f.view)}};
         write_safetensors("/dev/null", t);
       }},
      {"write_safetensors: twice",
       Kind::value,
       {"\"t\""},
       [] {
         const NamedTensor t[] = {{"t", f.view}, {"t", f.view}};
         write_safetensors("/dev/null", t);
       }},
      {"write_safetensors: name",
       Kind::value,
       {"__metadata__"},
       [] {
         const NamedTensor t[] = {{"__metadata__", f.view}};
         write_safetensors("/dev/null", t);
       }},
      {"write_safetensors: UTF-8",
       Kind::value,
       {"UTF-8"},
       [] {
         const NamedTensor t[] = {{"\xff", f.view}};
         write_safetensors("/dev/null", t);
       }},
      {"attend_forward: plan for other lengths",
       Kind::shape,
       {"attend_forward"},
       [] {
         const Tensor lse = zeros(Dtype::f32, {1, 2, 10});
         attend_forward({.q = f.view, .k = f.view, .lse = lse.view, .plan = good()}, context);
       }},
      {"attend_forward: no plan",
       Kind::value,
       {"attend_forward", "plan"},
       [] {
         const Tensor lse = zeros(Dtype::f32, {1, 2, 10});
         attend_forward({.q = f.view, .k = f.view, .lse = lse.view}, context);
       }},
  };
}

/// What validate() finds: each is a plan with one field spoiled. `says` is part of the fault.
std::vector<Bad> bad_plans() {
  std::vector<Bad> bad;
  const auto add = [&](const char* what, const char* says, const std::function<void(PlanData&)>& change) {
    bad.push_back({std::string("validate: ") + what, Kind::value, {"validate", says}, [change] { validate(changed(change)); }});
  };
  const auto i32 = [](const TensorView& view) { return static_cast<int32_t*>(view.raw()); };
  const auto i64 = [](const TensorView& view) { return static_cast<int64_t*>(view.raw()); };
  add("seqlen_q", "seqlen_q is -1", [](PlanData& d) { d.seqlen_q = -1; });
  add("seqlen_k", "seqlen_k", [](PlanData& d) { d.seqlen_k = int64_t{1} << 33; });
  add("longer", "by_query", [](PlanData& d) { d.seqlen_q = 300; });
  add("shorter", "by_query", [](PlanData& d) { d.seqlen_k = 50; });
  add("batch", "batch is 0", [](PlanData& d) { d.batch = 0; });
  add("batch above", "2^24 heads", [](PlanData& d) { d.batch = INT64_MAX; });
  add("heads_q", "heads_q -2", [](PlanData& d) { d.heads_q = -2; });
  add("dense_reads", "dense_reads", [](PlanData& d) { d.dense_reads = -5; });
  add("dense_reads_of_head count", "dense_reads_of_head", [](PlanData& d) { d.dense_reads_of_head = {1}; });
  add("dense_reads_of_head sum", "dense_reads_of_head", [](PlanData& d) { d.dense_reads_of_head = {1, 2}; });
  add("dense_reads_of_head overflow", "dense_reads_of_head", [](PlanData& d) { d.dense_reads_of_head = {INT64_MAX, INT64_MAX}; });
  add("dense_reads_of_head negative", "dense_reads_of_head", [](PlanData& d) { d.dense_reads_of_head = {-1, d.dense_reads + 1}; });
  add("is_by_key", "by_key", [](PlanData& d) { d.is_by_key = true; });
  add("pool", "groups of 1", [](PlanData& d) { d.pools = {1}; });
  add("negative pool", "groups of -4", [](PlanData& d) { d.pools = {-4}; });
  add("tile", "tile is 8", [](PlanData& d) { d.by_query.tile = 8; });
  add("tile above", "tile is 300", [](PlanData& d) { d.by_query.tile = 300; });
  add("no mask", "0 forms", [](PlanData& d) { d.mask = {}; });
  add("two masks", "2 forms", [](PlanData& d) { d.mask.grids = {{{}}}; });
  add("grid past the keys", "the grid takes tokens",
      [](PlanData& d) { d.mask = {}, d.mask.first = INT64_MAX, d.mask.grids = {{{.length = 9, .window = 1}}}; });
  add("grid of none", "0 axes", [](PlanData& d) { d.mask = {}, d.mask.grids = {{}}; });
  add("grid window", "window 0", [](PlanData& d) { d.mask = {}, d.mask.grids = {{{.length = 9, .window = 0}}}; });
  add("grid dilation", "dilation 9", [](PlanData& d) { d.mask = {}, d.mask.grids = {{{.length = 9, .window = 2, .dilation = 9}}}; });
  add("grid stride", "stride 3", [](PlanData& d) { d.mask = {}, d.mask.grids = {{{.length = 9, .window = 2, .stride = 3}}}; });
  add("spans shape", "mask.spans", [](PlanData& d) { d.mask = {}, d.mask.spans = plan::keep(d, zeros(Dtype::i32, {1, 1, 99, 4})); });
  add("spans dtype", "mask.spans", [](PlanData& d) { d.mask = {}, d.mask.spans = plan::keep(d, zeros(Dtype::i64, {1, 1, 100, 4})); });
  add("spans range", "span", [=](PlanData& d) {
    d.mask = {}, d.mask.spans = plan::keep(d, zeros(Dtype::i32, {1, 1, 100, 4}));
    i32(d.mask.spans)[1] = 101;
  });
  add("spans reversed", "span", [=](PlanData& d) {
    d.mask = {}, d.mask.spans = plan::keep(d, zeros(Dtype::i32, {1, 1, 100, 4}));
    i32(d.mask.spans)[0] = 5;
  });
  add("order shape", "order_k", [](PlanData& d) { d.order_k.token = plan::keep(d, zeros(Dtype::i32, {1, 1, 99})); });
  add("order dtype", "order_q", [](PlanData& d) { d.order_q.token = plan::keep(d, zeros(Dtype::i64, {1, 1, 100})); });
  add("order token twice", "second time", [](PlanData& d) { d.order_q.token = plan::keep(d, zeros(Dtype::i32, {1, 1, 100})); });
  add("order token range", "holds token", [=](PlanData& d) {
    d.order_k.token = plan::keep(d, zeros(Dtype::i32, {1, 1, 100}));
    i32(d.order_k.token)[0] = 100;
  });
  add("boxes without tokens", "boxes", [](PlanData& d) { d.order_k.boxes = BoxOrder{{4}, {2}, {1}}; });
  add("begin shape", "masked.begin", [](PlanData& d) { d.by_query.masked.begin = plan::keep(d, zeros(Dtype::i64, {1, 1, 3})); });
  add("begin groups", "masked.begin", [](PlanData& d) { d.by_query.masked.begin = plan::keep(d, zeros(Dtype::i64, {1, 3, 4})); });
  add("begin dtype", "masked.begin", [](PlanData& d) { d.by_query.masked.begin = plan::keep(d, zeros(Dtype::i32, {1, 1, 4})); });
  add("count dtype", "masked.count", [](PlanData& d) { d.by_query.masked.count = plan::keep(d, zeros(Dtype::i64, {1, 1, 4})); });
  add("count shape", "masked.count", [](PlanData& d) { d.by_query.masked.count = plan::keep(d, zeros(Dtype::i32, {2, 1, 4})); });
  add("start dtype", "masked.start", [](PlanData& d) { d.by_query.masked.start = plan::keep(d, zeros(Dtype::f32, {4})); });
  add("stop length", "masked.stop", [](PlanData& d) { d.by_query.masked.stop = plan::keep(d, zeros(Dtype::i32, {1})); });
  add("rows of whole", "whole has rows",
      [](PlanData& d) { d.by_query.whole.rows = plan::keep(d, zeros(Dtype::u64, {d.by_query.whole.start.dim(0), 1})); });
  add("rows shape", "masked.rows", [](PlanData& d) { d.by_query.masked.rows = plan::keep(d, zeros(Dtype::u64, {1, 2})); });
  add("rows without a bit", "no bit",
      [](PlanData& d) { d.by_query.masked.rows = plan::keep(d, zeros(Dtype::u64, {d.by_query.masked.start.dim(0), 1})); });
  add("grain", "grain 0", [](PlanData& d) { d.by_query.masked.grain = 0; });
  add("grain that does not divide", "grain", [](PlanData& d) {
    d.by_query.masked.grain = 7;
    d.by_query.masked.stop = plan::keep(d, zeros(Dtype::i32, d.by_query.masked.start.shape()));
    for (int64_t run = 0; run < d.by_query.masked.start.numel(); ++run)
      d.by_query.masked.stop.at<int32_t>(run) = std::min(100, d.by_query.masked.start.at<int32_t>(run) + 32);
  });
  add("negative count", "masked row 0", [=](PlanData& d) { i32(d.by_query.masked.count)[0] = -1; });
  add("count beyond capacity", "the capacity is", [=](PlanData& d) { i32(d.by_query.masked.count)[3] = 1000; });
  add("begin beyond capacity", "the capacity is", [=](PlanData& d) { i64(d.by_query.masked.begin)[0] = int64_t{1} << 40; });
  add("negative begin", "runs [-1", [=](PlanData& d) { i64(d.by_query.masked.begin)[0] = -1; });
  add("begin at the limit", "the capacity is", [=](PlanData& d) { i64(d.by_query.masked.begin)[0] = INT64_MAX; });
  add("start out of range", "starts at 100", [=](PlanData& d) { i32(d.by_query.masked.start)[3] = 100; });
  add("negative start", "starts at -1", [=](PlanData& d) { i32(d.by_query.masked.start)[0] = -1; });
  add("runs of two lists meet", "shares slots", [=](PlanData& d) { i32(d.by_query.masked.start)[3] = 0; });
  add("rows that overlap", "overlap", [=](PlanData& d) { i32(d.by_query.masked.count)[0] = 2; });
  add("edge from 1", "edge goes from", [=](PlanData& d) {
    d.by_query.edge = plan::keep(d, zeros(Dtype::i32, {5}));
    i32(d.by_query.edge)[0] = 1;
  });
  add("edge that descends", "row", [=](PlanData& d) {
    d.by_query.edge = plan::keep(d, zeros(Dtype::i32, {5}));
    i32(d.by_query.edge)[1] = 40, i32(d.by_query.edge)[2] = 30, i32(d.by_query.edge)[3] = 60, i32(d.by_query.edge)[4] = 100;
  });
  add("status fault", "status reports fault 3", [=](PlanData& d) {
    d.by_query.status = plan::keep(d, zeros(Dtype::i32, {2}));
    i32(d.by_query.status)[1] = 3;
  });
  add("status shape", "status", [](PlanData& d) { d.by_query.status = plan::keep(d, zeros(Dtype::i32, {3})); });
  add("unsorted runs", "ascend", [=](PlanData& d) {
    d.by_query.whole.count = plan::keep(d, zeros(Dtype::i32, {1, 1, 4}));
    d.by_query.whole.begin = plan::keep(d, zeros(Dtype::i64, {1, 1, 4}));
    d.by_query.whole.start = plan::keep(d, zeros(Dtype::i32, {2}));
    d.by_query.whole.stop = plan::keep(d, zeros(Dtype::i32, {2}));
    d.by_query.whole.grain = 1;
    i32(d.by_query.whole.count)[3] = 2;
    i32(d.by_query.whole.start)[0] = 40, i32(d.by_query.whole.stop)[0] = 50, i32(d.by_query.whole.start)[1] = 20, i32(d.by_query.whole.stop)[1] = 30;
  });
  add("a run twice", "ascend", [=](PlanData& d) {
    d.by_query.whole.count = plan::keep(d, zeros(Dtype::i32, {1, 1, 4}));
    d.by_query.whole.begin = plan::keep(d, zeros(Dtype::i64, {1, 1, 4}));
    d.by_query.whole.start = plan::keep(d, zeros(Dtype::i32, {2}));
    d.by_query.whole.stop = plan::keep(d, zeros(Dtype::i32, {2}));
    d.by_query.whole.grain = 1;
    i32(d.by_query.whole.count)[3] = 2;
    for (int run = 0; run < 2; ++run) i32(d.by_query.whole.start)[run] = 40, i32(d.by_query.whole.stop)[run] = 50;
  });
  add("picked with stop", "picked", [](PlanData& d) {
    d.by_query.picked.begin = plan::keep(d, zeros(Dtype::i64, {1, 1, 4}));
    d.by_query.picked.count = plan::keep(d, zeros(Dtype::i32, {1, 1, 4}));
    d.by_query.picked.start = plan::keep(d, zeros(Dtype::i32, {0}));
    d.by_query.picked.stop = plan::keep(d, zeros(Dtype::i32, {0}));
  });
  add("by_key names others", "by_key names other pairs", [=](PlanData& d) {
    Context context;
    const Plan both = complete(good(), context, 32);
    d.shared.push_back(both);
    d.by_key = both->by_key;
    i32(d.by_query.masked.count)[0] = 0;
  });
  return bad;
}

std::vector<Bad> methods_and_options() {
  static Context context;
  static const Tensor q = zeros(Dtype::f32, {1, 2, 64, 8}), k = zeros(Dtype::f32, {1, 1, 64, 8}), narrow = zeros(Dtype::f32, {1, 1, 64, 4});
  static const Tensor three = zeros(Dtype::f32, {1, 3, 64, 8}), numbers = zeros(Dtype::i32, {1, 1, 64, 8}), flat = zeros(Dtype::f32, {64});
  const Problem good{.q = q.view, .k = k.view};
  std::vector<Bad> bad{
      {"plan_with: no such method", Kind::value, {"yattention"}, [=] { plan_with("yattention", good, {}, context); }},
      {"plan_with: empty name", Kind::value, {"method"}, [=] { plan_with("", good, {}, context); }},
      {"method_info: no such method", Kind::value, {"nothing"}, [] { method_info("nothing"); }},
      {"check_options: no such method", Kind::value, {"nothing"}, [] { check_options("nothing", {}); }},
      {"parse_options: no such method", Kind::value, {"nothing"}, [] { parse_options("nothing", ""); }},
      {"parse_options: text", Kind::value, {"name=value"}, [] { parse_options("dense", "tile"); }},
      {"parse_options: number", Kind::value, {"tile"}, [] { parse_options("dense", "tile=many"); }},
      {"parse_options: twice", Kind::value, {"twice"}, [] { parse_options("dense", "tile=64,tile=64"); }},
      {"parse_options: too large a number", Kind::value, {"tile"}, [] { parse_options("dense", "tile=99999999999999999999"); }},
  };
  for (const MethodInfo& info : methods()) {
    bad.push_back({info.name + ": unknown option", Kind::value, {"no_such"}, [=] { plan_with(info.name, good, {{"no_such", true}}, context); }});
    for (const OptionInfo& option : info.options) {
      if (std::holds_alternative<bool>(option.default_value)) continue;
      bad.push_back({info.name + ": " + option.name + " of another type", Kind::value, {option.name}, [=] {
                       check_options(info.name, {{option.name, true}});
                     }});
      if (std::holds_alternative<double>(option.default_value))
        bad.push_back(
            {info.name + ": " + option.name + " NaN", Kind::value, {option.name}, [=] { check_options(info.name, {{option.name, std::nan("")}}); }});
    }
    bad.push_back({info.name + ": k of another head_dim", Kind::shape, {info.name}, [=] {
                     plan_with(info.name, {.q = q.view, .k = narrow.view, .v = k.view}, {}, context);
                   }});
    bad.push_back({info.name + ": heads that do not divide", Kind::shape, {info.name}, [=] {
                     plan_with(info.name, {.q = three.view, .k = zeros(Dtype::f32, {1, 2, 64, 8}).view, .v = q.view}, {}, context);
                   }});
    bad.push_back({info.name + ": q absent", Kind::shape, {info.name}, [=] { plan_with(info.name, {.k = k.view, .v = k.view}, {}, context); }});
    bad.push_back({info.name + ": q of rank 1", Kind::shape, {info.name}, [=] {
                     plan_with(info.name, {.q = flat.view, .k = k.view, .v = k.view}, {}, context);
                   }});
    bad.push_back({info.name + ": dtype", Kind::dtype, {info.name}, [=] {
                     plan_with(info.name, {.q = numbers.view, .k = numbers.view, .v = numbers.view}, {}, context);
                   }});
    bad.push_back({info.name + ": scale", Kind::value, {"softmax_scale"}, [=] {
                     plan_with(info.name, {.q = q.view, .k = k.view, .v = k.view, .softmax_scale = std::nanf("")}, {}, context);
                   }});
  }
  return bad;
}

// Every public entry that can fail has a row here: a new one without one fails this test. The count is what the project promises.
TEST(BadCalls, EachNamesWhatIsWrong) {
  expect_bad_calls({{"no plan", null_plans()},
                    {"numbers", numbers_out_of_range()},
                    {"tensors", wrong_tensors()},
                    {"plans", bad_plans()},
                    {"methods", methods_and_options()},
                    {"caches", bad_caches()},
                    {"operators", bad_operators()},
                    {"sets of plans", bad_sets()},
                    {"files", bad_files()}},
                   {"base", "machine", "plan", "prepare", "cache", "attend", "select", "methods"},
                   {"size_of",         "name",           "f16",
                    "float",           "numel",          "version",
                    "commit",  // conversions and names
                    "serial_executor", "host_memory",    "default_threads",
                    "methods",  // take nothing
                    "Error",           "Executor",       "Memory",
                    "Buffer",          "CountingMemory", "Mask",  // types that only others' arguments fill
                    "make_plan",       "flops",          "refusals",
                    "format_options",  // trust, multiply, answer in words, print
                    "cuda_memory",     "copy_to_device", "copy_to_host"},  // in builds with CUDA: tests/attend/sm90
                   500);
}

}  // namespace
}  // namespace tilewise::testing
