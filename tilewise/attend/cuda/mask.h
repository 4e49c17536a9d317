// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/machine/cuda/block.h"

// The mask of a plan as kernels of any GPU ask it. `Args` is a kernel's parameter that has the fields of MaskView and, in tokens, seqlen_q and seqlen_k.
namespace tilewise::attend::cuda {

/// Query i is token t = i + Sk - Sq. It sees [t - left, t + right] and [0, sink), nothing past t + right.
struct Band {
  int64_t left, right, sink;
};
struct GridAxis {
  int length, window, stride, dilation, is_causal;
};

enum MaskForm : int { bands_form, spans_form, grids_form };

constexpr int kMaskClasses = 16, kMaskAxes = 4, kMaskHeads = 256;

struct MaskView {
  MaskForm form = bands_form;
  Band bands[kMaskClasses] = {};
  const int32_t* spans = nullptr;  // [classes, spans_batch, Sq, 4]
  int spans_batch = 1;
  GridAxis grids[kMaskClasses][kMaskAxes] = {};
  int num_axes[kMaskClasses] = {};
  int64_t grid_first = 0;
  uint8_t head_class[kMaskHeads] = {};
};

/// The keys that a query sees, as two ranges of tokens.
struct KeyRanges {
  int start[2], stop[2];
  TILEWISE_HOST_DEVICE bool holds(int key) const { return (key >= start[0] && key < stop[0]) || (key >= start[1] && key < stop[1]); }
};

/// What bands or spans let a query see.
template <class Args>
TILEWISE_HOST_DEVICE KeyRanges ranges_of_query(const Args& args, int mask_class, int batch, int query) {
  if (args.form == spans_form) {
    const int64_t entry = int64_t{mask_class} * args.spans_batch + (args.spans_batch == 1 ? 0 : batch);
    const int32_t* const span = args.spans + (entry * args.seqlen_q + query) * 4;
    return {{span[0], span[2]}, {span[1], span[3]}};
  }
  const Band band = args.bands[mask_class];
  const int64_t token = int64_t{query} + args.seqlen_k - args.seqlen_q;
  const auto cut = [&](int64_t key) { return static_cast<int>(key < 0 ? 0 : key > args.seqlen_k ? int64_t{args.seqlen_k} : key); };
  const int stop = cut(token + band.right + 1), sink = cut(band.sink);
  return {{cut(token - band.left), 0}, {stop, stop < sink ? stop : sink}};
}

/// One axis of a neighbourhood: GNA, arXiv 2504.16922, section 3. The leader of a stride group places the window, dilation groups are apart.
TILEWISE_HOST_DEVICE inline bool axis_sees(const GridAxis& axis, int query, int key) {
  const int group = query % axis.dilation;
  if (key % axis.dilation != group) return false;
  const int length = (axis.length - group + axis.dilation - 1) / axis.dilation;
  const int cell = query / axis.dilation, other = key / axis.dilation;
  const int first = cell / axis.stride * axis.stride;
  if (axis.is_causal) {
    const int last = first + axis.stride - 1, leader = last < length - 1 ? last : length - 1;
    return other > leader - axis.window && other <= cell;
  }
  const int middle = first + axis.stride / 2, leader = middle < length - 1 ? middle : length - 1;
  const int left = leader - axis.window / 2 > 0 ? leader - axis.window / 2 : 0;
  const int start = left < length - axis.window ? left : length - axis.window;
  return other >= start && other < start + axis.window;
}

template <class Args>
TILEWISE_HOST_DEVICE bool grid_sees(const Args& args, int mask_class, int query, int key) {
  const int axes = args.num_axes[mask_class];
  int cells = 1;  // at most Sk of them matter
  for (int i = 0; i < axes; ++i) cells *= args.grids[mask_class][i].length;
  const int64_t shift = int64_t{args.seqlen_k} - args.seqlen_q - args.grid_first;
  if (query + shift < 0 || query + shift >= cells || key < args.grid_first || key - args.grid_first >= cells) {
    return true;  // what stands before and after the grid sees all and is seen by all
  }
  int q = static_cast<int>(query + shift), k = static_cast<int>(key - args.grid_first);
  TILEWISE_NO_UNROLL for (int i = 0; i < axes; ++i) {
    cells /= args.grids[mask_class][i].length;
    if (!axis_sees(args.grids[mask_class][i], q / cells, k / cells)) return false;
    q %= cells;
    k %= cells;
  }
  return true;
}

}  // namespace tilewise::attend::cuda
