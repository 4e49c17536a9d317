// SPDX-License-Identifier: Apache-2.0
// Reductions of one block's logits or probabilities, compiled once per target: the first half of forward-inl.h, then sums, maxima and counts.
#include "tilewise/attend/cpu/strip-inl.h"
#include "tilewise/machine/cpu/product-inl.h"
#include "tilewise/machine/cpu/simd.h"

namespace tilewise::attend::cpu::TILEWISE_TARGET {
namespace {

struct Workspace {
  float* q;       // [groups][head_dim][kGroupLanes]
  float* scores;  // [kStripKeys][kGroupLanes]
  float* k;       // [kStripKeys][head_dim], where keys are widened

  static constexpr int64_t floats(int64_t head_dim) { return kBlockLanes * head_dim + kStripKeys * (kGroupLanes + head_dim); }
  Workspace(std::byte* bytes, int64_t head_dim) {
    q = reinterpret_cast<float*>(bytes);
    scores = q + kBlockLanes * head_dim;
    k = scores + kStripKeys * kGroupLanes;
  }
};

size_t workspace_bytes(int head_dim) { return static_cast<size_t>(Workspace::floats(head_dim)) * sizeof(float); }

// What the three walks share: values of vector j for key i, and who reads it.
template <bool HasLse, bool IsPartial, int V>
struct Values {
  const MeasureBlock& measure;
  const Strip& strip;
  const Group& group;
  float* scores;
  Vf scale;     // of the product; with a lse times log2(e)
  Vf shift[V];  // 0; with a lse minus it times log2(e)

  TILEWISE_INLINE Values make(const MeasureBlock& measure, const Strip& strip, const Group& group, float* scores) {
    const float scale = measure.block.softcap != 0 ? 1.0f : measure.block.scale;
    Values v{measure, strip, group, scores, broadcast(HasLse ? scale * kLog2E : scale), {}};
    for (int j = 0; j < V; ++j) v.shift[j] = HasLse ? mul(load(measure.lse + group.first + j * kWidth), broadcast(-kLog2E)) : zero();
    return v;
  }
  // The logit, or exp(logit - lse).
  __attribute__((always_inline)) Vf at(int i, int j) const {
    Vf offset = shift[j];
    if (measure.key_bias != nullptr) offset = add(offset, broadcast(measure.key_bias[strip.token[i]] * (HasLse ? kLog2E : 1.0f)));
    const Vf x = fma(load(scores + (i * V + j) * kWidth), scale, offset);
    if constexpr (!HasLse) return x;
#if TILEWISE_TARGET_LEVEL >= 2
    return exp2(x);
#else
    return select(less(broadcast(127.0f), x), broadcast(kInfinity), exp2(x));  // where exp2 adds to the exponent, it would wrap
#endif
  }
  __attribute__((always_inline)) Mask who(int i, int j) const { return readers<V>(strip, i, *measure.block.band, group.first, j); }
};

// A maximum that NaN wins, as the definition has it: max() loses it again at the next number.
TILEWISE_INLINE Vf max_or_nan(Vf old, Vf x) { return select(is_nan(old), old, max(old, x)); }

template <bool HasLse, bool IsPartial, int V>
void walk_lanes(const MeasureBlock& measure, const Strip& strip, const Group& group, float* scores) {
  const auto values = Values<HasLse, IsPartial, V>::make(measure, strip, group, scores);
  float sums[kGroupLanes], maxima[kGroupLanes], counts[kGroupLanes];
  for (int i = 0; i < strip.count;) {
    const int32_t cell = strip.cell[i];
    const int begin = i;
    Vf sum[V], most[V], count[V];
    for (int j = 0; j < V; ++j) {
      sum[j] = count[j] = zero();
      most[j] = broadcast(-kInfinity);
    }
    for (; i < strip.count && strip.cell[i] == cell; ++i) {
      TILEWISE_UNROLL
      for (int j = 0; j < V; ++j) {
        Vf x = values.at(i, j), bound = x;
        if constexpr (IsPartial) {
          const Mask m = values.who(i, j);
          x = select(m, x, zero());
          bound = select(m, bound, broadcast(-kInfinity));
          count[j] = add(count[j], select(m, broadcast(1.0f), zero()));
          store(scores + (i * V + j) * kWidth, x);
        }
        sum[j] = add(sum[j], x);
        most[j] = max(most[j], bound);
      }
    }
    for (int j = 0; j < V; ++j) {
      store(sums + j * kWidth, sum[j]);
      store(maxima + j * kWidth, most[j]);
      store(counts + j * kWidth, IsPartial ? count[j] : broadcast(static_cast<float>(i - begin)));
    }
    for (int lane = 0; lane < group.lanes; ++lane) {
      if (sums[lane] == sums[lane]) continue;  // a sum that is NaN: from a NaN among the values, or from infinities of both signs
      const int j = lane / kWidth;
      for (int t = begin; t < i; ++t) {
        float lanes_of_key[kWidth];
        store(lanes_of_key, IsPartial ? load(scores + (t * V + j) * kWidth) : values.at(t, j));
        const float x = lanes_of_key[lane % kWidth];
        if (x != x) maxima[lane] = x;
      }
    }
    measure.take(measure.state, group.first, group.lanes, cell, sums, maxima, counts);
  }
}

template <bool HasLse, bool IsPartial, int V>
void walk_keys(const MeasureBlock& measure, const Strip& strip, const Group& group, float* scores) {
  const auto values = Values<HasLse, IsPartial, V>::make(measure, strip, group, scores);
  for (int i = 0; i < strip.count; ++i) {
    Vf sum = zero(), most = broadcast(-kInfinity), count = zero(), nans = zero();
    for (int j = 0; j < V; ++j) {
      Vf x = values.at(i, j), bound = x, one = broadcast(1.0f);
      if constexpr (IsPartial) {
        const Mask m = values.who(i, j);
        x = select(m, x, zero());
        bound = select(m, bound, broadcast(-kInfinity));
        one = select(m, one, zero());
      }
      nans = add(nans, select(is_nan(x), broadcast(1.0f), zero()));
      sum = add(sum, x);
      most = max(most, select(is_nan(bound), broadcast(-kInfinity), bound));
      count = add(count, one);
    }
    const int32_t token = strip.token[i];
    const float largest = reduce_add(nans) != 0 ? __builtin_nanf("") : reduce_max(most);
    measure.sum[token] += reduce_add(sum);
    measure.count[token] += reduce_add(count);
    float& old = measure.max[token];
    if (largest != largest || largest > old) old = largest;
  }
}

template <bool HasLse, bool IsPartial, int V>
void walk_offsets(const MeasureBlock& measure, const Strip& strip, const Group& group, float* scores) {
  const auto values = Values<HasLse, IsPartial, V>::make(measure, strip, group, scores);
  for (int i = 0; i < strip.count; ++i) {
    for (int j = 0; j < V; ++j) {
      const int64_t offset = measure.first_query + group.first + j * kWidth - strip.token[i];
      Vf x = values.at(i, j), bound = x, one = broadcast(1.0f);
      if constexpr (IsPartial) {
        const Mask m = values.who(i, j);
        x = select(m, x, zero());
        bound = select(m, bound, broadcast(-kInfinity));
        one = select(m, one, zero());
      }
      store(measure.sum + offset, add(load(measure.sum + offset), x));
      store(measure.max + offset, max_or_nan(load(measure.max + offset), bound));
      store(measure.count + offset, add(load(measure.count + offset), one));
    }
  }
}

template <bool HasLse, bool IsPartial, int V>
TILEWISE_INLINE void walk(const MeasureBlock& measure, const Strip& strip, const Group& group, float* scores) {
  switch (measure.walk) {
    case MeasureWalk::lanes: return walk_lanes<HasLse, IsPartial, V>(measure, strip, group, scores);
    case MeasureWalk::keys: return walk_keys<HasLse, IsPartial, V>(measure, strip, group, scores);
    case MeasureWalk::offsets: return walk_offsets<HasLse, IsPartial, V>(measure, strip, group, scores);
  }
}

// Probabilities per lane straight from the registers that scores are made in, for strips without a test whose steps each lie in one cell.
inline constexpr int kMostCells = 8;  // of a strip

template <int V>
struct FusedCells {
  int count = 0;
  int32_t cell[kMostCells];
  int keys[kMostCells];
  Vf sum[kMostCells][V], most[kMostCells][V];  // of 2^(scale * s - shift), of s
  Vf scale, shift[V], offset[V];               // shift: lse * log2(e), rounded to a whole number; offset: kExp2Offset - shift
  Vf least[V];
};

// Notes the strip's cells; false where its steps or their number do not fit.
template <int V>
TILEWISE_INLINE bool find_cells(const Strip& strip, FusedCells<V>& fused) {
  for (int i = 0; i < strip.padded;) {
    const int step = step_of(strip.padded - i), stop = i + step < strip.count ? i + step : strip.count;
    if (i >= stop) return false;
    for (int key = i + 1; key < stop; ++key) {  // each of them: picked keys come behind runs, so that cells need not ascend
      if (strip.cell[key] != strip.cell[i]) return false;
    }
    if (fused.count == 0 || fused.cell[fused.count - 1] != strip.cell[i]) {
      if (fused.count == kMostCells) return false;
      fused.cell[fused.count] = strip.cell[i];
      fused.keys[fused.count++] = 0;
    }
    fused.keys[fused.count - 1] += stop - i;
    i += step;
  }
  return true;
}

template <class Op, int R, int V>
TILEWISE_INLINE void fused_rows(const Strip& strip, int i, int64_t units, const float* q, FusedCells<V>& fused, Vf (&sum)[V], Vf (&most)[V]) {
  Vf acc[R][V];
  clear(acc);
  multiply_along<Op>(acc, strip.k + i, units, q);
  TILEWISE_UNROLL
  for (int r = 0; r < R; ++r) {
    if (r > 0 && i + r >= strip.count) break;
    TILEWISE_UNROLL
    for (int j = 0; j < V; ++j) {
      most[j] = max(most[j], acc[r][j]);
      fused.least[j] = min(fused.least[j], acc[r][j]);
      sum[j] = add(sum[j], exp2_of_product(acc[r][j], fused.scale, fused.offset[j]));
    }
  }
}

// False where the two passes must do it, for all of the strip: nothing has been taken then.
template <class Op, int V>
TILEWISE_INLINE bool fuse_lanes(const MeasureBlock& measure, const Strip& strip, const Group& group) {
  const Block& block = measure.block;
  FusedCells<V> fused;
  if (!(block.scale > 0) || !find_cells(strip, fused)) return false;
  const int64_t units = block.head_dim / Op::kPerUnit;
  fused.scale = broadcast(block.scale * kLog2E);
  for (int j = 0; j < V; ++j) {
    fused.least[j] = broadcast(kInfinity);
    fused.shift[j] = round(mul(load(measure.lse + group.first + j * kWidth), broadcast(kLog2E)));
    fused.offset[j] = sub(broadcast(kExp2Offset), fused.shift[j]);
    if (any(less(broadcast(32768.0f), fused.shift[j])) || any(less(fused.shift[j], broadcast(-32768.0f)))) return false;
  }
  for (int c = 0, i = 0; c < fused.count; ++c) {
    Vf sum[V], most[V];
    for (int j = 0; j < V; ++j) {
      sum[j] = zero();
      most[j] = broadcast(-kInfinity);
    }
    for (const int stop = i + fused.keys[c]; i < stop;) {
      const int step = step_of(strip.padded - i);
      if (step == kRows) {
        fused_rows<Op, kRows>(strip, i, units, group.q, fused, sum, most);
      } else {
        fused_rows<Op, kRowTail>(strip, i, units, group.q, fused, sum, most);
      }
      i += step;
    }
    for (int j = 0; j < V; ++j) {
      fused.sum[c][j] = sum[j];
      fused.most[c][j] = most[j];
      if (any(is_nan(sum[j])) || strays(most[j], fused.scale, fused.offset[j])) return false;
    }
  }
  for (int j = 0; j < V; ++j) {
    if (strays(fused.least[j], fused.scale, fused.offset[j])) return false;
  }
  float sums[kGroupLanes], maxima[kGroupLanes], counts[kGroupLanes];
  for (int c = 0; c < fused.count; ++c) {
    for (int j = 0; j < V; ++j) {
      const Vf factor =
          exp2(fma(load(measure.lse + group.first + j * kWidth), broadcast(-kLog2E), fused.shift[j]));  // what rounding the shift changed
      store(sums + j * kWidth, mul(fused.sum[c][j], factor));
      store(maxima + j * kWidth, mul(exp2_of_product(fused.most[c][j], fused.scale, fused.offset[j]), factor));
      store(counts + j * kWidth, broadcast(static_cast<float>(fused.keys[c])));
    }
    measure.take(measure.state, group.first, group.lanes, fused.cell[c], sums, maxima, counts);
  }
  return true;
}

// One strip for one group of lanes: scores, then what is asked of them.
template <class Op, int V>
void measure_strip(const MeasureBlock& measure, const Strip& strip, const Group& group, float* scores) {
  const Block& block = measure.block;
  const bool is_plain = !strip.is_partial && block.softcap == 0 && measure.lse != nullptr && measure.key_bias == nullptr;
  if (is_plain && measure.walk == MeasureWalk::lanes && fuse_lanes<Op, V>(measure, strip, group)) return;
  Vf unused[V];
  for (int j = 0; j < V; ++j) unused[j] = zero();
  score_strip<Op>(strip, block.head_dim / Op::kPerUnit, group.q, scores, unused, [] {});
  if (block.softcap != 0) cap_strip<V>(strip, block.scale, block.softcap, scores);
  if (measure.lse != nullptr) {
    strip.is_partial ? walk<true, true, V>(measure, strip, group, scores) : walk<true, false, V>(measure, strip, group, scores);
  } else {
    strip.is_partial ? walk<false, true, V>(measure, strip, group, scores) : walk<false, false, V>(measure, strip, group, scores);
  }
}

template <class Dtype>
void measure_block(const MeasureBlock& measure) {
  const Block& block = measure.block;
  const Workspace workspace(measure.workspace, block.head_dim);
  const int groups = (block.lanes + kGroupLanes - 1) / kGroupLanes;
  const auto group_of = [&](int g) {
    const int first = g * kGroupLanes, left = block.lanes - first;
    return Group{.first = first,
                 .lanes = left < kGroupLanes ? left : kGroupLanes,
                 .q = workspace.q + int64_t{first} * block.head_dim,
                 .acc = nullptr,
                 .shift = nullptr,
                 .sum = nullptr,
                 .norm = nullptr};
  };
  for (int g = 0; g < groups; ++g) {
    const Group group = group_of(g);
    pack_queries<Dtype>(block, group, group.lanes <= kWidth ? 1 : kGroupVectors, workspace.k);
  }
  const uint64_t all_lanes = lane_bits(block.lanes);
  // Sums over lanes must not see the lanes behind the last query.
  const bool is_tested = measure.walk != MeasureWalk::lanes && block.lanes % kWidth != 0;
  Strip strip;
  for (Cursor cursor; next_keys(block, all_lanes, is_tested, cursor, strip);) {
    find_keys<Dtype>(block, strip, workspace.k);
    for (int g = 0; g < groups; ++g) {
      const Group group = group_of(g);
      if (group.lanes <= kWidth) {
        measure_strip<typename Dtype::Op, 1>(measure, strip, group, workspace.scores);
      } else {
        measure_strip<typename Dtype::Op, kGroupVectors>(measure, strip, group, workspace.scores);
      }
    }
  }
}

}  // namespace

extern const MeasureTable measure_table;
// NOLINTNEXTLINE(misc-definitions-in-headers): this file is compiled once for each target, in a namespace of its own
const MeasureTable measure_table{.workspace_bytes = &workspace_bytes,
                                 .measure_f32 = &measure_block<PlainF32>,
                                 .measure_bf16 = &measure_block<Bf16>,
                                 .measure_f16 = &measure_block<WidenedF16>};

}  // namespace tilewise::attend::cpu::TILEWISE_TARGET
