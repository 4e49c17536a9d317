// SPDX-License-Identifier: Apache-2.0
// Operators that make plans, change them and tell about them. Each works on the CPU; a plan for a GPU is made here and moved (Plan.to).
#include <algorithm>
#include <sstream>
#include <string_view>
#include <vector>

#include "tilewise/base/version.h"
#include "tilewise/machine/cpu/target.h"
#include "tilewise/methods/options.h"
#include "tilewise/methods/registry.h"
#include "tilewise/plan/bits.h"
#include "tilewise/plan/complete.h"
#include "tilewise/plan/content_hash.h"
#include "tilewise/plan/count.h"
#include "tilewise/plan/exchange/bits.h"
#include "tilewise/plan/exchange/bsr.h"
#include "tilewise/plan/file.h"
#include "tilewise/plan/heads.h"
#include "tilewise/plan/sets.h"
#include "tilewise/plan/validate.h"
#include "tilewise_torch/ops/method_call.h"
#include "tilewise_torch/ops/tensors.h"

namespace tilewise::ops {
namespace {

using PlanTensors = std::tuple<TorchTensor, TorchTensor>;

PlanTensors plan_with_method(const TorchTensor& q, const TorchTensor& k, const MaybeTensor& v, const Text& method, const Text& options,
                             const Ints& mask, const MaybeTensor& spans, const MaybeTensor& order_q, const MaybeTensor& order_k,
                             std::optional<double> scale, double softcap, int64_t layer, int64_t seed) {
  return guarded([&] { return tensors_of(plan_by({method, options, mask, spans, order_q, order_k, scale, softcap, layer, seed}, q, k, v)); });
}

PlanTensors plan_of_bits(const TorchTensor& bits, int64_t tile, const Ints& mask, const MaybeTensor& spans, int64_t batch, int64_t heads_q) {
  return guarded([&] {
    const TorchTensor rows = with_contiguous_rows(bits);
    Context context = host_context();
    return tensors_of(
        tilewise::plan_of_bits({view_of(rows), as_int("tile", tile), mask_of(mask, spans), batch, as_int("heads_q", heads_q)}, context));
  });
}

PlanTensors plan_of_bsr(const TorchTensor& indptr, const TorchTensor& indices, const MaybeTensor& blocks, int64_t seqlen_q, int64_t seqlen_k,
                        int64_t block_q, int64_t block_k, int64_t tile, const Ints& mask, const MaybeTensor& spans, int64_t batch, int64_t heads_q) {
  return guarded([&] {
    PlanOfBsrParams params;
    params.bsr = {seqlen_q, seqlen_k, as_int("block_q", block_q), as_int("block_k", block_k), view_of(indptr), view_of(indices), view_of(blocks)};
    params.tile = as_int("tile", tile);
    params.mask = mask_of(mask, spans);
    params.batch = batch;
    params.heads_q = as_int("heads_q", heads_q);
    Context context = host_context();
    return tensors_of(tilewise::plan_of_bsr(params, context));
  });
}

TorchTensor copy_of(const TensorView& view, const Shape& absent, Dtype absent_dtype) {
  if (!view.has_value()) return empty_on_host(absent, absent_dtype);
  TorchTensor tensor = empty_on_host(view.shape(), view.dtype());
  const auto* from = static_cast<const std::byte*>(view.raw());
  std::copy(from, from + static_cast<size_t>(view.numel()) * size_of(view.dtype()), static_cast<std::byte*>(tensor.mutable_data_ptr()));
  return tensor;
}

std::tuple<TorchTensor, TorchTensor, TorchTensor> plan_to_bsr(const TorchTensor& plan, const TorchTensor& layout, int64_t block_q, int64_t block_k,
                                                              bool has_mask) {
  return guarded([&] {
    Context context = host_context();
    const OwnedBsr owned = bsr_of_plan({plan_of(plan, layout), as_int("block_q", block_q), as_int("block_k", block_k), has_mask}, context);
    return std::tuple(copy_of(owned.bsr.indptr, {0}, Dtype::i32), copy_of(owned.bsr.indices, {0}, Dtype::i32),
                      copy_of(owned.bsr.mask, {0}, Dtype::boolean));
  });
}

TorchTensor plan_to_bits(const TorchTensor& plan, const TorchTensor& layout, bool pooled) {
  return guarded([&] { return copy_of(to_bits(plan_of(plan, layout), pooled).view, {0}, Dtype::boolean); });
}

TorchTensor plan_to_tiles(const TorchTensor& plan, const TorchTensor& layout, int64_t tile_q, int64_t tile_k) {
  return guarded(
      [&] { return copy_of(to_tiles(plan_of(plan, layout), as_int("tile_q", tile_q), as_int("tile_k", tile_k)).view, {0}, Dtype::boolean); });
}

PlanTensors plan_complete(const TorchTensor& plan, const TorchTensor& layout, int64_t tile) {
  return guarded([&] {
    Context context = host_context();
    return tensors_of(complete(plan_of(plan, layout), context, as_int("tile", tile)));
  });
}

PlanTensors plan_retile(const TorchTensor& plan, const TorchTensor& layout, int64_t tile_q, int64_t tile_k) {
  return guarded([&] {
    Context context = host_context();
    return tensors_of(retile(plan_of(plan, layout), context, as_int("tile_q", tile_q), as_int("tile_k", tile_k)));
  });
}

PlanTensors plan_set(const TorchTensor& plan_a, const TorchTensor& layout_a, const TorchTensor& plan_b, const TorchTensor& layout_b, bool is_union) {
  return guarded([&] {
    Context context = host_context();
    const Plan a = plan_of(plan_a, layout_a), b = plan_of(plan_b, layout_b);
    return tensors_of(is_union ? unite(a, b, context) : intersect(a, b, context));
  });
}

PlanTensors plan_combine(const std::vector<TorchTensor>& plans, const std::vector<TorchTensor>& layouts, const Ints& plan_of_head) {
  return guarded([&] {
    check(plans.size() == layouts.size(), Error::Kind::value, "combine_heads: a plan is two tensors");
    std::vector<Plan> handles;
    for (size_t i = 0; i < plans.size(); ++i) handles.push_back(plan_of(plans[i], layouts[i]));
    std::vector<int> heads;
    for (const int64_t entry : plan_of_head) heads.push_back(as_int("combine_heads: plan_of_head", entry));
    Context context = host_context();
    return tensors_of(combine_heads(handles, heads, context));
  });
}

/// One number about a plan, or about one of its heads (head >= 0), as a tensor of one i64.
TorchTensor plan_count(const TorchTensor& plan, const TorchTensor& layout, const Text& what, int64_t head) {
  return guarded([&] {
    const Plan handle = plan_of(plan, layout);
    const int h = as_int("head", head);
    int64_t number = 0;
    if (what.value == "reads") {
      number = head < 0 ? reads(handle) : reads(handle, h);
    } else if (what.value == "allowed_pairs") {
      number = head < 0 ? allowed_pairs(handle) : allowed_pairs(handle, h);
    } else if (what.value == "max_runs") {
      number = max_runs(handle);
    } else if (what.value == "empty_rows") {
      number = empty_rows(handle);
    } else if (what.value == "content_hash") {
      number = static_cast<int64_t>(content_hash(handle));
    } else {
      fail(Error::Kind::value, "plan_count: what is '", what.value, "', takes reads, allowed_pairs, max_runs, empty_rows or content_hash");
    }
    TorchTensor result = empty_on_host({1}, Dtype::i64);
    *static_cast<int64_t*>(result.mutable_data_ptr()) = number;
    return result;
  });
}

void plan_validate(const TorchTensor& plan, const TorchTensor& layout, const Ints& allowed, const MaybeTensor& spans) {
  guarded([&] {
    if (allowed.empty()) {
      validate(plan_of(plan, layout));
    } else {
      validate(plan_of(plan, layout), mask_of(allowed, spans));
    }
  });
}

void plan_save(const TorchTensor& plan, const TorchTensor& layout, const Text& path) {
  guarded([&] { save_plan(plan_of(plan, layout), path.value); });
}

PlanTensors plan_load(const Text& path) {
  return guarded([&] { return tensors_of(load_plan(path.value)); });
}

/// One line a method: name, source, summary, needs_v, is_causal_only; then for each option a line that begins with a tab: name, default, range, help.
std::string methods_text() {
  return guarded([] {
    std::ostringstream text;
    for (const MethodInfo& info : methods()) {
      text << info.name << '\t' << info.source << '\t' << info.summary << '\t' << info.needs_v << '\t' << info.is_causal_only << '\n';
      for (const OptionInfo& option : info.options) {
        constexpr const char* kTypes[] = {"bool", "int", "float", "str"};
        text << '\t' << option.name << '\t' << kTypes[option.default_value.index()] << '\t' << method::to_text(option.default_value) << '\t'
             << option.range << '\t' << option.help << '\n';
      }
    }
    return text.str();
  });
}

void check_method(const Text& method, const Text& options) {
  guarded([&] { check_options(method.value, parse_options(method.value, options.value)); });
}

/// version, commit, target.
std::string about() {
  return guarded(
      [] { return std::string(version()) + '\t' + std::string(commit()) + '\t' + std::string(machine::cpu::name(machine::cpu::current_target())); });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tilewise, m) {
  m.def("plan_with(Tensor q, Tensor k, Tensor? v, str method, str options, int[] mask, Tensor? spans, Tensor? order_q, Tensor? order_k, float? "
        "scale, float softcap, "
        "int layer, int seed) -> (Tensor, Tensor)");
  m.def("plan_of_bits(Tensor bits, int tile, int[] mask, Tensor? spans, int batch, int heads_q) -> (Tensor, Tensor)");
  m.def("plan_of_bsr(Tensor indptr, Tensor indices, Tensor? blocks, int seqlen_q, int seqlen_k, int block_q, int block_k, int tile, int[] mask, "
        "Tensor? spans, int batch, "
        "int heads_q) -> (Tensor, Tensor)");
  m.def("plan_to_bsr(Tensor plan, Tensor layout, int block_q, int block_k, bool has_mask) -> (Tensor, Tensor, Tensor)");
  m.def("plan_to_bits(Tensor plan, Tensor layout, bool pooled) -> Tensor");
  m.def("plan_to_tiles(Tensor plan, Tensor layout, int tile_q, int tile_k) -> Tensor");
  m.def("plan_complete(Tensor plan, Tensor layout, int tile) -> (Tensor, Tensor)");
  m.def("plan_retile(Tensor plan, Tensor layout, int tile_q, int tile_k) -> (Tensor, Tensor)");
  m.def("plan_set(Tensor plan_a, Tensor layout_a, Tensor plan_b, Tensor layout_b, bool is_union) -> (Tensor, Tensor)");
  m.def("plan_combine(Tensor[] plans, Tensor[] layouts, int[] plan_of_head) -> (Tensor, Tensor)");
  m.def("plan_count(Tensor plan, Tensor layout, str what, int head) -> Tensor");
  m.def("plan_validate(Tensor plan, Tensor layout, int[] allowed, Tensor? spans) -> ()");
  m.def("plan_save(Tensor plan, Tensor layout, str path) -> ()");
  m.def("plan_load(str path) -> (Tensor, Tensor)");
  m.def("methods() -> str");
  m.def("check_method(str method, str options) -> ()");
  m.def("about() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(tilewise, CompositeExplicitAutograd, m) {
  m.impl("plan_with", TORCH_BOX(&plan_with_method));
  m.impl("plan_of_bits", TORCH_BOX(&plan_of_bits));
  m.impl("plan_of_bsr", TORCH_BOX(&plan_of_bsr));
  m.impl("plan_to_bsr", TORCH_BOX(&plan_to_bsr));
  m.impl("plan_to_bits", TORCH_BOX(&plan_to_bits));
  m.impl("plan_to_tiles", TORCH_BOX(&plan_to_tiles));
  m.impl("plan_complete", TORCH_BOX(&plan_complete));
  m.impl("plan_retile", TORCH_BOX(&plan_retile));
  m.impl("plan_set", TORCH_BOX(&plan_set));
  m.impl("plan_combine", TORCH_BOX(&plan_combine));
  m.impl("plan_count", TORCH_BOX(&plan_count));
  m.impl("plan_validate", TORCH_BOX(&plan_validate));
  m.impl("plan_save", TORCH_BOX(&plan_save));
  m.impl("plan_load", TORCH_BOX(&plan_load));
  m.impl("methods", TORCH_BOX(&methods_text));
  m.impl("check_method", TORCH_BOX(&check_method));
  m.impl("about", TORCH_BOX(&about));
}

}  // namespace tilewise::ops
