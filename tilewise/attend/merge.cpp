// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/merge.h"

#include <cmath>
#include <limits>
#include <string>

#include "tilewise/attend/reference/axis.h"

TILEWISE_BEGIN_PUBLIC

namespace {

using Kind = Error::Kind;

void check_tensor(const std::string& name, const TensorView& view, const Shape& shape, Dtype dtype, Device device) {
  check(view.has_value(), Kind::value, "attend_merge: ", name, " is absent, takes a tensor of shape ", shape);
  check(view.shape() == shape, Kind::shape, "attend_merge: ", name, " has shape ", view.shape(), ", takes ", shape, " as the first part");
  check(view.dtype() == dtype, Kind::dtype, "attend_merge: ", name, " is ", view.dtype(), ", takes ", dtype, "; convert it first");
  check(view.device() == device, Kind::device, "attend_merge: ", name, " is on ", view.device(), ", the context runs on ", device, "; move it");
  check(view.numel() == 0 || view.raw() != nullptr, Kind::value, "attend_merge: ", name, " ", view.shape(), " has a null pointer; give it memory");
}

void check_merge(const MergeParams& p, const Context& context) {
  check(context.device.type == Device::Type::cpu, Kind::unsupported, "attend_merge: runs on the CPU alone, the context is on ", context.device);
  check(!p.lses.empty(), Kind::value, "attend_merge: lses is empty, takes the lse of one part or more");
  check(p.outs.empty() || p.outs.size() == p.lses.size(), Kind::shape, "attend_merge: outs has ", p.outs.size(), " parts, lses has ", p.lses.size(),
        "; give one out per lse, or none");
  check(p.out.has_value() == !p.outs.empty(), Kind::value, "attend_merge: out is ",
        p.out.has_value() ? "given without outs" : "absent and outs are given", "; give both or neither");
  check(p.out.has_value() || p.lse.has_value(), Kind::value, "attend_merge: out and lse are both absent: nothing to write; give one of them");
  check(p.lses[0].rank() == 3, Kind::shape, "attend_merge: lses[0] has shape ", p.lses[0].shape(), ", takes [B, Hq, Sq]");
  const Shape shape = p.lses[0].shape();
  for (size_t i = 0; i < p.lses.size(); ++i) check_tensor("lses[" + std::to_string(i) + "]", p.lses[i], shape, Dtype::f32, context.device);
  if (p.lse.has_value()) check_tensor("lse", p.lse, shape, Dtype::f32, context.device);
  if (p.sink_logit.has_value()) check_tensor("sink_logit", p.sink_logit, {shape[1]}, Dtype::f32, context.device);
  if (p.outs.empty()) return;
  check(p.outs[0].rank() == 4, Kind::shape, "attend_merge: outs[0] has shape ", p.outs[0].shape(), ", takes [B, Hq, Sq, Dv]");
  const Shape shape_out{shape[0], shape[1], shape[2], p.outs[0].dim(3)};
  const Dtype dtype = p.outs[0].dtype();
  check(dtype == Dtype::f32 || dtype == Dtype::f64 || dtype == Dtype::bf16 || dtype == Dtype::f16, Kind::dtype, "attend_merge: outs[0] is ", dtype,
        ", takes f32, f64, bf16 or f16; convert it first");
  for (size_t i = 0; i < p.outs.size(); ++i) check_tensor("outs[" + std::to_string(i) + "]", p.outs[i], shape_out, dtype, context.device);
  check_tensor("out", p.out, shape_out, dtype, context.device);
}

// One query of one head. `lses` and `weights`: one of each part.
void merge_row(const MergeParams& p, int64_t b, int64_t head, int64_t query, std::vector<double>& lses, std::vector<double>& weights) {
  using attend::reference::get;
  using attend::reference::set;
  for (size_t i = 0; i < p.lses.size(); ++i) lses[i] = static_cast<double>(p.lses[i].at<float>(b, head, query));
  const float sink = p.sink_logit.has_value() ? p.sink_logit.at<float>(head) : -std::numeric_limits<float>::infinity();
  const double lse = attend::merge_weights(lses, static_cast<double>(sink), weights);
  if (p.out.has_value()) {
    for (int64_t d = 0; d < p.out.dim(3); ++d) {
      double sum = 0;
      for (size_t i = 0; i < p.outs.size(); ++i) {
        if (weights[i] != 0) sum += weights[i] * get(p.outs[i], b, head, query, d);
      }
      set(p.out, sum, b, head, query, d);
    }
  }
  if (p.lse.has_value()) set(p.lse, lse, b, head, query);
}

}  // namespace

void attend_merge(const MergeParams& params, Context& context) {
  check_merge(params, context);
  const Shape& shape = params.lses[0].shape();
  context.parallel_for(shape[0] * shape[1], [&](int64_t item, int) {
    std::vector<double> lses(params.lses.size());
    std::vector<double> weights(params.lses.size());
    for (int64_t query = 0; query < shape[2]; ++query) merge_row(params, item / shape[1], item % shape[1], query, lses, weights);
  });
}

TILEWISE_END_PUBLIC

namespace tilewise::attend {

double merge_weights(std::span<const double> lses, double sink, std::span<double> weights) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  double largest = sink;
  for (const double lse : lses) {
    if (lse > largest) largest = lse;  // a NaN is none
  }
  const double shift = largest == -kInfinity ? 0 : largest;
  double total = std::exp(sink - shift);
  for (size_t i = 0; i < lses.size(); ++i) {
    weights[i] = std::exp(lses[i] - shift);
    total += weights[i];
  }
  if (total == 0) return -kInfinity;
  for (double& weight : weights) weight /= total;
  return shift + std::log(total);
}

}  // namespace tilewise::attend
