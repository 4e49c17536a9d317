// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/check.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <string_view>
#include <vector>

#include "tilewise/attend/checker.h"
#include "tilewise/attend/schedule.h"
#include "tilewise/plan/rows.h"

namespace tilewise::attend {
namespace {

using Kind = Error::Kind;

constexpr const char* kLayoutQ = "[B, Hq, Sq, D]";
constexpr const char* kLayoutK = "[B, Hkv, Sk, D]";
constexpr const char* kLayoutV = "[B, Hkv or 1, Sk, Dv]";
constexpr const char* kLayoutOut = "[B, Hq, Sq, Dv]";
constexpr const char* kLayoutLse = "[B, Hq, Sq]";

Sizes check_q_and_k(const Checker& c, const TensorView& q, const TensorView& k) {
  c.is_there("q", q, kLayoutQ);
  c.is_there("k", k, kLayoutK);
  c.has_rank("q", q, 4, kLayoutQ);
  c.has_rank("k", k, 4, kLayoutK);
  c.is_float("q", q);
  c.has_dtype("k", k, q.dtype(), "as q");
  c.is_usable("q", q);
  c.is_usable("k", k);
  c.require(q.dim(0) == k.dim(0), Kind::shape, "q and k differ in batch: q ", q.shape(), ", k ", k.shape(), "; give both the same B");
  c.require(q.dim(3) == k.dim(3), Kind::shape, "q and k differ in head_dim: q ", q.shape(), ", k ", k.shape(), "; give both the same D");
  c.require(q.dim(3) >= 1, Kind::shape, "q has head_dim 0: ", q.shape(), "; takes 1 or more");
  c.require(q.dim(1) >= 1 && k.dim(1) >= 1, Kind::shape, "q or k has no head: q ", q.shape(), ", k ", k.shape(), "; takes 1 or more");
  c.require(q.dim(1) % k.dim(1) == 0, Kind::shape, "heads of k must divide the heads of q: q has ", q.dim(1), ", k has ", k.dim(1),
            "; repeat or drop heads of k");
  constexpr int64_t kMostTokens = std::numeric_limits<int32_t>::max();
  c.require(q.dim(2) <= kMostTokens && k.dim(2) <= kMostTokens, Kind::shape, "q or k is longer than ", kMostTokens, " tokens: q ", q.shape(), ", k ",
            k.shape(), "; split the sequence");
  c.require(q.dim(1) <= kMostTokens, Kind::shape, "q has ", q.dim(1), " heads, takes at most ", kMostTokens);
  Sizes sizes;
  sizes.batch = q.dim(0);
  sizes.heads_q = static_cast<int>(q.dim(1));
  sizes.heads_kv = static_cast<int>(k.dim(1));
  sizes.seqlen_q = q.dim(2);
  sizes.seqlen_k = k.dim(2);
  sizes.head_dim = q.dim(3);
  return sizes;
}

void check_scalars(const Checker& c, const std::optional<float>& softmax_scale, float softcap) {
  if (softmax_scale) {
    c.require(std::isfinite(*softmax_scale) && *softmax_scale > 0, Kind::value, "softmax_scale is ", *softmax_scale,
              ", takes a finite number above 0; leave it out for 1 / sqrt(D)");
  }
  c.require(std::isfinite(softcap) && softcap >= 0, Kind::value, "softcap is ", softcap, ", takes a finite number, 0 or above; 0 is none");
}

// An array of the plan, when it is there: dtype, device, contiguous.
void check_array(const Checker& c, const char* direction, const char* list, const char* name, const TensorView& view, Dtype dtype, int rank) {
  if (!view.has_value()) return;
  c.require(view.dtype() == dtype, Kind::dtype, "plan: ", direction, list, name, " is ", view.dtype(), ", takes ", dtype);
  c.require(view.rank() == rank, Kind::shape, "plan: ", direction, list, name, " has shape ", view.shape(), ", takes ", rank, " axes");
  c.require(view.device() == c.device(), Kind::device, "plan: ", direction, list, name, " is on ", view.device(), ", the context runs on ",
            c.device(), "; move the plan");
  c.require(view.numel() == 0 || view.raw() != nullptr, Kind::value, "plan: ", direction, list, name, " ", view.shape(), " has a null pointer");
}

void check_broadcast(const Checker& c, const char* direction, const char* list, const char* name, const TensorView& view, const Sizes& sizes) {
  c.require(view.dim(0) == 1 || view.dim(0) == sizes.batch || sizes.batch == 0, Kind::shape, "plan: ", direction, list, name, " is made for batch ",
            view.dim(0), ", takes 1 or ", sizes.batch, "; plan for this batch");
  c.require(view.dim(1) >= 1 && sizes.heads_q % view.dim(1) == 0, Kind::shape, "plan: ", direction, list, name, " has ", view.dim(1),
            " head groups, takes a divisor of ", sizes.heads_q, " heads of q");
}

void check_list(const Checker& c, const char* direction, const char* name, const RunList& list, const Sizes& sizes, int64_t rows, int tile) {
  check_array(c, direction, name, ".begin", list.begin, Dtype::i64, 3);
  if (!list.has_runs()) return;
  check_array(c, direction, name, ".count", list.count, Dtype::i32, 3);
  check_array(c, direction, name, ".start", list.start, Dtype::i32, 1);
  check_array(c, direction, name, ".stop", list.stop, Dtype::i32, 1);
  check_array(c, direction, name, ".rows", list.rows, Dtype::u64, 2);
  c.require(list.count.has_value() && list.start.has_value(), Kind::value, "plan: ", direction, name, " has begin but lacks count or start");
  check_broadcast(c, direction, name, ".begin", list.begin, sizes);
  check_broadcast(c, direction, name, ".count", list.count, sizes);
  c.require(list.begin.dim(2) == rows && list.count.dim(2) == rows, Kind::shape, "plan: ", direction, name, " has ", list.begin.dim(2), " and ",
            list.count.dim(2), " rows in begin and count, takes ", rows);
  c.require(list.grain >= 1, Kind::value, "plan: ", direction, name, ".grain is ", list.grain, ", takes 1 or more");
  const int64_t capacity = list.start.dim(0);
  c.require(!list.stop.has_value() || list.stop.dim(0) == capacity, Kind::shape, "plan: ", direction, name, ".stop has ", list.stop.dim(0),
            " entries, takes ", capacity, " as start has");
  const int64_t words = (tile + 63) / 64;
  c.require(!list.rows.has_value() || list.rows.shape() == (Shape{capacity, words}), Kind::shape, "plan: ", direction, name, ".rows has shape ",
            list.rows.shape(), ", takes ", Shape{capacity, words});
}

void check_lists(const Checker& c, const char* direction, const Lists& lists, const Sizes& sizes, int64_t slots) {
  if (!lists.has_runs()) return;
  c.require(lists.tile >= 1 && lists.tile <= 256, Kind::value, "plan: ", direction, "tile is ", lists.tile, ", takes 1 to 256");
  check_array(c, direction, "", "edge", lists.edge, Dtype::i32, 1);
  c.require(!lists.edge.has_value() || lists.edge.dim(0) >= 1, Kind::shape, "plan: ", direction, "edge is empty, takes one entry more than rows");
  const int64_t rows = plan::num_rows(lists, slots);
  check_list(c, direction, "whole", lists.whole, sizes, rows, lists.tile);
  check_list(c, direction, "masked", lists.masked, sizes, rows, lists.tile);
  check_list(c, direction, "picked", lists.picked, sizes, rows, lists.tile);
}

void check_order(const Checker& c, const char* name, const Order& order, const Sizes& sizes, int64_t tokens, bool has_pools) {
  check_array(c, name, "", ".token", order.token, Dtype::i32, 3);
  if (!order.token.has_value()) return;
  check_broadcast(c, name, "", ".token", order.token, sizes);
  c.require(!has_pools || sizes.heads_kv % order.token.dim(1) == 0, Kind::shape, "plan: ", name, ".token has ", order.token.dim(1),
            " head groups, takes a divisor of ", sizes.heads_kv, " heads of k, since pooled keys and in_slots mean one order per head of k");
  c.require(order.token.dim(2) >= tokens, Kind::shape, "plan: ", name, ".token has ", order.token.dim(2), " slots for ", tokens, " tokens");
}

void check_mask(const Checker& c, const PlanData& plan, const Sizes& sizes) {
  const Mask& mask = plan.mask;
  const int forms = (mask.bands.empty() ? 0 : 1) + (mask.spans.has_value() ? 1 : 0) + (mask.grids.empty() ? 0 : 1);
  c.require(forms == 1, Kind::value, "plan: the mask has ", forms, " of bands, spans and grids, takes exactly one");
  check_array(c, "mask.", "", "spans", mask.spans, Dtype::i32, 4);
  int64_t classes = static_cast<int64_t>(mask.bands.size() + mask.grids.size());
  if (mask.spans.has_value()) {
    const TensorView& spans = mask.spans;
    classes = spans.dim(0);
    c.require((spans.dim(1) == 1 || spans.dim(1) == sizes.batch) && spans.dim(2) == plan.seqlen_q && spans.dim(3) == 4, Kind::shape,
              "plan: mask.spans has shape ", spans.shape(), ", takes [classes, 1 or ", sizes.batch, ", ", plan.seqlen_q, ", 4]");
  }
  c.require(mask.head_class.empty() || static_cast<int64_t>(mask.head_class.size()) == sizes.heads_q, Kind::shape, "plan: mask.head_class has ",
            mask.head_class.size(), " entries, takes none or ", sizes.heads_q, ", one per head of q");
  for (const uint8_t entry : mask.head_class) {
    c.require(entry < classes, Kind::value, "plan: mask.head_class names class ", static_cast<int>(entry), ", the mask has ", classes);
  }
  c.require(classes >= 1, Kind::value, "plan: the mask has no class, takes one or more");
}

void check_plan(const Checker& c, const Plan& plan, const Sizes& sizes, bool in_slots = false) {
  c.require(plan != nullptr, Kind::value, "plan is null, and is needed: make one with plan_with or PlanBuilder; \"dense\" is a method, too");
  if (!in_slots) {
    c.require(plan->seqlen_q == sizes.seqlen_q && plan->seqlen_k == sizes.seqlen_k, Kind::shape, "plan is made for ", plan->seqlen_q, " queries and ",
              plan->seqlen_k, " keys, got q and k with ", sizes.seqlen_q, " and ", sizes.seqlen_k, "; plan for these lengths");
  }
  const bool is_for_batch = plan->batch == sizes.batch || sizes.batch == 0;  // an empty batch asks nothing of a plan
  c.require(is_for_batch && plan->heads_q == sizes.heads_q, Kind::shape, "plan is made for batch ", plan->batch, " and ", plan->heads_q,
            " query heads, got q with batch ", sizes.batch, " and ", sizes.heads_q, " heads; plan for these sizes");
  for (const int group : plan->pools) c.require(group >= 1, Kind::value, "plan: pools has a group of ", group, ", takes 1 or more");
  check_order(c, "order_q", plan->order_q, sizes, plan->seqlen_q, false);
  check_order(c, "order_k", plan->order_k, sizes, plan->seqlen_k, !plan->pools.empty() || in_slots);
  if (in_slots) {
    c.require(plan::slots_q(*plan) == sizes.seqlen_q && plan::slots_k(*plan) == sizes.seqlen_k, Kind::shape, "in_slots: the plan's orders have ",
              plan::slots_q(*plan), " query slots and ", plan::slots_k(*plan), " key slots, got q and k with ", sizes.seqlen_q, " and ",
              sizes.seqlen_k, "; give all slots, padding included");
  }
  check_lists(c, "by_query.", plan->by_query, sizes, plan::slots_q(*plan));
  check_lists(c, "by_key.", plan->by_key, sizes, plan::slots_k_with_pools(*plan));
  check_mask(c, *plan, sizes);
}

void check_lse(const Checker& c, const char* name, const TensorView& view, const Sizes& sizes) {
  c.has_shape(name, view, {sizes.batch, sizes.heads_q, sizes.seqlen_q}, kLayoutLse);
  c.has_dtype(name, view, Dtype::f32, "always");
  c.is_usable(name, view);
}

// Everything of AttendParams that forward and backward share.
Sizes check_operands(const Checker& c, const AttendParams& p) {
  Sizes sizes = check_q_and_k(c, p.q, p.k);
  c.require(p.v.has_value() == p.out.has_value(), Kind::value, p.v.has_value() ? "v is given without out" : "out is given without v",
            "; give both, or leave both absent for lse alone");
  if (p.v.has_value()) {
    c.has_rank("v", p.v, 4, kLayoutV);
    c.has_dtype("v", p.v, p.q.dtype(), "as q");
    c.is_usable("v", p.v);
    c.require(p.v.dim(0) == sizes.batch && p.v.dim(2) == sizes.seqlen_k, Kind::shape, "v has shape ", p.v.shape(), ", takes ", kLayoutV, " with B ",
              sizes.batch, " and Sk ", sizes.seqlen_k, " as k ", p.k.shape());
    c.require(p.v.dim(1) == 1 || p.v.dim(1) == sizes.heads_kv, Kind::shape, "v has ", p.v.dim(1), " heads, takes 1 or ", sizes.heads_kv, " as k ",
              p.k.shape());
    c.require(p.v.dim(3) >= 1, Kind::shape, "v has 0 channels: ", p.v.shape(), "; takes 1 or more, or leave v and out absent for lse alone");
    sizes.heads_v = static_cast<int>(p.v.dim(1));
    sizes.head_dim_v = p.v.dim(3);
    c.has_shape("out", p.out, {sizes.batch, sizes.heads_q, sizes.seqlen_q, sizes.head_dim_v}, kLayoutOut);
    c.has_dtype("out", p.out, p.q.dtype(), "as q");
    c.is_usable("out", p.out);
  }
  if (p.lse.has_value()) check_lse(c, "lse", p.lse, sizes);
  if (p.sink_logit.has_value()) {
    c.has_shape("sink_logit", p.sink_logit, {sizes.heads_q}, "[Hq]");
    c.has_dtype("sink_logit", p.sink_logit, Dtype::f32, "always");
    c.is_usable("sink_logit", p.sink_logit);
  }
  check_scalars(c, p.softmax_scale, p.softcap);
  check_plan(c, p.plan, sizes, p.in_slots);
  if (p.schedule != nullptr) {
    c.require(p.schedule->plan == p.plan, Kind::value, "schedule was made for another plan; give attend_prepare this one, or leave schedule null");
    c.require(p.schedule->heads_kv == sizes.heads_kv, Kind::shape, "schedule was made for ", p.schedule->heads_kv, " heads of k, got k with ",
              sizes.heads_kv, "; make it for this number");
  }
  return sizes;
}

bool is_same_view(const TensorView& a, const TensorView& b) {
  if (a.raw() != b.raw() || a.shape() != b.shape()) return false;
  for (int axis = 0; axis < a.rank(); ++axis) {
    if (a.dim(axis) > 1 && a.stride(axis) != b.stride(axis)) return false;
  }
  return true;
}

// q, k and v may be one tensor; then, and only then, their gradients may be one, which gets the sum.
void check_gradients_apart(const Checker& c, const Named& a, const TensorView& of_a, const Named& b, const TensorView& of_b) {
  if (a.view.numel() == 0 || b.view.numel() == 0 || a.view.raw() != b.view.raw()) return;
  c.require(is_same_view(a.view, b.view) && is_same_view(of_a, of_b), Kind::value, a.name, " and ", b.name,
            " start at one address; they may share memory only as one whole tensor, where the tensors that they are gradients of are one, too");
}

}  // namespace

Sizes check_forward(const AttendParams& p, const Context& context) {
  const Checker c("attend_forward", context);
  c.require(p.out.has_value() || p.v.has_value() || p.lse.has_value(), Kind::value,
            "out and lse are both absent: nothing to write; give one of them");
  const Sizes sizes = check_operands(c, p);
  if (p.out.has_value()) {
    c.is_writable("out", p.out);
    c.are_apart({"out", p.out}, {{"q", p.q}, {"k", p.k}, {"v", p.v}, {"sink_logit", p.sink_logit}, {"lse", p.lse}});
  }
  if (p.lse.has_value()) {
    c.is_writable("lse", p.lse);
    c.are_apart({"lse", p.lse}, {{"q", p.q}, {"k", p.k}, {"v", p.v}, {"sink_logit", p.sink_logit}});
  }
  return sizes;
}

Sizes check_backward(const AttendBackwardParams& p, const Context& context) {
  const Checker c("attend_backward", context);
  const AttendParams& f = p.forward;
  const Sizes sizes = check_operands(c, f);
  c.is_there("v", f.v, kLayoutV);
  c.is_there("lse", f.lse, "[B, Hq, Sq] as attend_forward wrote it");
  c.is_there("dout", p.dout, kLayoutOut);
  c.has_shape("dout", p.dout, f.out.shape(), "as out");
  c.has_dtype("dout", p.dout, f.q.dtype(), "as q");
  c.is_usable("dout", p.dout);
  if (p.dlse.has_value()) check_lse(c, "dlse", p.dlse, sizes);
  struct Gradient {
    Named grad, of;
  };
  const std::vector<Gradient> gradients = {{{"dq", p.dq}, {"q", f.q}}, {{"dk", p.dk}, {"k", f.k}}, {{"dv", p.dv}, {"v", f.v}}};
  for (const Gradient& g : gradients) {
    c.is_there(g.grad.name, g.grad.view, "with the shape and dtype of the tensor that it is the gradient of");
    c.has_shape(g.grad.name, g.grad.view, g.of.view.shape(), "as the tensor that it is the gradient of");
    c.has_dtype(g.grad.name, g.grad.view, f.q.dtype(), "as q");
    c.is_usable(g.grad.name, g.grad.view);
    c.is_writable(g.grad.name, g.grad.view);
    c.are_apart(g.grad, {{"q", f.q},
                         {"k", f.k},
                         {"v", f.v},
                         {"out", f.out},
                         {"lse", f.lse},
                         {"dout", p.dout},
                         {"dlse", p.dlse},
                         {"sink_logit", f.sink_logit},
                         {"dsink_logit", p.dsink_logit}});
  }
  check_gradients_apart(c, gradients[0].grad, f.q, gradients[1].grad, f.k);
  check_gradients_apart(c, gradients[0].grad, f.q, gradients[2].grad, f.v);
  check_gradients_apart(c, gradients[1].grad, f.k, gradients[2].grad, f.v);
  if (p.dsink_logit.has_value()) {
    c.require(f.sink_logit.has_value(), Kind::value, "dsink_logit is given without sink_logit; give forward.sink_logit, or leave dsink_logit absent");
    c.has_shape("dsink_logit", p.dsink_logit, {sizes.heads_q}, "[Hq]");
    c.has_dtype("dsink_logit", p.dsink_logit, Dtype::f32, "always");
    c.is_usable("dsink_logit", p.dsink_logit);
    c.is_writable("dsink_logit", p.dsink_logit);
    c.are_apart(
        {"dsink_logit", p.dsink_logit},
        {{"q", f.q}, {"k", f.k}, {"v", f.v}, {"out", f.out}, {"lse", f.lse}, {"dout", p.dout}, {"dlse", p.dlse}, {"sink_logit", f.sink_logit}});
  }
  return sizes;
}

Sizes check_measure(const MeasureParams& p, const Context& context) {
  const Checker c("measure", context);
  const Sizes sizes = check_q_and_k(c, p.q, p.k);
  check_scalars(c, p.softmax_scale, p.softcap);
  if (p.lse.has_value()) check_lse(c, "lse", p.lse, sizes);
  if (p.key_bias.has_value()) {
    c.has_shape("key_bias", p.key_bias, {sizes.batch, sizes.heads_q, sizes.seqlen_k}, "[B, Hq, Sk]");
    c.has_dtype("key_bias", p.key_bias, Dtype::f32, "always");
    c.is_usable("key_bias", p.key_bias);
  }
  check_plan(c, p.plan, sizes, p.in_slots);
  const bool is_by_token = p.over == MeasureOver::key || p.over == MeasureOver::offset;
  c.require(p.plan->pools.empty() || !(is_by_token || p.key_bias.has_value()), Kind::unsupported,
            p.key_bias.has_value() ? "key_bias" : "over key or offset",
            " names single keys, and the plan has pooled keys; take tile, query_tile, query_run ",
            "or query without key_bias, or a plan without pools");
  c.require(p.over != MeasureOver::query_run || p.plan->by_query.has_runs() || !p.plan->by_key.has_runs(), Kind::unsupported,
            "over query_run counts the runs of by_query, and the plan has by_key alone; complete() it first");
  if (p.over == MeasureOver::query_run) {  // the shape needs the rows' counts
    for (const RunList* list : {&p.plan->by_query.whole, &p.plan->by_query.masked, &p.plan->by_query.picked}) {
      c.require(!list->count.has_value() || list->count.device().type == Device::Type::cpu, Kind::unsupported,
                "over query_run asks for the runs of every row, and the plan lies on ", list->count.device(),
                "; take query_tile, or move q, k and the plan to the CPU");
    }
  }
  const int plan_tile = p.plan->by_query.tile;
  c.require(p.tile_q >= 0 && (p.tile_q == 0 || plan_tile % p.tile_q == 0), Kind::value, "tile_q is ", p.tile_q,
            ", takes a divisor of the plan's tile ", plan_tile, ", or 0 for that tile");
  c.require(p.tile_k >= 0, Kind::value, "tile_k is ", p.tile_k, ", takes 1 or more, or 0 for the plan's tile ", plan_tile);
  const Shape shape = measure_shape(p);
  const std::initializer_list<Named> outputs = {{"sum", p.sum}, {"max", p.max}, {"count", p.count}};
  c.require(p.sum.has_value() || p.max.has_value() || p.count.has_value(), Kind::value,
            "sum, max and count are all absent: nothing to write; give one of them, ", shape, " f32");
  for (const Named& output : outputs) {
    if (!output.view.has_value()) continue;
    c.has_shape(output.name, output.view, shape, "the shape that `over` names");
    c.has_dtype(output.name, output.view, Dtype::f32, "always");
    c.is_usable(output.name, output.view);
    c.is_writable(output.name, output.view);
    c.are_apart(output, {{"q", p.q}, {"k", p.k}, {"lse", p.lse}, {"key_bias", p.key_bias}});
    for (const Named& other : outputs) {
      if (&other.view != &output.view) c.are_apart(output, {other});
    }
  }
  return sizes;
}

void check_decode_parts(const Checker& c, const DecodeParams& p, const Plan& plan, const Sizes& sizes) {
  if (p.out.has_value()) {
    c.has_shape("out", p.out, {sizes.batch, sizes.heads_q, sizes.seqlen_q, sizes.head_dim_v}, kLayoutOut);
    c.has_dtype("out", p.out, p.q.dtype(), "as q");
    c.is_usable("out", p.out);
    c.is_writable("out", p.out);
    c.are_apart({"out", p.out}, {{"q", p.q}, {"sink_logit", p.sink_logit}, {"lse", p.lse}, {"lengths", p.lengths}});
  }
  if (p.lse.has_value()) {
    check_lse(c, "lse", p.lse, sizes);
    c.is_writable("lse", p.lse);
    c.are_apart({"lse", p.lse}, {{"q", p.q}, {"sink_logit", p.sink_logit}, {"lengths", p.lengths}});
  }
  if (p.sink_logit.has_value()) {
    c.has_shape("sink_logit", p.sink_logit, {sizes.heads_q}, "[Hq]");
    c.has_dtype("sink_logit", p.sink_logit, Dtype::f32, "always");
    c.is_usable("sink_logit", p.sink_logit);
  }
  check_scalars(c, p.softmax_scale, p.softcap);
  check_plan(c, plan, sizes);
}

double scale_of(const std::optional<float>& softmax_scale, int64_t head_dim) {
  return softmax_scale ? static_cast<double>(*softmax_scale) : 1.0 / std::sqrt(static_cast<double>(head_dim));
}

int measure_tile_q(const MeasureParams& p) { return p.tile_q != 0 ? p.tile_q : p.plan->by_query.tile; }
int measure_tile_k(const MeasureParams& p) { return p.tile_k != 0 ? p.tile_k : p.plan->by_query.tile; }

int64_t most_runs(const PlanData& plan, int64_t batch, int heads_q) {
  const Lists& lists = plan.by_query;
  const int64_t rows = plan::num_rows(lists, plan::slots_q(plan));
  int64_t most = 0;
  for (int64_t b = 0; b < batch; ++b) {
    for (int head = 0; head < heads_q; ++head) {
      for (int64_t row = 0; row < rows; ++row) {
        int64_t runs = 0;
        for (const RunList* list : {&lists.whole, &lists.masked, &lists.picked}) runs += plan::runs_of(*list, b, head, heads_q, row).count;
        most = std::max(most, runs);
      }
    }
  }
  return most;
}

Shape measure_shape(const MeasureParams& p) {
  const int64_t batch = p.q.dim(0), heads = p.q.dim(1), seqlen_q = p.q.dim(2), seqlen_k = p.k.dim(2);
  const int64_t tile_q = measure_tile_q(p), tile_k = measure_tile_k(p);
  const int64_t tiles_q = (plan::slots_q(*p.plan) + tile_q - 1) / tile_q;
  const int64_t tiles_k = (plan::slots_k_with_pools(*p.plan) + tile_k - 1) / tile_k;
  switch (p.over) {
    case MeasureOver::tile: return {batch, heads, tiles_q, tiles_k};
    case MeasureOver::query_tile: return {batch, heads, seqlen_q, tiles_k};
    case MeasureOver::query_run: return {batch, heads, seqlen_q, most_runs(*p.plan, batch, static_cast<int>(heads))};
    case MeasureOver::query: return {batch, heads, seqlen_q};
    case MeasureOver::key: return {batch, heads, seqlen_k};
    case MeasureOver::offset: return {batch, heads, p.plan->seqlen_k};
  }
  fail(Error::Kind::value, "measure: over is ", static_cast<int>(p.over), ", takes a value of MeasureOver");
}

}  // namespace tilewise::attend
