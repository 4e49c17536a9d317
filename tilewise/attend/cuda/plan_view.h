// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <optional>
#include <sstream>
#include <string>
#include <utility>

#include "tilewise/attend/cuda/mask.h"
#include "tilewise/plan/plan.h"

// A plan on the device as kernels of any GPU read it, and what of it none of them reads.
namespace tilewise::attend::cuda {

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

/// Kernels walk the arrays of a list as they lie.
inline std::optional<std::string> refusal_of_list(const char* name, const RunList& list) {
  for (const TensorView* view : {&list.begin, &list.count, &list.start, &list.stop, &list.rows}) {
    if (view->has_value() && !view->is_contiguous()) return text("the plan's ", name, " list has an array that is not contiguous; pack the plan");
  }
  return std::nullopt;
}

/// A direction's lists, orders, spans and classes of heads.
inline std::optional<std::string> refusal_of_arrays(const PlanData& plan, const Lists& lists) {
  for (const auto& [name, list] : {std::pair{"whole", &lists.whole}, std::pair{"masked", &lists.masked}, std::pair{"picked", &lists.picked}}) {
    if (auto reason = refusal_of_list(name, *list)) return reason;
  }
  for (const TensorView* view : {&lists.edge, &plan.order_q.token, &plan.order_k.token, &plan.mask.spans}) {
    if (view->has_value() && !view->is_contiguous()) return "the plan's edges, orders or spans are not contiguous; pack the plan";
  }
  const Mask& mask = plan.mask;
  if (mask.bands.size() > kMaskClasses || mask.grids.size() > kMaskClasses) {
    return text("the mask has more than ", kMaskClasses, " classes of heads");
  }
  if (mask.head_class.size() > kMaskHeads) return text("the mask has classes for more than ", kMaskHeads, " heads");
  for (const auto& grid : mask.grids) {
    if (grid.size() > kMaskAxes) return text("the mask has a grid of ", grid.size(), " axes, above ", kMaskAxes);
  }
  return std::nullopt;
}

/// Sides wider than any tensor are cut to what 64-bit arithmetic on tokens can add up.
inline Band band_view(const Mask::Band& from) {
  const auto cut = [](int64_t x) { return std::clamp(x, -(int64_t{1} << 40), int64_t{1} << 40); };
  return {cut(from.left), cut(from.right), cut(from.sink)};
}

/// Fills the fields of a MaskView, which `to` has. The mask has passed refusal_of_arrays().
template <class To>
void set_mask(To& to, const Mask& mask) {
  to.form = mask.spans.has_value() ? spans_form : mask.grids.empty() ? bands_form : grids_form;
  for (size_t c = 0; c < mask.bands.size(); ++c) to.bands[c] = band_view(mask.bands[c]);
  if (mask.spans.has_value()) {
    to.spans = static_cast<const int32_t*>(mask.spans.raw());
    to.spans_batch = static_cast<int>(mask.spans.dim(1));
  }
  for (size_t c = 0; c < mask.grids.size(); ++c) {
    to.num_axes[c] = static_cast<int>(mask.grids[c].size());
    for (size_t i = 0; i < mask.grids[c].size(); ++i) {
      const Mask::Axis& axis = mask.grids[c][i];
      to.grids[c][i] = {axis.length, axis.window, axis.stride, axis.dilation, axis.is_causal};
    }
  }
  to.grid_first = mask.first;
  std::copy(mask.head_class.begin(), mask.head_class.end(), to.head_class);
}

}  // namespace tilewise::attend::cuda
