// SPDX-License-Identifier: Apache-2.0
// Operators that run plans: attend, its backward, decode, measure.
#include <string_view>
#include <vector>

#include "tilewise/attend/decode.h"
#include "tilewise_torch/ops/attend_with.h"
#include "tilewise_torch/ops/tensors.h"

namespace tilewise::ops {
namespace {

using Ints = std::vector<int64_t>;

std::tuple<TorchTensor, TorchTensor> attend(const TorchTensor& q, const TorchTensor& k, const TorchTensor& v, const TorchTensor& plan,
                                            const TorchTensor& layout, std::optional<double> scale, double softcap, const MaybeTensor& sink_logit) {
  return guarded([&] { return attend_with(plan_of(plan, layout), q, k, v, {scale, softcap, sink_logit}); });
}

std::tuple<TorchTensor, TorchTensor, TorchTensor, TorchTensor> attend_backward(const TorchTensor& dout, const MaybeTensor& dlse, const TorchTensor& q,
                                                                               const TorchTensor& k, const TorchTensor& v, const TorchTensor& out,
                                                                               const TorchTensor& lse, const TorchTensor& plan,
                                                                               const TorchTensor& layout, std::optional<double> scale, double softcap,
                                                                               const MaybeTensor& sink_logit) {
  return guarded([&] { return attend_backward_with(plan_of(plan, layout), dout, dlse, q, k, v, out, lse, {scale, softcap, sink_logit}); });
}

/// Keys or values as decode takes them: `scale` makes them quantised (groups: tokens, channels), `table` makes them paged.
Operand operand_of(const TorchTensor& data, const MaybeTensor& scale, const MaybeTensor& zero, const MaybeTensor& table, const Ints& group) {
  check(group.size() == 2, Error::Kind::value, "decode: a group is two numbers, tokens and channels; got ", group.size());
  Quantised quantised;
  if (scale.has_value()) quantised = {view_of(data), view_of(scale), view_of(zero), {static_cast<int>(group[0]), static_cast<int>(group[1])}};
  if (!table.has_value()) return scale.has_value() ? Operand(quantised) : Operand(view_of(data));
  Paged paged;
  if (scale.has_value()) {
    paged.pool = quantised;
  } else {
    paged.pool = view_of(data);
  }
  paged.table = view_of(table);
  return paged;
}

std::tuple<TorchTensor, TorchTensor> decode(const TorchTensor& q_in, const TorchTensor& k, const MaybeTensor& k_scale, const MaybeTensor& k_zero,
                                            const MaybeTensor& k_table, const Ints& k_group, const TorchTensor& v, const MaybeTensor& v_scale,
                                            const MaybeTensor& v_zero, const MaybeTensor& v_table, const Ints& v_group, const MaybeTensor& lengths,
                                            const MaybeTensor& plan, const MaybeTensor& layout, const Ints& band, int64_t head_dim_v,
                                            std::optional<double> scale, double softcap, const MaybeTensor& sink_logit) {
  return guarded([&] {
    const TorchTensor q = with_contiguous_rows(q_in);
    DecodeParams params;
    params.q = view_of(q);
    params.k = operand_of(k, k_scale, k_zero, k_table, k_group);
    params.v = operand_of(v, v_scale, v_zero, v_table, v_group);
    params.lengths = view_of(lengths);
    check(plan.has_value() == layout.has_value(), Error::Kind::value, "decode: a plan is two tensors, got one");
    if (plan.has_value()) params.plan = plan_of(*plan, *layout);
    check(band.empty() || band.size() == 3, Error::Kind::value, "decode: band is left, right and sink; got ", band.size(), " numbers");
    if (!band.empty()) params.dense_band = Mask::Band{band[0], band[1], band[2]};
    params.softmax_scale = as_float(scale);
    params.softcap = static_cast<float>(softcap);
    params.sink_logit = view_of(sink_logit);
    Context context = context_of(q);
    Shape shape = out_shape(q, v);
    shape.sizes[3] = head_dim_v;
    TorchTensor out = empty_in_layout_of(q, shape), lse = empty(lse_shape(shape), Dtype::f32, q);
    params.out = writable(out);
    params.lse = writable(lse);
    attend_decode(params, context);
    return std::tuple(std::move(out), std::move(lse));
  });
}

MeasureOver over_of(std::string_view name) {
  constexpr std::string_view names[] = {"tile", "query_tile", "query_run", "query", "key", "offset"};
  for (uint8_t i = 0; i < std::size(names); ++i) {
    if (name == names[i]) return static_cast<MeasureOver>(i);
  }
  fail(Error::Kind::value, "measure: over is '", name, "', takes tile, query_tile, query_run, query, key or offset");
}

std::tuple<TorchTensor, TorchTensor, TorchTensor> measure(const TorchTensor& q_in, const TorchTensor& k_in, const TorchTensor& plan,
                                                          const TorchTensor& layout, const MaybeTensor& lse, const MaybeTensor& key_bias,
                                                          const Text& over, const Ints& shape, int64_t tile_q, int64_t tile_k,
                                                          std::optional<double> scale, double softcap) {
  return guarded([&] {
    const TorchTensor q = with_contiguous_rows(q_in), k = with_contiguous_rows(k_in);
    MeasureParams params;
    params.q = view_of(q);
    params.k = view_of(k);
    params.plan = plan_of(plan, layout);
    params.lse = view_of(lse);
    params.key_bias = view_of(key_bias);
    params.over = over_of(over.value);
    params.tile_q = static_cast<int>(tile_q);
    params.tile_k = static_cast<int>(tile_k);
    params.softmax_scale = as_float(scale);
    params.softcap = static_cast<float>(softcap);
    check(shape.size() >= 1 && shape.size() <= Shape::kMaxRank, Error::Kind::shape, "measure: shape has ", shape.size(), " sizes, takes 1 to ",
          Shape::kMaxRank);
    Shape sizes;
    sizes.rank = static_cast<int>(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) {
      check(shape[i] >= 0, Error::Kind::shape, "measure: shape has a size of ", shape[i], ", takes 0 or more");
      sizes.sizes[i] = shape[i];
    }
    Context context = context_of(q);
    TorchTensor sum = empty(sizes, Dtype::f32, q), most = empty(sizes, Dtype::f32, q), count = empty(sizes, Dtype::f32, q);
    params.sum = writable(sum);
    params.max = writable(most);
    params.count = writable(count);
    tilewise::measure(params, context);
    return std::tuple(std::move(sum), std::move(most), std::move(count));
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tilewise, m) {
  m.def("attend(Tensor q, Tensor k, Tensor v, Tensor plan, Tensor layout, float? scale=None, float softcap=0.0, Tensor? sink_logit=None) -> (Tensor, "
        "Tensor)");
  m.def("attend_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor plan, Tensor layout, float? "
        "scale=None, "
        "float softcap=0.0, Tensor? sink_logit=None) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("decode(Tensor q, Tensor k, Tensor? k_scale, Tensor? k_zero, Tensor? k_table, int[] k_group, Tensor v, Tensor? v_scale, Tensor? v_zero, "
        "Tensor? v_table, "
        "int[] v_group, Tensor? lengths, Tensor? plan, Tensor? layout, int[] band, int head_dim_v, float? scale=None, float softcap=0.0, Tensor? "
        "sink_logit=None) "
        "-> (Tensor, Tensor)");
  m.def(
      "measure(Tensor q, Tensor k, Tensor plan, Tensor layout, Tensor? lse, Tensor? key_bias, str over, SymInt[] shape, int tile_q=0, int tile_k=0, "
      "float? scale=None, float softcap=0.0) -> (Tensor, Tensor, Tensor)");
}

// The same functions for both devices: a build without CUDA kernels lets attend say so.
STABLE_TORCH_LIBRARY_IMPL(tilewise, CPU, m) {
  m.impl("attend", TORCH_BOX(&attend));
  m.impl("attend_backward", TORCH_BOX(&attend_backward));
  m.impl("decode", TORCH_BOX(&decode));
  m.impl("measure", TORCH_BOX(&measure));
}
STABLE_TORCH_LIBRARY_IMPL(tilewise, CUDA, m) {
  m.impl("attend", TORCH_BOX(&attend));
  m.impl("attend_backward", TORCH_BOX(&attend_backward));
  m.impl("decode", TORCH_BOX(&decode));
  m.impl("measure", TORCH_BOX(&measure));
}

}  // namespace tilewise::ops
