// SPDX-License-Identifier: Apache-2.0
// Forward attention of one block of queries, or two that read the same keys, compiled once per target. One query is one lane, so that maxima, sums and masks are plain vectors:
// S^T = K Q^T and O^T += V^T P^T. K and V are broadcast from where they lie; Q is transposed once per block, O back at its end.
// Source  FlashAttention-2, arXiv 2307.08691, Algorithm 1; the loop over keys follows the plan.
#include "tilewise/attend/cpu/fused-inl.h"
#include "tilewise/attend/cpu/strip-inl.h"
#include "tilewise/machine/cpu/product-inl.h"
#include "tilewise/machine/cpu/simd.h"

namespace tilewise::attend::cpu::TILEWISE_TARGET {
namespace {

// What blocks hold between strips, carved out of their workspace: q, acc, shift, sum and norm for each of kTogether blocks.
struct Workspace {
  float* q;  // [groups][head_dim][kGroupLanes]
  float* acc;  // [groups][head_dim_v][kGroupLanes]
  float* shift;  // [kBlockLanes]
  float* sum;  // [kBlockLanes]
  float* norm;  // [kBlockLanes]
  float* scores;  // [kStripKeys][kGroupLanes]
  float* k;  // [kStripKeys][head_dim], where keys are widened
  float* v;  // [kStripKeys][head_dim_v], widened or paired values

  static constexpr int64_t floats(int64_t head_dim, int64_t head_dim_v) {
    return kTogether * kBlockLanes * (head_dim + head_dim_v + 3) + kStripKeys * (kGroupLanes + head_dim + head_dim_v);
  }
  Workspace(std::byte* bytes, int64_t head_dim, int64_t head_dim_v) {
    q = reinterpret_cast<float*>(bytes);
    acc = q + kTogether * kBlockLanes * head_dim;
    shift = acc + kTogether * kBlockLanes * head_dim_v;
    sum = shift + kTogether * kBlockLanes;
    norm = sum + kTogether * kBlockLanes;
    scores = norm + kTogether * kBlockLanes;
    k = scores + kStripKeys * kGroupLanes;
    v = k + kStripKeys * head_dim;
  }
};

size_t workspace_bytes(int head_dim, int head_dim_v) { return static_cast<size_t>(Workspace::floats(head_dim, head_dim_v)) * sizeof(float); }

#if TILEWISE_TARGET_LEVEL >= 3
constexpr uint16_t kZeros[256] = {};  // the partner of a last odd key: 0 times whatever lies behind could be NaN

void pair_values(const uint16_t* v, int64_t stride, int64_t seqlen_k, int head_dim_v, int64_t first, int64_t last, uint16_t* pairs) {
  for (int64_t row = first; row < last; ++row) {
    const bool has_odd = 2 * row + 1 < seqlen_k;
    interleave_bf16(v + 2 * row * stride, has_odd ? v + (2 * row + 1) * stride : kZeros, head_dim_v, pairs + row * head_dim_v * 2);
  }
}
#endif

// Whether all of a strip's values lie ready in v_pairs.
TILEWISE_INLINE bool has_pairs(const Block& block, const Strip& strip) {
  if (block.v_pairs == nullptr) return false;
  int32_t apart = strip.count & 1;  // a last key alone: in v_pairs another may share its row
  for (int i = 0; i + 1 < strip.count; i += 2) apart |= (strip.token[i] & 1) | (strip.token[i + 1] - strip.token[i] - 1);
  return apart == 0;
}

// Points strip.v at what the second product reads: a row of values a key; with the dot instruction, a row of pairs [head_dim_v][2] a pair of keys.
template <class Dtype>
TILEWISE_INLINE void find_values(const Block& block, Strip& strip, float* scratch) {
  using In = typename Dtype::In;
  const In* const v = static_cast<const In*>(block.v);
  if constexpr (Dtype::Op::kPerUnit == 1) {
    for (int i = 0; i < strip.count; ++i) {
      const int64_t element = strip.token[i] * block.v_stride;
      if constexpr (Dtype::kWidens) {
        float* const row = scratch + int64_t{i} * block.head_dim_v;
        widen_row<Dtype>(v + element, block.head_dim_v, row);
        strip.v[i] = row;
      } else {
        strip.v[i] = v + element;
      }
    }
  } else {
#if TILEWISE_TARGET_LEVEL >= 3
    if (has_pairs(block, strip)) {
      const auto* const pairs = reinterpret_cast<const float*>(block.v_pairs);
      const int64_t channels = block.head_dim_v;
      for (int i = 0; 2 * i < strip.count; ++i) strip.v[i] = pairs + strip.token[2 * i] / 2 * channels;
      return;
    }
    for (int i = 0; i < strip.count; i += 2) {
      const int32_t even = strip.token[i];
      const bool has_odd = i + 1 < strip.count;
      if (block.v_pairs != nullptr && has_odd && even % 2 == 0 && strip.token[i + 1] == even + 1) {
        strip.v[i / 2] = reinterpret_cast<const float*>(block.v_pairs) + even / 2 * int64_t{block.head_dim_v};
        continue;
      }
      float* const row = scratch + int64_t{i / 2} * block.head_dim_v;
      interleave_bf16(v + even * block.v_stride, has_odd ? v + strip.token[i + 1] * block.v_stride : kZeros, block.head_dim_v,
                      reinterpret_cast<uint16_t*>(row));
      strip.v[i / 2] = row;
    }
#endif
  }
}

// What will be read or written after the strip at hand: asked for while that one is computed, a line or two at a time, because memory takes longer than a step and
// a burst would queue.
class Ahead {
 public:
  // Rows of `bytes` each, `stride` bytes apart.
  __attribute__((always_inline)) void add(const void* first, int64_t stride, int64_t bytes, int rows) {
    if (bytes == 0) return;
    const char* p = static_cast<const char*>(first);
    if (stride == bytes) {
      bytes *= rows;
      rows = 1;
    }
    for (; rows > 0 && count_ < kMost; --rows, p += stride) {
      const int lines = static_cast<int>((bytes + 63) / 64);
      chunks_[count_++] = {p, lines};
      lines_ += lines;
    }
  }
  // `steps`: how often step() will be called.
  void start(int64_t steps) {
    pace_ = steps > 0 ? static_cast<int>((lines_ + steps - 1) / steps) : 0;
    at_ = 0;
    enter();
  }
  __attribute__((always_inline)) void step() {
    for (int i = 0; i < pace_; ++i) {
      __builtin_prefetch(line_, 0, 2);
      line_ += 64;
      if (--left_ == 0) enter();
    }
  }

 private:
  struct Chunk {
    const char* first;
    int lines;
  };
  static constexpr int kMost = 2 * kStripKeys + 4 * kBlockLanes * kTogether;

  __attribute__((noinline)) void enter() {
    if (at_ == count_) {
      pace_ = 0;
      return;
    }
    line_ = chunks_[at_].first;
    left_ = chunks_[at_++].lines;
  }

  const char* line_ = nullptr;
  int left_ = 0, pace_ = 0, count_ = 0, at_ = 0;
  int64_t lines_ = 0;
  Chunk chunks_[kMost];
};

// The rows of a strip's keys and values.
template <class Dtype>
void ask_for_keys(const Block& block, const Strip& strip, Ahead& ahead) {
  using In = typename Dtype::In;
  constexpr auto kSize = static_cast<int64_t>(sizeof(In));
  const In* const v = static_cast<const In*>(block.v_pairs != nullptr ? static_cast<const void*>(block.v_pairs) : block.v);
  const int64_t v_stride = block.v_pairs != nullptr ? block.head_dim_v : block.v_stride;
  for (int i = 0; i < strip.count;) {
    int n = 1;
    while (i + n < strip.count && strip.token[i + n] == strip.token[i] + n) ++n;
    ahead.add(static_cast<const In*>(block.k) + strip.token[i] * block.k_stride, block.k_stride * kSize, block.head_dim * kSize, n);
    if (block.head_dim_v != 0) ahead.add(v + strip.token[i] * v_stride, v_stride * kSize, block.head_dim_v * kSize, n);
    i += n;
  }
}

// Whether a key of the strip has a bias.
TILEWISE_INLINE bool is_biased(const Block& block, const Strip& strip) {
  if (block.key_bias == nullptr) return false;
  int32_t most = strip.token[0];
  for (int i = 1; i < strip.count; ++i) most = strip.token[i] > most ? strip.token[i] : most;
  return most >= block.first_biased;
}

// Adds the keys' bias to their scores, which are in units of `unit` logits; the maximum is taken anew.
template <int V>
TILEWISE_INLINE void add_bias(const Block& block, const Strip& strip, float unit, float* scores, Vf (&most)[V]) {
  for (int j = 0; j < V; ++j) most[j] = broadcast(-kInfinity);
  for (int i = 0; i < strip.count; ++i) {
    const Vf bias = broadcast(block.key_bias[strip.token[i]] / unit);
    for (int j = 0; j < V; ++j) {
      float* const place = scores + (i * V + j) * kWidth;
      const Vf s = add(load(place), bias);
      store(place, s);
      most[j] = max(most[j], s);
    }
  }
}

// Scores of lanes that do not read a key become -infinity; the maximum is taken anew.
template <int V>
TILEWISE_INLINE void mask_strip(const Strip& strip, const LaneBand& band, int first, float* scores, Vf (&most)[V]) {
  const Vf none = broadcast(-kInfinity);
  for (int j = 0; j < V; ++j) most[j] = none;
  for (int i = 0; i < strip.count; ++i) {
    for (int j = 0; j < V; ++j) {
      float* const place = scores + (i * V + j) * kWidth;
      const Vf s = select(readers<V>(strip, i, band, first, j), load(place), none);
      store(place, s);
      most[j] = max(most[j], s);
    }
  }
}

template <int V>
TILEWISE_INLINE void maximum_of(const Strip& strip, const float* scores, Vf (&most)[V]) {
  for (int j = 0; j < V; ++j) most[j] = broadcast(-kInfinity);
  for (int i = 0; i < strip.count; ++i) {
    for (int j = 0; j < V; ++j) most[j] = max(most[j], load(scores + (i * V + j) * kWidth));
  }
}

// P = 2^(s * c - m * c), in place; sums of what is not rounded. With the dot instruction two keys' probabilities share a 32-bit unit.
// Where a lane may have no key (IsExact) -infinity must give 0; elsewhere 2^-126 does as well.
template <bool IsExact>
TILEWISE_INLINE Vf power(Vf x) {
  if constexpr (IsExact) return exp2(x);
  return exp2_clamped(x);
}

template <class Op, bool IsExact, int V>
TILEWISE_INLINE void probabilities(const Strip& strip, float scale_log2, const Vf (&shift)[V], float* scores, Vf (&sum)[V], Vf (&norm)[V]) {
  const Vf scale = broadcast(scale_log2);
  for (int j = 0; j < V; ++j) sum[j] = norm[j] = zero();
  if constexpr (Op::kPerUnit == 1) {
    TILEWISE_UNROLL_BY_4
    for (int i = 0; i < strip.count; ++i) {
      TILEWISE_UNROLL
      for (int j = 0; j < V; ++j) {
        float* const place = scores + (i * V + j) * kWidth;
        const Vf p = power<IsExact>(fma(load(place), scale, shift[j]));
        store(place, p);
        sum[j] = add(sum[j], p);
      }
    }
    for (int j = 0; j < V; ++j) norm[j] = sum[j];
  } else {
#if TILEWISE_TARGET_LEVEL >= 3
    for (int i = 0; i < strip.count; i += 2) {
      TILEWISE_UNROLL
      for (int j = 0; j < V; ++j) {
        const Vf even = power<IsExact>(fma(load(scores + (i * V + j) * kWidth), scale, shift[j]));
        Vf odd = zero();
        if (i + 1 < strip.count) odd = power<IsExact>(fma(load(scores + ((i + 1) * V + j) * kWidth), scale, shift[j]));
        sum[j] = add(sum[j], add(even, odd));
        const Vf pair = narrow_pairs(even, odd);
        store(scores + (i / 2 * V + j) * kWidth, pair);
        norm[j] = dot_bf16(norm[j], pair, bf16_ones());
      }
    }
#endif
  }
}

// O^T[d .. d + R) = O^T * alpha + V^T P^T; where `is_first` there is no O^T yet. The strip's products start from zero: the two-level sum halves the error of
// f32.
template <class Op, int R, int V>
TILEWISE_INLINE void add_channels(const Strip& strip, int rows, int64_t d, const float* p, const Vf (&alpha)[V], bool is_first, float* acc) {
  Vf out[R][V];
  clear(out);
  multiply_across<Op>(out, strip.v, d, rows, p);
  float* const place = acc + d * V * kWidth;
  if (is_first) {
    TILEWISE_UNROLL
    for (int i = 0; i < R * V; ++i) store(place + i * kWidth, out[i / V][i % V]);
  } else {
    TILEWISE_UNROLL
    for (int i = 0; i < R * V; ++i) store(place + i * kWidth, fma(load(place + i * kWidth), alpha[i % V], out[i / V][i % V]));
  }
}

template <class Op, int V>
TILEWISE_INLINE void add_values(const Strip& strip, int head_dim_v, const float* p, const Vf (&alpha)[V], bool is_first, float* acc) {
  const int rows = (strip.count + Op::kPerUnit - 1) / Op::kPerUnit;
  for (int d = 0; d < head_dim_v;) {
    const int step = step_of(head_dim_v - d);
    if (step == kRows) {
      add_channels<Op, kRows>(strip, rows, d, p, alpha, is_first, acc);
    } else {
      add_channels<Op, kRowTail>(strip, rows, d, p, alpha, is_first, acc);
    }
    d += step;
  }
}

// Probabilities of one strip by two passes over its scores: any test, softcap, and any range of scores. `now` gets the shift of each lane.
template <class Op, int V, class Each>
TILEWISE_INLINE void attend_scores(const Block& block, const Strip& strip, const Group& group, float* scores, Vf (&now)[V], Vf (&sum)[V],
                                   Vf (&norm)[V], const Each& each) {
  Vf most[V];
  for (int j = 0; j < V; ++j) most[j] = broadcast(-kInfinity);
  score_strip<Op>(strip, block.head_dim / Op::kPerUnit, group.q, scores, most, each);
  if (block.softcap != 0) {
    cap_strip<V>(strip, block.scale, block.softcap, scores);
    maximum_of(strip, scores, most);
  }
  const float unit = block.softcap != 0 ? 1.0f : block.scale;
  if (is_biased(block, strip)) add_bias(block, strip, unit, scores, most);
  if (strip.is_partial) mask_strip(strip, *block.band, group.first, scores, most);

  const float scale_log2 = unit * kLog2E;
  const Vf none = broadcast(-kInfinity);
  Vf shift[V];
  bool has_empty_lane = false;
  for (int j = 0; j < V; ++j) {
    now[j] = max(now[j], select(equal(most[j], none), none, round(mul(most[j], broadcast(scale_log2)))));
    // A lane without a key so far has the shift -infinity; -infinity less -infinity would be NaN.
    const Mask is_empty = equal(now[j], none);
    has_empty_lane |= any(is_empty);
    shift[j] = select(is_empty, zero(), sub(zero(), now[j]));
  }
  if (strip.is_partial || has_empty_lane) {
    probabilities<Op, true>(strip, scale_log2, shift, scores, sum, norm);
  } else {
    probabilities<Op, false>(strip, scale_log2, shift, scores, sum, norm);
  }
}

// One strip for one group of lanes: scores, online softmax, values. One group `is_fetching` the strip's values for all. Probabilities are 2^(logit * log2(e) - shift) with a whole number for shift, so that scaling what came before
// by 2^(old shift - new shift) rounds nothing.
template <class Dtype, int V>
void attend_strip(const Block& block, Strip& strip, const Group& group, bool is_first, bool is_fetching, Ahead& ahead, const Workspace& workspace) {
  using Op = typename Dtype::Op;
  float* const scores = workspace.scores;
  const int64_t units = block.head_dim / Op::kPerUnit;
  const auto each = [&]() __attribute__((always_inline)) { ahead.step(); };
  Fused<V> fused;
  fused.scale = broadcast(block.scale * kLog2E);
  Vf old[V], alpha[V];
  for (int j = 0; j < V; ++j) fused.now[j] = old[j] = load(group.shift + j * kWidth);
  if (strip.is_partial || block.softcap != 0 || is_biased(block, strip) || !fuse_strip<Op>(strip, units, group.q, scores, fused, each)) {
    for (int j = 0; j < V; ++j) fused.now[j] = old[j];
    attend_scores<Op>(block, strip, group, scores, fused.now, fused.sum, fused.norm, each);
  }
  for (int j = 0; j < V; ++j) {
    const Vf less_than_before = select(equal(fused.now[j], broadcast(-kInfinity)), zero(), sub(old[j], fused.now[j]));
    alpha[j] = scale_exponent(broadcast(1.0f), less_than_before, less_than_before);
    store(group.shift + j * kWidth, fused.now[j]);
    store(group.sum + j * kWidth, fma(load(group.sum + j * kWidth), alpha[j], fused.sum[j]));
    store(group.norm + j * kWidth, fma(load(group.norm + j * kWidth), alpha[j], fused.norm[j]));
  }
  if (block.head_dim_v == 0) return;
  if (is_fetching) find_values<Dtype>(block, strip, workspace.v);
  add_values<Op>(strip, block.head_dim_v, scores, alpha, is_first, group.acc);
}

// out = O / l, turned back to one row a query.
template <class Dtype, int V>
TILEWISE_INLINE void write_out(const ForwardBlock& forward, const Group& group) {
  using In = typename Dtype::In;
  const int channels = forward.block.head_dim_v;
  In* const out = static_cast<In*>(forward.out) + group.first * forward.out_stride;
  for (int j = 0; j < V && j * kWidth < group.lanes; ++j) {
    const Vf norm = load(group.norm + j * kWidth);
    const Mask is_empty = equal(norm, zero());
    const Vf inverse = select(is_empty, zero(), div(broadcast(1.0f), norm));
    for (int d = 0; d < channels; d += kWidth) {
      const int n = channels - d < kWidth ? channels - d : kWidth;
      Vf rows[kWidth];
      for (int i = 0; i < kWidth; ++i) {
        // A lane without a key: its accumulator may hold 0 * NaN of keys that others read.
        rows[i] = i < n ? select(is_empty, zero(), mul(load(group.acc + ((d + i) * V + j) * kWidth), inverse)) : zero();
      }
      transpose(rows);
      for (int i = 0; i < kWidth && j * kWidth + i < group.lanes; ++i) {
        In* const place = out + (j * kWidth + i) * forward.out_stride + d;
        Dtype::store_some(place, rows[i], n);
      }
    }
  }
}

// Lanes of block number `index` that run together.
TILEWISE_INLINE Group group_of(const Block& block, const Workspace& workspace, int index, int g) {
  const int first = g * kGroupLanes, left = block.lanes - first, place = index * kBlockLanes + first;
  return Group{.first = first,
               .lanes = left < kGroupLanes ? left : kGroupLanes,
               .q = workspace.q + int64_t{place} * block.head_dim,
               .acc = workspace.acc + int64_t{place} * block.head_dim_v,
               .shift = workspace.shift + place,
               .sum = workspace.sum + place,
               .norm = workspace.norm + place};
}

TILEWISE_INLINE int groups_of(const Block& block) { return (block.lanes + kGroupLanes - 1) / kGroupLanes; }

template <class Dtype>
void start_block(const ForwardBlock& forward, const Workspace& workspace, int index) {
  const Block& block = forward.block;
  for (int g = 0; g < groups_of(block); ++g) {
    const Group group = group_of(block, workspace, index, g);
    pack_queries<Dtype>(block, group, group.lanes <= kWidth ? 1 : kGroupVectors, workspace.k);
    for (int i = 0; i < kGroupLanes; ++i) {
      group.shift[i] = forward.start_shift;
      group.sum[i] = group.norm[i] = forward.start_sum;
    }
    if (block.num_segments != 0) continue;  // the first strip writes acc
    for (int64_t i = 0; i < int64_t{block.head_dim_v} * kGroupLanes; i += kWidth) store(group.acc + i, zero());
  }
}

template <class Dtype>
void end_block(const ForwardBlock& forward, const Workspace& workspace, int index) {
  const Block& block = forward.block;
  for (int g = 0; g < groups_of(block); ++g) {
    const Group group = group_of(block, workspace, index, g);
    if (block.head_dim_v != 0) {
      if (group.lanes <= kWidth) {
        write_out<Dtype, 1>(forward, group);
      } else {
        write_out<Dtype, kGroupVectors>(forward, group);
      }
    }
    const Vf start_shift = broadcast(forward.start_shift), start_sum = broadcast(forward.start_sum);
    for (int j = 0; j < kGroupVectors && j * kWidth < group.lanes; ++j) {
      const Vf shift = load(group.shift + j * kWidth), sum = load(group.sum + j * kWidth);
      const Mask is_as_before = mask_and(equal(shift, start_shift), equal(sum, start_sum));  // no key, or none that counts
      store(forward.row_lse + group.first + j * kWidth, select(is_as_before, broadcast(forward.start_lse), log(sum, shift)));
    }
  }
}

template <class Dtype>
void forward_blocks(const ForwardBlocks& now, const ForwardBlocks& next) {
  const Block& shared = now.blocks[0].block;
  const Workspace workspace(now.blocks[0].workspace, shared.head_dim, shared.head_dim_v);
  for (int index = 0; index < now.count; ++index) start_block<Dtype>(now.blocks[index], workspace, index);

  const uint64_t all_lanes = lane_bits(shared.lanes);
  Strip strips[2];
  Cursor cursor;
  bool is_last = !next_keys(shared, all_lanes, false, cursor, strips[0]);
  bool is_first = true;
  for (int at = 0; !is_last; at ^= 1, is_first = false) {
    Strip &strip = strips[at], &following = strips[at ^ 1];
    find_keys<Dtype>(shared, strip, workspace.k);
    is_last = !next_keys(shared, all_lanes, false, cursor, following);
    const Block* block_after = is_last ? nullptr : &shared;
    if (is_last && next.count > 0) {
      Cursor first;
      block_after = &next.blocks[0].block;
      if (!next_keys(*block_after, lane_bits(block_after->lanes), false, first, following)) block_after = nullptr;
    }
    Ahead ahead;
    constexpr auto kSize = static_cast<int64_t>(sizeof(typename Dtype::In));
    if (is_last) {
      for (int index = 0; index < now.count; ++index) {
        ahead.add(now.blocks[index].out, now.blocks[index].out_stride * kSize, shared.head_dim_v * kSize, shared.lanes);
      }
      for (int index = 0; index < next.count; ++index) {
        const Block& block = next.blocks[index].block;
        ahead.add(block.q, block.q_stride * kSize, block.head_dim * kSize, block.lanes);
      }
    }
    if (block_after != nullptr) ask_for_keys<Dtype>(*block_after, following, ahead);
    ahead.start(int64_t{now.count} * groups_of(shared) * ((strip.padded + kRows - 1) / kRows) * (shared.head_dim / Dtype::Op::kPerUnit / 4));
    for (int index = 0; index < now.count; ++index) {
      const Block& block = now.blocks[index].block;
      for (int g = 0; g < groups_of(block); ++g) {
        const Group group = group_of(block, workspace, index, g);
        const bool is_fetching = index == 0 && g == 0;
        if (group.lanes <= kWidth) {
          attend_strip<Dtype, 1>(block, strip, group, is_first, is_fetching, ahead, workspace);
        } else {
          attend_strip<Dtype, kGroupVectors>(block, strip, group, is_first, is_fetching, ahead, workspace);
        }
      }
    }
  }
  for (int index = 0; index < now.count; ++index) end_block<Dtype>(now.blocks[index], workspace, index);
}

}  // namespace

extern const ForwardTable forward_table;
// NOLINTNEXTLINE(misc-definitions-in-headers): this file is compiled once for each target, in a namespace of its own
const ForwardTable forward_table{.workspace_bytes = &workspace_bytes,
                                 .forward_f32 = &forward_blocks<PlainF32>,
                                 .forward_bf16 = &forward_blocks<Bf16>,
                                 .forward_f16 = &forward_blocks<WidenedF16>,
#if TILEWISE_TARGET_LEVEL >= 3
                                 .pair_values = &pair_values
#else
                                 .pair_values = nullptr
#endif
};

}  // namespace tilewise::attend::cpu::TILEWISE_TARGET
