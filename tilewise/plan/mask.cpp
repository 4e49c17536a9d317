// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/mask.h"

#include <algorithm>
#include <sstream>
#include <vector>

#include "tilewise/plan/rows.h"

namespace tilewise::plan {
namespace {

constexpr int64_t kLimit = int64_t{1} << 40;  // the largest side of a band that is not kAll: sums with tokens stay far from overflow

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

std::array<int32_t, 4> span_of(const Mask& mask, int head, int64_t b, int64_t q) {
  const int64_t bi = mask.spans.dim(1) == 1 ? 0 : b;
  const int c = head_class(mask, head);
  return {mask.spans.at<int32_t>(c, bi, q, 0), mask.spans.at<int32_t>(c, bi, q, 1), mask.spans.at<int32_t>(c, bi, q, 2),
          mask.spans.at<int32_t>(c, bi, q, 3)};
}

int64_t cells(const std::vector<Mask::Axis>& grid) {
  int64_t total = 1;
  for (const Mask::Axis& axis : grid) total *= axis.length;
  return total;
}

bool grid_allows(const std::vector<Mask::Axis>& grid, int64_t first, int64_t q, int64_t k) {
  int64_t cell_q = q - first, cell_k = k - first;
  const int64_t total = cells(grid);
  if (cell_q < 0 || cell_q >= total || cell_k < 0 || cell_k >= total) return true;
  for (size_t i = grid.size(); i-- > 0;) {
    if (!axis_window(grid[i], cell_q % grid[i].length).contains(cell_k % grid[i].length)) return false;
    cell_q /= grid[i].length;
    cell_k /= grid[i].length;
  }
  return true;
}

}  // namespace

AxisWindow axis_window(const Mask::Axis& axis, int64_t coordinate) {
  const int64_t residue = coordinate % axis.dilation, i = coordinate / axis.dilation;
  const int64_t length = axis.length / axis.dilation + (residue < axis.length % axis.dilation ? 1 : 0);
  const int64_t left = axis.window / 2, right = axis.window / 2 + axis.window % 2 - 1;
  int64_t start, stop;
  if (axis.is_causal) {
    const int64_t leader = std::min<int64_t>(i / axis.stride * axis.stride + axis.stride - 1, length - 1);
    start = std::max<int64_t>(leader - left - right, 0);
    stop = std::min<int64_t>(i + 1, length);
  } else {
    const int64_t leader = std::min<int64_t>(i / axis.stride * axis.stride + axis.stride / 2, length - 1);
    start = std::max<int64_t>(leader - left, 0);
    if (leader + right >= length) start = length - axis.window;
    stop = start + axis.window;
  }
  return {start * axis.dilation + residue, (stop - 1) * axis.dilation + residue + 1, axis.dilation};
}

bool allows(const Mask& mask, int head, int64_t b, int64_t q, int64_t k, int64_t shift) {
  if (!mask.bands.empty()) return band_allows(mask.bands[static_cast<size_t>(head_class(mask, head))], q + shift, k);
  if (mask.spans.has_value()) {
    const auto span = span_of(mask, head, b, q);
    return (k >= span[0] && k < span[1]) || (k >= span[2] && k < span[3]);
  }
  return grid_allows(mask.grids[static_cast<size_t>(head_class(mask, head))], mask.first, q + shift, k);
}

VisibleKeys visible_keys(const Mask& mask, int head, int64_t b, int64_t q, int64_t shift, int64_t seqlen_k) {
  VisibleKeys keys;
  const auto clamp = [&](int64_t token) { return std::clamp<int64_t>(token, 0, seqlen_k); };
  if (!mask.bands.empty()) {
    const Mask::Band& band = mask.bands[static_cast<size_t>(head_class(mask, head))];
    const int64_t token = q + shift;
    const int64_t stop = band.right == Mask::kAll ? seqlen_k : clamp(token + band.right + 1);
    const int64_t sink = std::min(clamp(band.sink), stop);
    const int64_t start = band.left == Mask::kAll ? 0 : std::min(clamp(token - band.left), stop);
    if (start <= sink) {
      keys.stop[0] = stop;
      keys.start[1] = keys.stop[1] = stop;
    } else {
      keys.stop[0] = sink;
      keys.start[1] = start;
      keys.stop[1] = stop;
    }
    return keys;
  }
  check(mask.spans.has_value(), Error::Kind::unsupported, "plan::visible_keys: a neighbourhood of a grid is not two ranges of keys; ask allows()");
  const auto span = span_of(mask, head, b, q);
  std::array<int64_t, 2> start{clamp(span[0]), clamp(span[2])}, stop{clamp(span[1]), clamp(span[3])};
  if (start[0] >= stop[0]) start[0] = stop[0] = 0;
  if (start[1] >= stop[1]) start[1] = stop[1] = seqlen_k;
  if (start[1] < start[0]) {
    std::swap(start[0], start[1]);
    std::swap(stop[0], stop[1]);
  }
  if (start[0] < stop[0] && start[1] < stop[1] && start[1] <= stop[0]) {  // touching or overlapping: one range
    stop[0] = std::max(stop[0], stop[1]);
    start[1] = stop[1] = seqlen_k;
  }
  return {start, stop};
}

bool is_full(const Mask& mask, int head) {
  if (mask.bands.empty()) return false;
  const Mask::Band& band = mask.bands[static_cast<size_t>(head_class(mask, head))];
  return band.left == Mask::kAll && band.right == Mask::kAll;
}

int num_classes(const Mask& mask) {
  if (!mask.bands.empty()) return static_cast<int>(mask.bands.size());
  if (mask.spans.has_value()) return static_cast<int>(mask.spans.dim(0));
  return static_cast<int>(mask.grids.size());
}

std::optional<std::string> mask_fault(const Mask& mask, int64_t batch, int heads_q, int64_t seqlen_q, int64_t seqlen_k) {
  const int forms = (mask.bands.empty() ? 0 : 1) + (mask.spans.has_value() ? 1 : 0) + (mask.grids.empty() ? 0 : 1);
  if (forms != 1) return text("the mask has ", forms, " forms, takes one of bands, spans and grids");
  if (mask.spans.has_value()) {
    const TensorView& spans = mask.spans;
    if (spans.device().type != Device::Type::cpu || spans.dtype() != Dtype::i32 || spans.rank() != 4 ||
        (spans.dim(1) != 1 && spans.dim(1) != batch) || spans.dim(2) != seqlen_q || spans.dim(3) != 4) {
      return text("mask.spans is ", spans.dtype(), " ", spans.shape(), ", takes i32 [C, 1 or ", batch, ", ", seqlen_q, ", 4]");
    }
  }
  const int classes = num_classes(mask);
  if (classes < 1 || classes > 16) return text("the mask has ", classes, " classes of heads, takes 1 to 16");
  if (!mask.head_class.empty() && mask.head_class.size() != static_cast<size_t>(heads_q)) {
    return text("mask.head_class names ", mask.head_class.size(), " heads, the plan has ", heads_q);
  }
  for (size_t head = 0; head < mask.head_class.size(); ++head) {
    if (mask.head_class[head] >= classes) return text("head ", head, " has mask class ", int{mask.head_class[head]}, ", the mask has ", classes);
  }
  for (const Mask::Band& band : mask.bands) {
    const auto is_side = [](int64_t side) { return side == Mask::kAll || (side >= -kLimit && side <= kLimit); };
    if (!is_side(band.left) || !is_side(band.right) || band.sink < 0 || band.sink > kLimit) {
      return text("a band has left ", band.left, ", right ", band.right, ", sink ", band.sink,
                  ", takes sides of at most 2^40 (or Mask::kAll) and a sink of 0 to 2^40");
    }
  }
  if (mask.spans.has_value()) {
    for (int64_t c = 0; c < mask.spans.dim(0); ++c) {
      for (int64_t b = 0; b < mask.spans.dim(1); ++b) {
        for (int64_t q = 0; q < seqlen_q; ++q) {
          for (int64_t part = 0; part < 4; part += 2) {
            const int64_t start = mask.spans.at<int32_t>(c, b, q, part), stop = mask.spans.at<int32_t>(c, b, q, part + 1);
            if (start < 0 || start > stop || stop > seqlen_k)
              return text("query ", q, " has the span [", start, ", ", stop, "), takes spans within [0, ", seqlen_k, ")");
          }
        }
      }
    }
  }
  for (const std::vector<Mask::Axis>& grid : mask.grids) {
    if (grid.empty() || grid.size() > 4 || grid.size() != mask.grids[0].size())
      return text("a grid has ", grid.size(), " axes, takes 1 to 4, the same in every class");
    int64_t total = 1;
    for (const Mask::Axis& axis : grid) {
      const bool is_axis = axis.length >= 1 && axis.dilation >= 1 && axis.window >= 1 && axis.stride >= 1 && axis.stride <= axis.window &&
                           static_cast<int64_t>(axis.window) * axis.dilation <= axis.length;
      if (!is_axis) {
        return text("an axis has length ", axis.length, ", window ", axis.window, ", stride ", axis.stride, ", dilation ", axis.dilation,
                    "; takes a stride of 1 to window, and window x dilation of at most length");
      }
      total *= axis.length;
      if (total > seqlen_k) break;
    }
    if (mask.first < 0 || mask.first > seqlen_k || mask.first + total > seqlen_k)
      return text("the grid takes tokens [", mask.first, ", ", static_cast<uint64_t>(mask.first) + static_cast<uint64_t>(total), "), there are ",
                  seqlen_k);
  }
  return std::nullopt;
}

}  // namespace tilewise::plan
