// SPDX-License-Identifier: Apache-2.0
// Backward attention of one block of lanes against the rows that meet it, compiled once per target. Five products, all the micro-kernel of
// product-inl.h (keys in lanes; K^T, V^T packed once a block):
//   S = Q K^T, dP = dO V^T                 rows are broadcast along themselves
//   P = exp(S - lse), dS = P (dP - delta)  on the accumulators, before they are stored
//   dV^T += dO^T P, dK^T += Q^T dS         neighbouring channels of each row are broadcast
//   dQ += dS K                             rows of dS are broadcast, K as it lies is the vector operand
// The softmax scale of dQ and dK is left to whoever writes them. Rows of sums are added in the order of the walk.
// Source  FlashAttention-2, arXiv 2307.08691, Algorithm 2, with the loop over queries taken from the plan.
#include "tilewise/attend/cpu/backward_block.h"
#include "tilewise/machine/cpu/product-inl.h"
#include "tilewise/machine/cpu/simd.h"

namespace tilewise::attend::cpu::TILEWISE_TARGET {
namespace {

using namespace machine::cpu::TILEWISE_TARGET;

constexpr int kLanes = kHeldLanes;
constexpr int kGroups = kLanes / kGroupLanes;

TILEWISE_INLINE uint64_t lane_bits(int lanes) { return lanes >= 64 ? ~uint64_t{0} : (uint64_t{1} << lanes) - 1; }

// Rows [0, count) of a strip; those behind, up to a multiple of kRowTail, repeat the last and meet no lane.
struct Strip {
  int count, padded;
  int32_t slot[kRowStrip];
  LaneBits bits[kRowStrip];
  float shift[kRowStrip], delta[kRowStrip];
  const float *x[kRowStrip], *y[kRowStrip];            // 32-bit units along the row
  const float *x_pairs[kRowStrip], *y_pairs[kRowStrip];  // as the products across rows read them: the rows, or pairs of bf16 rows
};

// Where a walk over a side's segments stands.
struct Walk {
  int64_t segment = 0;
  int32_t row = 0;  // next row of that segment
};

// Carved out of the workspace. Lane operands are groups of kGroupLanes one behind the other, [units][kGroupLanes] each.
struct Workspace {
  float *x, *y;                // packed lanes, [kGroups][head_dim][kGroupLanes]
  float *x_rows, *y_rows;      // the lanes as they lie, for sums over lanes: [channel group][kLanes][vectors], see copy_rows
  float *dx, *dy;              // [kGroups][head_dim][kGroupLanes]
  float *p, *ds;               // across rows: [kGroups][kRowStrip][kGroupLanes]
  float *p_lanes, *ds_lanes;   // along lanes, bf16 alone: [kGroups][kRowStrip][kGroupLanes / 2]
  float *pairs_x, *pairs_y;    // [kRowStrip / 2][head_dim] bf16 rows by pairs; scratch before the walk

  static constexpr int64_t floats(int64_t d, int64_t dv) {
    return kLanes * (2 * (d + dv) + sum_stride(d) + sum_stride(dv)) + 3 * kRowStrip * kLanes + kRowStrip / 2 * (d + dv);
  }
  Workspace(std::byte* bytes, int64_t d, int64_t dv) {
    float* next = reinterpret_cast<float*>(bytes);
    const auto take = [&next](int64_t floats) {
      float* const here = next;
      next += floats;
      return here;
    };
    x = take(kLanes * d);
    y = take(kLanes * dv);
    x_rows = take(kLanes * sum_stride(d));
    y_rows = take(kLanes * sum_stride(dv));
    dx = take(kLanes * d);
    dy = take(kLanes * dv);
    p = take(kRowStrip * kLanes);
    ds = take(kRowStrip * kLanes);
    p_lanes = take(kRowStrip * kLanes / 2);
    ds_lanes = take(kRowStrip * kLanes / 2);
    pairs_x = take(kRowStrip / 2 * d);
    pairs_y = take(kRowStrip / 2 * dv);
  }
};

size_t workspace_bytes(int head_dim, int head_dim_v) { return static_cast<size_t>(Workspace::floats(head_dim, head_dim_v)) * sizeof(float); }

struct F32Rows {
  using In = float;
  using Op = F32;
};
#if TILEWISE_TARGET_LEVEL >= 3
struct Bf16Rows {
  using In = uint16_t;
  using Op = Bf16Dot;
};
constexpr uint16_t kZeros[256] = {};  // the partner of a last odd row
#endif

template <class In>
TILEWISE_INLINE const float* units_at(const void* base, int64_t element) {
  return reinterpret_cast<const float*>(static_cast<const In*>(base) + element);
}

// ---- Strips ----

// The next rows, up to kRowStrip; false when none are left.
TILEWISE_INLINE bool next_rows(const RowSide& side, Walk& walk, Strip& strip) {
  int count = 0;
  while (count < kRowStrip && walk.segment < side.num_segments) {
    const RowSegment& segment = side.segments[walk.segment];
    if (walk.row < segment.start) walk.row = segment.start;
    for (; walk.row < segment.stop && count < kRowStrip; ++walk.row, ++count) {
      strip.slot[count] = walk.row;
      strip.bits[count] = segment.row_bits < 0 ? segment.bits : side.row_bits[segment.row_bits + (walk.row - segment.start)];
    }
    if (walk.row == segment.stop) ++walk.segment;
  }
  strip.count = count;
  strip.padded = (count + kRowTail - 1) / kRowTail * kRowTail;
  return count > 0;
}

#if TILEWISE_TARGET_LEVEL >= 3
// Lays the strip's rows out by pairs and points `pairs` at them. Arrays of pairs made once for all blocks cost more: they double what the caches bring.
TILEWISE_INLINE void make_pairs(const Strip& strip, const void* rows, int64_t stride, int channels, float* made, const float** pairs) {
  const uint16_t* const base = static_cast<const uint16_t*>(rows);
  for (int i = 0; i < strip.count; i += 2) {
    float* const row = made + int64_t{i / 2} * channels;
    const uint16_t* const odd = i + 1 < strip.count ? base + strip.slot[i + 1] * stride : kZeros;
    interleave_bf16(base + strip.slot[i] * stride, odd, channels, reinterpret_cast<uint16_t*>(row));
    pairs[i / 2] = row;
  }
}
#endif

template <class Dtype>
TILEWISE_INLINE void find_rows([[maybe_unused]] const BackwardBlock& block, const RowSide& side, [[maybe_unused]] const Workspace& workspace,
                               Strip& strip) {
  using In = typename Dtype::In;
  for (int i = 0; i < strip.count; ++i) {
    strip.x[i] = units_at<In>(side.x, strip.slot[i] * side.x_stride);
    strip.y[i] = units_at<In>(side.y, strip.slot[i] * side.y_stride);
    strip.shift[i] = side.shift != nullptr ? side.shift[strip.slot[i]] : 0;
    strip.delta[i] = side.delta != nullptr ? side.delta[strip.slot[i]] : 0;
  }
  for (int i = strip.count; i < strip.padded; ++i) {
    strip.x[i] = strip.x[strip.count - 1];
    strip.y[i] = strip.y[strip.count - 1];
    strip.shift[i] = strip.delta[i] = 0;
    strip.bits[i] = {};
  }
#if TILEWISE_TARGET_LEVEL >= 3
  if constexpr (Dtype::Op::kPerUnit == 2) {
    make_pairs(strip, side.x, side.x_stride, block.head_dim, workspace.pairs_x, strip.x_pairs);
    make_pairs(strip, side.y, side.y_stride, block.head_dim_v, workspace.pairs_y, strip.y_pairs);
  }
#endif
}

// ---- P and dS ----

// What a tile of R rows by V vectors of lanes needs beside its products.
struct Terms {
  float scale_log2;  // of S in the exponent, without softcap
  float inner, outer_log2;  // with softcap: exponent = outer_log2 * tanh(inner * S)
  bool has_cap;
};

// Where the tile's rows go. For f32 one layout serves both kinds of products; bf16 rounds once and is laid out by pairs of rows and by pairs of lanes.
template <class Op, int R, int V>
TILEWISE_INLINE void store_tile(const float* tile, int i, float* across, [[maybe_unused]] float* along) {
  if constexpr (Op::kPerUnit == 1) {
    TILEWISE_UNROLL
    for (int n = 0; n < R * V; ++n) store(across + (i * V + n) * kWidth, load(tile + n * kWidth));
  } else {
#if TILEWISE_TARGET_LEVEL >= 3
    static_assert(V == 2);
    TILEWISE_UNROLL
    for (int r = 0; r < R; r += 2) {
      Vf even[V], odd[V];
      TILEWISE_UNROLL
      for (int j = 0; j < V; ++j) {
        even[j] = load(tile + (r * V + j) * kWidth);
        odd[j] = load(tile + ((r + 1) * V + j) * kWidth);
        if (across != nullptr) store(across + ((i + r) / 2 * V + j) * kWidth, narrow_pairs(even[j], odd[j]));
      }
      if (along != nullptr) {
        store(along + (i + r) * kWidth, narrow(even[0], even[1]));
        store(along + (i + r + 1) * kWidth, narrow(odd[0], odd[1]));
      }
    }
#endif
  }
}

// Where P and dS of one group of lanes go. With keys in lanes P is used up before the next group: all groups share one place, which stays in L1.
template <class Op, bool kKeysAreLanes>
struct Places {
  static constexpr int64_t kFloats = kRowStrip * kGroupLanes;
  float *p_across, *ds_across, *p_along, *ds_along;
  Places(const Workspace& workspace, int64_t group) {
    const bool is_f32 = Op::kPerUnit == 1;
    p_across = kKeysAreLanes ? workspace.p : is_f32 ? workspace.p + group * kFloats : nullptr;
    p_along = kKeysAreLanes || is_f32 ? nullptr : workspace.p_lanes + group * kFloats / 2;
    ds_across = workspace.ds + group * kFloats;
    ds_along = is_f32 ? nullptr : workspace.ds_lanes + group * kFloats / 2;
  }
};

// Rows that meet no lane of the group.
template <class Op, bool kKeysAreLanes, int R, int V>
TILEWISE_INLINE void clear_tile(const Workspace& workspace, int group, int i) {
  constexpr int kFloats = R * V * kWidth;
  alignas(64) float none[kFloats];
  for (int n = 0; n < R * V; ++n) store(none + n * kWidth, zero());
  const Places<Op, kKeysAreLanes> places(workspace, group);
  store_tile<Op, R, V>(none, i, places.p_across, places.p_along);
  store_tile<Op, R, V>(none, i, places.ds_across, places.ds_along);
}

// Rows [i, i + R) of the strip against one group of lanes. IsWhole: every row meets every lane of the group. IsPlain: neither softcap nor bias.
template <class Dtype, bool kKeysAreLanes, bool IsWhole, bool IsPlain, int R, int V>
TILEWISE_INLINE void score_tile(const BackwardBlock& block, const Workspace& workspace, const Terms& terms, const Strip& strip, int group, int i) {
  using Op = typename Dtype::Op;
  constexpr int kPerUnit = Op::kPerUnit;
  const int first = group * V * kWidth;
  const int64_t units_x = block.head_dim / kPerUnit, units_y = block.head_dim_v / kPerUnit;
  alignas(64) float p[R * V * kWidth];
  alignas(64) float slope[IsPlain ? 1 : R * V * kWidth];
  Vf acc[R][V];
  clear(acc);
  multiply_along<Op>(acc, strip.x + i, units_x, workspace.x + int64_t{group} * units_x * V * kWidth);
  TILEWISE_UNROLL
  for (int r = 0; r < R; ++r) {
    TILEWISE_UNROLL
    for (int j = 0; j < V; ++j) {
      Vf exponent;
      if constexpr (IsPlain) {
        const Vf shift = kKeysAreLanes ? broadcast_at(strip.shift + i + r) : load(block.lanes.shift + first + j * kWidth);
        exponent = fma(acc[r][j], broadcast(terms.scale_log2), shift);
      } else {
        const Vf shift = add(broadcast_at(strip.shift + i + r), load(block.lanes.shift + first + j * kWidth));
        Vf cap_slope = broadcast(1.0f);
        if (terms.has_cap) {
          const Vf t = tanh(mul(acc[r][j], broadcast(terms.inner)));
          exponent = fma(t, broadcast(terms.outer_log2), shift);
          cap_slope = sub(cap_slope, mul(t, t));
        } else {
          exponent = fma(acc[r][j], broadcast(terms.scale_log2), shift);
        }
        store(slope + (r * V + j) * kWidth, cap_slope);
      }
      Vf value = IsWhole ? exp2_clamped(exponent) : exp2(exponent);
      if constexpr (!IsWhole) value = select(mask_of_bits(strip.bits[i + r].word[first / 64] >> (first % 64 + j * kWidth)), value, zero());
      store(p + (r * V + j) * kWidth, value);
    }
  }
  const Places<Op, kKeysAreLanes> places(workspace, group);
  store_tile<Op, R, V>(p, i, places.p_across, places.p_along);

  clear(acc);
  multiply_along<Op>(acc, strip.y + i, units_y, workspace.y + int64_t{group} * units_y * V * kWidth);
  TILEWISE_UNROLL
  for (int r = 0; r < R; ++r) {
    TILEWISE_UNROLL
    for (int j = 0; j < V; ++j) {
      const Vf delta = kKeysAreLanes ? broadcast_at(strip.delta + i + r) : load(block.lanes.delta + first + j * kWidth);
      float* const place = p + (r * V + j) * kWidth;
      Vf value = mul(load(place), sub(acc[r][j], delta));
      if constexpr (!IsPlain) value = mul(value, load(slope + (r * V + j) * kWidth));
      if constexpr (!IsWhole) value = select(mask_of_bits(strip.bits[i + r].word[first / 64] >> (first % 64 + j * kWidth)), value, zero());
      store(place, value);
    }
  }
  store_tile<Op, R, V>(p, i, places.ds_across, places.ds_along);
}

template <class Dtype, bool kKeysAreLanes, bool IsPlain, int R, int V>
TILEWISE_INLINE void score_rows(const BackwardBlock& block, const Workspace& workspace, const Terms& terms, const Strip& strip, int group, int i) {
  const int word = group * V * kWidth / 64, place = group * V * kWidth % 64;
  uint64_t every = ~uint64_t{0}, some = 0;
  for (int r = 0; r < R; ++r) {
    every &= strip.bits[i + r].word[word];
    some |= strip.bits[i + r].word[word];
  }
  const uint64_t all = lane_bits(V * kWidth);
  if (((every >> place) & all) == all) {
    score_tile<Dtype, kKeysAreLanes, true, IsPlain, R, V>(block, workspace, terms, strip, group, i);
  } else if (((some >> place) & all) != 0) {
    score_tile<Dtype, kKeysAreLanes, false, IsPlain, R, V>(block, workspace, terms, strip, group, i);
  } else {
    clear_tile<typename Dtype::Op, kKeysAreLanes, R, V>(workspace, group, i);
  }
}

// Asks for rows of the strip that the processor does not foresee: picked keys lie anywhere. The first group asks for the rows after [i, i + step), the last
// for the sums that the strip ends with.
TILEWISE_INLINE void prefetch_picked(const RowSide& side, const Strip& strip, int i, int step, int64_t units_x, int64_t units_y, bool is_first,
                                     bool is_last) {
  const int stop = i + 2 * step < strip.count ? i + 2 * step : strip.count;
  for (int row = i + step; is_first && row < stop; ++row) {
    prefetch(strip.x[row], units_x * 4);
    prefetch(strip.y[row], units_y * 4);
  }
  for (int row = i; is_last && row < i + step && row < strip.count; ++row) {
    prefetch(side.dx + strip.slot[row] * side.dx_stride, side.dx_stride * 4);
    prefetch(side.dy + strip.slot[row] * side.dy_stride, side.dy_stride * 4);
  }
}

template <class Dtype, bool kKeysAreLanes, bool IsPlain>
void score_strip(const BackwardBlock& block, const RowSide& side, const Workspace& workspace, const Terms& terms, const Strip& strip, int group,
                 int groups) {
  for (int i = 0; i < strip.padded;) {
    const int step = step_of(strip.padded - i);
    if constexpr (!kKeysAreLanes) {
      prefetch_picked(side, strip, i, step, block.head_dim / Dtype::Op::kPerUnit, block.head_dim_v / Dtype::Op::kPerUnit, group == 0,
                      group == groups - 1);
    }
    if (step == kRows) {
      score_rows<Dtype, kKeysAreLanes, IsPlain, kRows, kGroupVectors>(block, workspace, terms, strip, group, i);
    } else {
      score_rows<Dtype, kKeysAreLanes, IsPlain, kRowTail, kGroupVectors>(block, workspace, terms, strip, group, i);
    }
    i += step;
  }
}

// ---- Sums of lanes: over the strip's rows ----

template <class Op, int R, int V>
TILEWISE_INLINE void add_channels(const float* const* rows, int count, int64_t d, const float* weights, float* sums) {
  Vf out[R][V];
  clear(out);
  multiply_across<Op>(out, rows, d, count, weights);
  TILEWISE_UNROLL
  for (int r = 0; r < R; ++r) {
    TILEWISE_UNROLL
    for (int j = 0; j < V; ++j) {
      float* const place = sums + ((d + r) * V + j) * kWidth;
      store(place, add(load(place), out[r][j]));
    }
  }
}

template <class Op>
void add_to_lanes(const float* const* rows, int count, int channels, const float* weights, float* sums) {
  const int units = (count + Op::kPerUnit - 1) / Op::kPerUnit;
  for (int d = 0; d < channels;) {
    const int step = step_of(channels - d);
    if (step == kRows) {
      add_channels<Op, kRows, kGroupVectors>(rows, units, d, weights, sums);
    } else {
      add_channels<Op, kRowTail, kGroupVectors>(rows, units, d, weights, sums);
    }
    d += step;
  }
}

// ---- Sums of rows: over the lanes ----

template <class Op, int R, int V>
TILEWISE_INLINE void add_rows_tile(const Strip& strip, int i, int groups, const float* weights, const float* lanes, float* sums, int64_t stride) {
  constexpr int kUnits = kGroupLanes / Op::kPerUnit;
  Vf acc[R][V];
  clear(acc);
  for (int g = 0; g < groups; ++g) {
    const float* rows[R];
    TILEWISE_UNROLL
    for (int r = 0; r < R; ++r) rows[r] = weights + (int64_t{g} * kRowStrip + i + r) * kUnits;
    multiply_along<Op>(acc, rows, kUnits, lanes + int64_t{g} * kUnits * V * kWidth);
  }
  TILEWISE_UNROLL
  for (int r = 0; r < R; ++r) {
    if (i + r >= strip.count) break;
    float* const row = sums + strip.slot[i + r] * stride;
    TILEWISE_UNROLL
    for (int j = 0; j < V; ++j) store(row + j * kWidth, add(load(row + j * kWidth), acc[r][j]));
  }
}

template <class Op, int V>
TILEWISE_INLINE void add_rows_group(const Strip& strip, int groups, const float* weights, const float* lanes, float* sums, int64_t stride) {
  for (int i = 0; i < strip.padded;) {
    const int step = step_of(strip.padded - i);
    if (step == kRows) {
      add_rows_tile<Op, kRows, V>(strip, i, groups, weights, lanes, sums, stride);
    } else {
      add_rows_tile<Op, kRowTail, V>(strip, i, groups, weights, lanes, sums, stride);
    }
    i += step;
  }
}

// sums[row] += weights[row] . lanes. `lanes` as copy_rows lays them out.
template <class Op>
void add_to_rows(const Strip& strip, int groups, int channels, const float* weights, const float* lanes, float* sums, int64_t stride) {
  for (int c = 0; c < channels; c += kGroupLanes) {
    const float* const here = lanes + int64_t{c} * (kLanes / Op::kPerUnit);
    if (channels - c <= kWidth) {
      add_rows_group<Op, 1>(strip, groups, weights, here, sums + c, stride);
    } else {
      add_rows_group<Op, kGroupVectors>(strip, groups, weights, here, sums + c, stride);
    }
  }
}

// ---- Lanes ----

// The lanes turned into [units][kGroupLanes] a group.
template <class Dtype>
TILEWISE_INLINE void pack_lanes(const void* rows, int64_t stride, int count, int channels, int groups, float* packed) {
  constexpr int kPerUnit = Dtype::Op::kPerUnit;
  const int64_t units = channels / kPerUnit;
  for (int g = 0; g < groups; ++g) {
    const float* const from = units_at<typename Dtype::In>(rows, g * kGroupLanes * stride);
    pack_units<kGroupVectors>(from, stride / kPerUnit, count - g * kGroupLanes, units, packed + g * units * kGroupLanes);
  }
}

TILEWISE_INLINE Vf finite_or_zero(Vf x) { return select(equal(sub(x, x), zero()), x, zero()); }

// The lanes as they lie, cut into groups of channels: [group of kGroupLanes channels][lane or pair of lanes][kGroupLanes channels]; a last group of up
// to kWidth channels is kWidth wide. A lane that a row does not meet has weight 0 there: what is not finite is left out, so that it stays out of the
// row's sum (a row that does meet it has a weight that is NaN).
template <class Dtype>
TILEWISE_INLINE void copy_rows(const void* rows, int64_t stride, int count, int channels, [[maybe_unused]] float* scratch, float* out) {
  constexpr int kPerUnit = Dtype::Op::kPerUnit;
  for (int lane = 0; lane < kLanes; lane += kPerUnit) {
    const float* row = nullptr;
    if constexpr (kPerUnit == 1) {
      if (lane < count) row = static_cast<const float*>(rows) + lane * stride;
    } else {
#if TILEWISE_TARGET_LEVEL >= 3
      uint16_t* const finite = reinterpret_cast<uint16_t*>(scratch + channels);
      for (int half = 0; half < 2; ++half) {
        const uint16_t* const from = static_cast<const uint16_t*>(rows) + (lane + half) * stride;
        for (int c = 0; c < channels; ++c) {
          const uint16_t bits = lane + half < count ? from[c] : uint16_t{0};
          finite[half * channels + c] = (bits & 0x7f80) == 0x7f80 ? uint16_t{0} : bits;
        }
      }
      interleave_bf16(finite, finite + channels, channels, reinterpret_cast<uint16_t*>(scratch));
      row = scratch;
#endif
    }
    for (int c = 0; c < channels; c += kGroupLanes) {
      const int width = channels - c <= kWidth ? kWidth : kGroupLanes;
      float* const place = out + int64_t{c} * (kLanes / kPerUnit) + lane / kPerUnit * width;
      for (int d = 0; d < width; d += kWidth) {
        const int n = channels - c - d < kWidth ? channels - c - d : kWidth;
        Vf value = row == nullptr || n <= 0 ? zero() : load_n(row + c + d, n);
        if constexpr (kPerUnit == 1) value = finite_or_zero(value);
        store(place + d, value);
      }
    }
  }
}

// Turned back to rows: sums[lane] = or += packed sums.
TILEWISE_INLINE void write_lanes(const float* packed, int count, int channels, int groups, bool is_added, float* sums, int64_t stride) {
  for (int g = 0; g < groups; ++g) {
    const float* const from = packed + int64_t{g} * channels * kGroupLanes;
    for (int j = 0; j < kGroupVectors; ++j) {
      const int first = g * kGroupLanes + j * kWidth;
      if (first >= count) break;
      for (int d = 0; d < channels; d += kWidth) {
        Vf rows[kWidth];
        for (int i = 0; i < kWidth; ++i) rows[i] = d + i < channels ? load(from + ((d + i) * kGroupVectors + j) * kWidth) : zero();
        transpose(rows);
        for (int i = 0; i < kWidth && first + i < count; ++i) {
          float* const place = sums + (first + i) * stride + d;
          store(place, is_added ? add(load(place), rows[i]) : rows[i]);
        }
      }
    }
  }
}

TILEWISE_INLINE void clear_sums(float* sums, int64_t count) {
  for (int64_t i = 0; i < count; i += kWidth) store(sums + i, zero());
}

// ---- The walk ----

// What will be added to next, for whoever waits for it.
TILEWISE_INLINE void tell_next(const BackwardBlock& block, int side, const Walk& walk) {
  const RowSide& rows = block.sides[side];
  if (walk.segment >= rows.num_segments) {
    block.done(block.state, side + 1, 0);
  } else {
    const int32_t start = rows.segments[walk.segment].start;
    block.done(block.state, side, walk.row > start ? walk.row : start);
  }
}

template <class Dtype, bool kKeysAreLanes, bool IsPlain>
void run(const BackwardBlock& block) {
  using Op = typename Dtype::Op;
  const LaneSide& lanes = block.lanes;
  const int d = block.head_dim, dv = block.head_dim_v, groups = (lanes.count + kGroupLanes - 1) / kGroupLanes;
  const Workspace workspace(block.workspace, d, dv);
  pack_lanes<Dtype>(lanes.x, lanes.x_stride, lanes.count, d, groups, workspace.x);
  pack_lanes<Dtype>(lanes.y, lanes.y_stride, lanes.count, dv, groups, workspace.y);
  copy_rows<Dtype>(lanes.x, lanes.x_stride, lanes.count, d, workspace.pairs_x, workspace.x_rows);
  clear_sums(workspace.dx, kLanes * int64_t{d});
  if constexpr (kKeysAreLanes) {
    clear_sums(workspace.dy, kLanes * int64_t{dv});
  } else {
    copy_rows<Dtype>(lanes.y, lanes.y_stride, lanes.count, dv, workspace.pairs_y, workspace.y_rows);
  }
  Terms terms{.scale_log2 = block.scale * kLog2E, .inner = 0, .outer_log2 = 0, .has_cap = block.softcap != 0};
  if (terms.has_cap) {
    terms.inner = block.scale / block.softcap;
    terms.outer_log2 = block.softcap * kLog2E;
  }

  Strip strip;
  for (int side = 0; side < block.num_sides; ++side) {
    const RowSide& rows = block.sides[side];
    Walk walk;
    tell_next(block, side, walk);
    while (next_rows(rows, walk, strip)) {
      find_rows<Dtype>(block, rows, workspace, strip);
      constexpr bool kIsOneLayout = Op::kPerUnit == 1;
      const float* const* const x = kIsOneLayout ? strip.x : strip.x_pairs;
      const float* const* const y = kIsOneLayout ? strip.y : strip.y_pairs;
      for (int g = 0; g < groups; ++g) {
        score_strip<Dtype, kKeysAreLanes, IsPlain>(block, rows, workspace, terms, strip, g, groups);
        const int64_t place = int64_t{g} * kRowStrip * kGroupLanes;
        if constexpr (kKeysAreLanes) add_to_lanes<Op>(y, strip.count, dv, workspace.p, workspace.dy + int64_t{g} * dv * kGroupLanes);
        add_to_lanes<Op>(x, strip.count, d, workspace.ds + place, workspace.dx + int64_t{g} * d * kGroupLanes);
      }
      if (!block.wait(block.state, side, strip.slot[strip.count - 1])) return;
      add_to_rows<Op>(strip, groups, d, kIsOneLayout ? workspace.ds : workspace.ds_lanes, workspace.x_rows, rows.dx, rows.dx_stride);
      if constexpr (!kKeysAreLanes) {
        add_to_rows<Op>(strip, groups, dv, kIsOneLayout ? workspace.p : workspace.p_lanes, workspace.y_rows, rows.dy, rows.dy_stride);
      }
      tell_next(block, side, walk);
    }
  }
  write_lanes(workspace.dx, lanes.count, d, groups, lanes.is_added, lanes.dx, lanes.dx_stride);
  if constexpr (kKeysAreLanes) write_lanes(workspace.dy, lanes.count, dv, groups, lanes.is_added, lanes.dy, lanes.dy_stride);
}

template <class Dtype, bool kKeysAreLanes>
void backward(const BackwardBlock& block) {
  if (block.softcap != 0 || block.has_bias) {
    run<Dtype, kKeysAreLanes, false>(block);
  } else {
    run<Dtype, kKeysAreLanes, true>(block);
  }
}

// ---- Before and after ----

TILEWISE_INLINE Vf load_in(const float* p, int n) { return load_n(p, n); }
TILEWISE_INLINE Vf load_in(const uint16_t* p, int n) { return load_bf16_n(p, n); }

template <class In>
void row_dots(const In* dout, int64_t dout_stride, const In* out, int64_t out_stride, int64_t rows, int channels, float* delta) {
  for (int64_t i = 0; i < rows; ++i) {
    Vf sum = zero();
    for (int d = 0; d < channels; d += kWidth) {
      const int n = channels - d < kWidth ? channels - d : kWidth;
      sum = fma(load_in(dout + i * dout_stride + d, n), load_in(out + i * out_stride + d, n), sum);
    }
    delta[i] = reduce_add(sum);
  }
}

TILEWISE_INLINE void store_out(float* p, Vf x, int n) { store_n(p, x, n); }
TILEWISE_INLINE void store_out(uint16_t* p, Vf x, int n) { store_bf16_n(p, x, n); }

template <class Out>
void write_rows(const float* sums, int64_t rows, int channels, float scale, Out* out, int64_t stride) {
  const Vf factor = broadcast(scale);
  for (int64_t i = 0; i < rows; ++i) {
    for (int d = 0; d < channels; d += kWidth) {
      const int n = channels - d < kWidth ? channels - d : kWidth;
      store_out(out + i * stride + d, mul(load(sums + i * sum_stride(channels) + d), factor), n);
    }
  }
}

}  // namespace

extern const BackwardTable backward_table;
// NOLINTNEXTLINE(misc-definitions-in-headers): this file is compiled once for each target, in a namespace of its own
const BackwardTable backward_table{.workspace_bytes = &workspace_bytes,
                                   .keys_f32 = &backward<F32Rows, true>,
                                   .queries_f32 = &backward<F32Rows, false>,
#if TILEWISE_TARGET_LEVEL >= 3
                                   .keys_bf16 = &backward<Bf16Rows, true>,
                                   .queries_bf16 = &backward<Bf16Rows, false>,
#else
                                   .keys_bf16 = nullptr,
                                   .queries_bf16 = nullptr,
#endif
                                   .delta_f32 = &row_dots<float>,
                                   .delta_bf16 = &row_dots<uint16_t>,
                                   .write_f32 = &write_rows<float>,
                                   .write_bf16 = &write_rows<uint16_t>};

}  // namespace tilewise::attend::cpu::TILEWISE_TARGET
