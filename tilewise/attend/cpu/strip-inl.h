// SPDX-License-Identifier: Apache-2.0
#pragma once
// A strip: up to kStripKeys keys of a block's segments, as pointers to their rows. Runs, picked keys and odd lengths all look alike here, so the
// product loops know nothing of plans.
#include "tilewise/attend/cpu/block.h"
#include "tilewise/machine/cpu/product-inl.h"

namespace tilewise::attend::cpu::TILEWISE_TARGET {
namespace {

using namespace machine::cpu::TILEWISE_TARGET;

inline constexpr int32_t kLowest = INT32_MIN, kHighest = INT32_MAX;

struct Strip {
  int count;          // keys
  int padded;         // the same, up to a multiple of kRowTail: rows behind `count` repeat the last key, their scores are dropped
  bool is_partial;    // some pair of it is tested
  int32_t token[kStripKeys];
  int32_t cell[kStripKeys];
  // For partial strips. Key i is read by the lanes of bits[i] with at_most[i] <= last[lane] and first[lane] <= at_least[i].
  uint64_t bits[kStripKeys];
  int32_t at_most[kStripKeys], at_least[kStripKeys];
  const float* k[kStripKeys];  // each key's row, in 32-bit units
  const float* v[kStripKeys];  // as the second product reads it: one row a key, or one a pair of keys
};

/// Where a walk over a block's segments stands.
struct Cursor {
  int64_t segment = 0;
  int32_t key = 0;  // next key of that segment, where is_inside
  bool is_inside = false;
};

/// The keys of a partial strip that starts at `cursor`, one by one.
TILEWISE_INLINE void set_tests(const Block& block, Cursor cursor, Strip& strip) {
  for (int i = 0; i < strip.count;) {
    const Segment& segment = block.segments[cursor.segment];
    int32_t key = cursor.is_inside ? cursor.key : segment.start;
    for (; key < segment.stop && i < strip.count; ++key, ++i) {
      strip.bits[i] = segment.bits;
      strip.at_most[i] = segment.is_tested ? key : kLowest;
      strip.at_least[i] = segment.is_tested && key >= block.band->sink ? key : kHighest;
    }
    ++cursor.segment;
    cursor.is_inside = false;
  }
}

/// Fills the strip with the next keys; false when none are left or the call is stopped. It is partial where it must be, or where `is_tested` asks for it.
TILEWISE_INLINE bool next_keys(const Block& block, uint64_t all_lanes, bool is_tested, Cursor& cursor, Strip& strip) {
  if (block.is_stopped != nullptr && block.is_stopped(block.stop)) return false;
  const Cursor before = cursor;
  int count = 0;
  bool is_partial = is_tested;
  while (count < kStripKeys && cursor.segment < block.num_segments) {
    const Segment& segment = block.segments[cursor.segment];
    const int32_t key = cursor.is_inside ? cursor.key : segment.start;
    const int left = segment.stop - key, room = kStripKeys - count;
    const int n = left < room ? left : room;
    is_partial |= segment.is_tested || (segment.bits & all_lanes) != all_lanes;
    for (int i = 0; i < n; ++i) {
      strip.token[count + i] = key + i;
      strip.cell[count + i] = segment.cell;
    }
    count += n;
    cursor.is_inside = n < left;
    cursor.key = key + n;
    cursor.segment += n < left ? 0 : 1;
  }
  strip.count = count;
  strip.padded = (count + kRowTail - 1) / kRowTail * kRowTail;
  strip.is_partial = is_partial;
  if (is_partial) set_tests(block, before, strip);
  return count > 0;
}

TILEWISE_INLINE uint64_t lane_bits(int lanes) { return lanes >= 64 ? ~uint64_t{0} : (uint64_t{1} << lanes) - 1; }

/// Bytes of an element as `In`, and rows of a tensor in 32-bit units.
template <class In>
TILEWISE_INLINE const float* units_at(const void* base, int64_t element) {
  return reinterpret_cast<const float*>(static_cast<const In*>(base) + element);
}

/// How a dtype is computed: where q, k and v rows come from, and how out is written.
struct PlainF32 {
  using In = float;
  using Op = F32;
  static constexpr bool kWidens = false;
  TILEWISE_INLINE void store_some(In* p, Vf x, int n) { store_n(p, x, n); }
};
// Widened rows are converted to f32 once per block and strip: at 64 queries about 3 % of the products' work.
struct WidenedBf16 {
  using In = uint16_t;
  using Op = F32;
  static constexpr bool kWidens = true;
  TILEWISE_INLINE Vf load_some(const In* p, int n) { return n >= kWidth ? load_bf16(p) : load_bf16_n(p, n); }
  TILEWISE_INLINE void store_some(In* p, Vf x, int n) { store_bf16_n(p, x, n); }
};
struct WidenedF16 {
  using In = uint16_t;
  using Op = F32;
  static constexpr bool kWidens = true;
  TILEWISE_INLINE Vf load_some(const In* p, int n) { return n >= kWidth ? load_f16(p) : load_f16_n(p, n); }
  TILEWISE_INLINE void store_some(In* p, Vf x, int n) { store_f16_n(p, x, n); }
};
#if TILEWISE_TARGET_LEVEL >= 3
struct DotBf16 {
  using In = uint16_t;
  using Op = Bf16Dot;
  static constexpr bool kWidens = false;
  TILEWISE_INLINE void store_some(In* p, Vf x, int n) { store_bf16_n(p, x, n); }
};
using Bf16 = DotBf16;
#else
using Bf16 = WidenedBf16;
#endif

template <class Dtype>
TILEWISE_INLINE void widen_row(const typename Dtype::In* row, int channels, float* out) {
  for (int i = 0; i < channels; i += kWidth) {
    const int n = channels - i < kWidth ? channels - i : kWidth;
    store_n(out + i, Dtype::load_some(row + i, n), n);
  }
}

/// Whether rows of bf16 that start at `base` can be read 32 bits at a time.
TILEWISE_INLINE bool are_units_aligned(const void* base, int64_t stride) { return reinterpret_cast<uintptr_t>(base) % 4 == 0 && stride % 2 == 0; }

/// Points strip.k at the rows of the strip's keys, by way of `scratch` ([kStripKeys, head_dim] f32) where they are widened or lie off the units.
template <class Dtype>
TILEWISE_INLINE void find_keys(const Block& block, Strip& strip, float* scratch) {
  using In = typename Dtype::In;
  const In* const k = static_cast<const In*>(block.k);
  const int64_t stride = block.k_stride;
  if constexpr (Dtype::kWidens) {
    for (int i = 0; i < strip.count; ++i) {
      float* const row = scratch + int64_t{i} * block.head_dim;
      widen_row<Dtype>(k + strip.token[i] * stride, block.head_dim, row);
      strip.k[i] = row;
    }
  } else if (Dtype::Op::kPerUnit == 2 && !are_units_aligned(block.k, stride)) {
    for (int i = 0; i < strip.count; ++i) {
      float* const row = scratch + int64_t{i} * block.head_dim / Dtype::Op::kPerUnit;
      __builtin_memcpy(row, k + strip.token[i] * stride, static_cast<size_t>(block.head_dim) * sizeof(In));
      strip.k[i] = row;
    }
  } else {
    for (int i = 0; i < strip.count; ++i) strip.k[i] = units_at<In>(k, strip.token[i] * stride);
  }
  for (int i = strip.count; i < strip.padded; ++i) strip.k[i] = strip.k[strip.count - 1];
}

/// One group of lanes: V vectors.
struct Group {
  int first;  // lane of the block
  int lanes;  // real ones
  float* q;  // [units][V * kWidth]
  float* acc;  // [head_dim_v][V * kWidth]
  float* shift;  // [V * kWidth] whole numbers: probabilities are 2^(logit * log2(e) - shift); -infinity: no key yet
  float* sum;  // [V * kWidth] of probabilities
  float* norm;  // [V * kWidth] of probabilities as the second product reads them: what out is divided by, so that their rounding cancels in part
};

/// scores[i][lane] = k[i] . q[lane] for rows [i, i + R) of the strip; the maximum is taken from registers.
template <class Op, int R, int V, class Each>
TILEWISE_INLINE void score_rows(const Strip& strip, int i, int64_t units, const float* q, float* scores, Vf (&most)[V], const Each& each) {
  Vf acc[R][V];
  clear(acc);
  multiply_along<Op>(acc, strip.k + i, 0, units, q, each);
  TILEWISE_UNROLL
  for (int r = 0; r < R; ++r) {
    TILEWISE_UNROLL
    for (int j = 0; j < V; ++j) {
      store(scores + ((i + r) * V + j) * kWidth, acc[r][j]);
      most[j] = max(most[j], acc[r][j]);
    }
  }
}

/// S^T = K Q^T for the whole strip. `each()`: see multiply_along.
template <class Op, int V, class Each>
TILEWISE_INLINE void score_strip(const Strip& strip, int64_t units, const float* q, float* scores, Vf (&most)[V], const Each& each) {
  for (int i = 0; i < strip.padded;) {
    const int step = step_of(strip.padded - i);
    if (step == kRows) {
      score_rows<Op, kRows>(strip, i, units, q, scores, most, each);
    } else {
      score_rows<Op, kRowTail>(strip, i, units, q, scores, most, each);
    }
    i += step;
  }
}

/// Which lanes of vector j of the group read key i. Only in partial strips.
template <int V>
TILEWISE_INLINE Mask readers(const Strip& strip, int i, const LaneBand& band, int first, int j) {
  const int lane = first + j * kWidth;
  const Mask below = less_equal_i(broadcast_i(strip.at_most[i]), load_i(band.last + lane));
  const Mask above = less_equal_i(load_i(band.first + lane), broadcast_i(strip.at_least[i]));
  return mask_and(mask_of_bits(strip.bits[i] >> lane), mask_and(below, above));
}

/// softcap * tanh(scale * s / softcap), in place: s is the logit then.
template <int V>
TILEWISE_INLINE void cap_strip(const Strip& strip, float scale, float softcap, float* scores) {
  const Vf inner = broadcast(scale / softcap), outer = broadcast(softcap);
  for (int i = 0; i < strip.count * V; ++i) store(scores + i * kWidth, mul(outer, tanh(mul(inner, load(scores + i * kWidth)))));
}

/// The group's queries, turned into lanes. `scratch`: [kGroupLanes, head_dim] f32.
template <class Dtype>
TILEWISE_INLINE void pack_queries(const Block& block, const Group& group, int vectors, float* scratch) {
  using In = typename Dtype::In;
  const In* rows = static_cast<const In*>(block.q) + group.first * block.q_stride;
  const int64_t units = block.head_dim / Dtype::Op::kPerUnit;
  const float* from = reinterpret_cast<const float*>(rows);
  int64_t stride = block.q_stride / Dtype::Op::kPerUnit;
  if constexpr (Dtype::kWidens) {
    for (int i = 0; i < group.lanes; ++i) widen_row<Dtype>(rows + i * block.q_stride, block.head_dim, scratch + i * units);
    from = scratch;
    stride = units;
  } else if constexpr (Dtype::Op::kPerUnit == 2) {
    if (!are_units_aligned(rows, block.q_stride)) {
      for (int i = 0; i < group.lanes; ++i) __builtin_memcpy(scratch + i * units, rows + i * block.q_stride, static_cast<size_t>(units) * 4);
      from = scratch;
      stride = units;
    }
  }
  if (vectors == 1) {
    pack_units<1>(from, stride, group.lanes, units, group.q);
  } else {
    pack_units<kGroupVectors>(from, stride, group.lanes, units, group.q);
  }
}

}  // namespace
}  // namespace tilewise::attend::cpu::TILEWISE_TARGET
