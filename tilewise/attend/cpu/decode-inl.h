// SPDX-License-Identifier: Apache-2.0
// Decode of one strip of keys, compiled once per target. A cache is read once and every element meets a few rows only. For scores four channels of a key meet
// the same four of every row of a block: one load fills the vector, and of its lanes only four by four are added up in the end. For values lanes are channels.
#include "tilewise/attend/cpu/decode_strip.h"
#include "tilewise/machine/cpu/simd.h"

namespace tilewise::attend::cpu::TILEWISE_TARGET {
namespace {

using namespace machine::cpu::TILEWISE_TARGET;  // NOLINT(google-build-using-namespace): the wrappers of this target

// How a row is read: `load(row, d)` gives kWidth channels from d on, `load_n` the first n of them.
struct Plain {
  const void* data;
  TILEWISE_INLINE Plain at(const DecodeRows& rows, int i, int) { return {rows.data[i]}; }
};
struct F32 : Plain {
  using Row = Plain;
  TILEWISE_INLINE Vf load(const Row& row, int d) { return machine::cpu::TILEWISE_TARGET::load(static_cast<const float*>(row.data) + d); }
  TILEWISE_INLINE Vf load_n(const Row& row, int d, int n) {
    return machine::cpu::TILEWISE_TARGET::load_n(static_cast<const float*>(row.data) + d, n);
  }
};
struct Bf16 : Plain {
  using Row = Plain;
  TILEWISE_INLINE Vf load(const Row& row, int d) { return load_bf16(static_cast<const uint16_t*>(row.data) + d); }
  TILEWISE_INLINE Vf load_n(const Row& row, int d, int n) { return load_bf16_n(static_cast<const uint16_t*>(row.data) + d, n); }
};
struct F16 : Plain {
  using Row = Plain;
  TILEWISE_INLINE Vf load(const Row& row, int d) { return load_f16(static_cast<const uint16_t*>(row.data) + d); }
  TILEWISE_INLINE Vf load_n(const Row& row, int d, int n) { return load_f16_n(static_cast<const uint16_t*>(row.data) + d, n); }
};
struct I8 : Plain {
  using Row = Plain;
  TILEWISE_INLINE Vf load(const Row& row, int d) { return load_i8(static_cast<const int8_t*>(row.data) + d); }
  TILEWISE_INLINE Vf load_n(const Row& row, int d, int n) { return load_i8_n(static_cast<const int8_t*>(row.data) + d, n); }
};
struct I4 : Plain {
  using Row = Plain;
  TILEWISE_INLINE Vf load(const Row& row, int d) { return load_u4(static_cast<const uint8_t*>(row.data) + d / 2); }
  TILEWISE_INLINE Vf load_n(const Row& row, int d, int n) { return load_u4_n(static_cast<const uint8_t*>(row.data) + d / 2, n); }
};
// Codes with a scale a channel.
template <class Codes>
struct Scaled {
  struct Row {
    typename Codes::Row codes;
    const float* scale;
    const float* bias;
  };
  TILEWISE_INLINE Row at(const DecodeRows& rows, int i, int padded) {
    return {Codes::at(rows, i, padded), rows.channels[i], rows.channels[i] + padded};
  }
  TILEWISE_INLINE Vf load(const Row& row, int d) { return fma(Codes::load(row.codes, d), F32::load({row.scale}, d), F32::load({row.bias}, d)); }
  TILEWISE_INLINE Vf load_n(const Row& row, int d, int n) {  // scales are padded
    return fma(Codes::load_n(row.codes, d, n), F32::load({row.scale}, d), F32::load({row.bias}, d));
  }
};

TILEWISE_INLINE int padded(int channels) { return (channels + kDecodePad - 1) / kDecodePad * kDecodePad; }

inline constexpr int kBlock = kWidth / 4;  // rows that share a vector
inline constexpr int kAskChunks = 4;  // of four keys a line each: how often more is asked for

// Caches are read from memory: with each line that is computed on, one is asked for that is read within a strip or so. Keys and values take turns line by line:
// two lines of each in a row are slower by a tenth, one side after the other by as much again.
TILEWISE_INLINE void ask_line(const char* line) { __builtin_prefetch(line, 0, 3); }

void ask_for(DecodeAsk::Side& side, int lines) {
  for (; lines > 0; --lines) {
    if (side.at >= side.end) {
      if (side.next == side.last) return;
      side.at = side.next->begin;
      side.end = side.next->end;
      ++side.next;
    }
    ask_line(side.at);
    side.at += 64;
  }
}
int64_t bytes_left(const DecodeAsk::Side& side) { return side.at < side.end ? side.end - side.at : 0; }

// Lines of keys and of values to ask for at a time; even.
struct Share {
  int k, v;
  bool is_twice;
};
TILEWISE_INLINE int share_of(int lines, int parts) { return (lines + 2 * parts - 1) / (2 * parts) * 2; }
TILEWISE_INLINE Share share_of(const DecodeStrip& s, int parts) { return {share_of(s.ask->k.lines, parts), share_of(s.ask->v.lines, parts), false}; }

__attribute__((noinline)) void ask_over_end(DecodeAsk& ask, Share share) {
  ask.k.at += ask.at;
  ask.v.at += ask.at;
  ask_for(ask.k, share.k);
  ask_for(ask.v, share.v);
  const int64_t left_k = bytes_left(ask.k), left_v = bytes_left(ask.v);
  ask.at = 0;
  ask.end = ask.k.lines != ask.v.lines ? 0 : left_k < left_v ? left_k : left_v;
}
TILEWISE_INLINE void ask_for(DecodeAsk& ask, Share share) {
  int64_t at = ask.at;
  const int64_t to = at + share.k * 64;
  if (__builtin_expect(to > ask.end, 0)) return ask_over_end(ask, share);
  const char *const k = ask.k.at, *const v = ask.v.at;
  for (; at < to; at += 128) {
    ask_line(k + at);
    ask_line(v + at);
    ask_line(k + at + 64);
    ask_line(v + at + 64);
  }
  ask.at = to;
}

inline constexpr int kSumsInFlight = TILEWISE_TARGET_LEVEL >= 2 ? 16 : 8;  // vectors, of values
TILEWISE_INLINE int passes_of(const DecodeStrip& s) {
  const int channels = kWidth * (s.rows >= 4 ? kSumsInFlight / 4 : 8);  // of a pass, at most
  return (s.head_dim_v + channels - 1) / channels;
}
TILEWISE_INLINE bool values_ask(const DecodeStrip& s) { return s.head_dim_v == 0 || s.ask->k.lines >= 2 * passes_of(s); }

// Products of four channels in f32, or of four pairs of bf16.
struct Multiply {
  TILEWISE_INLINE Vf multiply_add(Vf acc, Vf x, Vf q) { return fma(x, q, acc); }
};
#if TILEWISE_TARGET_LEVEL >= 3
struct Dot {
  TILEWISE_INLINE Vf multiply_add(Vf acc, Vf x, Vf q) { return dot_bf16(acc, x, q); }
};
#endif

// Scores of kDecodeStep keys from `key` on for B blocks of rows. A chunk of a key meets the same chunk of all rows of a block at once, so lanes are added up
// four by four only, after the last chunk. One block has two sums for each key, or the adder's latency would show.
template <class Op, int B>
TILEWISE_INLINE void score_keys(const DecodeStrip& s, const float* const (&keys)[kDecodeStep], int key, int block, Share share) {
  constexpr int kSums = B == 1 ? 2 : 1;
  Vf acc[B][kSums][kDecodeStep];
  TILEWISE_UNROLL
  for (int b = 0; b < B; ++b) {
    TILEWISE_UNROLL
    for (int i = 0; i < kSums; ++i) {
      TILEWISE_UNROLL
      for (int k = 0; k < kDecodeStep; ++k) acc[b][i][k] = zero();
    }
  }
  const float* q[B];
  TILEWISE_UNROLL
  for (int b = 0; b < B; ++b) q[b] = s.q + static_cast<int64_t>(block + b) * s.chunks * kWidth;
  const auto step = [&](int chunk, int sum) __attribute__((always_inline)) {
    Vf x[kDecodeStep];
    TILEWISE_UNROLL
    for (int k = 0; k < kDecodeStep; ++k) x[k] = broadcast_four(keys[k] + chunk * 4);
    TILEWISE_UNROLL
    for (int b = 0; b < B; ++b) {
      const Vf queries = load(q[b] + chunk * kWidth);
      TILEWISE_UNROLL
      for (int k = 0; k < kDecodeStep; ++k) acc[b][sum][k] = Op::multiply_add(acc[b][sum][k], x[k], queries);
    }
  };
  int chunk = 0;
  for (; chunk + kAskChunks <= s.chunks; chunk += kAskChunks) {
    if (block == 0) ask_for(*s.ask, share);
    TILEWISE_UNROLL
    for (int i = 0; i < kAskChunks; ++i) step(chunk + i, i % kSums);
  }
  if (block == 0 && chunk < s.chunks) ask_for(*s.ask, share);
  for (; chunk < s.chunks; ++chunk) step(chunk, 0);
  TILEWISE_UNROLL
  for (int b = 0; b < B; ++b) {
    if constexpr (kSums == 2) {
      TILEWISE_UNROLL
      for (int k = 0; k < kDecodeStep; ++k) acc[b][0][k] = add(acc[b][0][k], acc[b][1][k]);
    }
    const Vf sums = sum_fours(acc[b][0][0], acc[b][0][1], acc[b][0][2], acc[b][0][3]);
    store(s.scores + static_cast<int64_t>(block + b) * kBlock * kDecodeStrip + key * kBlock, sums);
  }
}

// `keys_of(key, keys)` gives rows of whole chunks.
template <class Op, class KeysOf>
TILEWISE_INLINE void score_all(const DecodeStrip& s, const KeysOf& keys_of) {
  const int blocks = (s.rows + kBlock - 1) / kBlock;
  // Short rows are asked for once for all chunks, those of which a pass over values would ask for less than two lines with the scores alone.
  const int parts = (s.chunks + kAskChunks - 1) / kAskChunks, lines = s.ask->k.lines, times = values_ask(s) ? 1 : 2;
  const bool is_short = lines < 2 * parts;
  const Share share = is_short ? Share{} : share_of(s, parts);
  const Share at_once = is_short ? Share{share_of(times * lines, 1), share_of(times * s.ask->v.lines, 1), false} : Share{};
  for (int key = 0; key < s.count; key += kDecodeStep) {
    const float* keys[kDecodeStep];
    keys_of(key, keys);
    if (is_short) ask_for(*s.ask, at_once);
    int block = 0;
    for (; block + 2 <= blocks; block += 2) score_keys<Op, 2>(s, keys, key, block, share);
    if (block < blocks) score_keys<Op, 1>(s, keys, key, block, share);
  }
}

// Rows as they lie.
template <class Op>
TILEWISE_INLINE void score_plain(const DecodeStrip& s) {
  score_all<Op>(s, [&](int key, const float*(&keys)[kDecodeStep]) __attribute__((always_inline)) {
    TILEWISE_UNROLL
    for (int k = 0; k < kDecodeStep; ++k) keys[k] = static_cast<const float*>(s.k->data[key + k]);
  });
}

// Rows turned into f32 first.
template <class In>
void scores(const DecodeStrip& s) {
  const int pad = padded(s.head_dim), whole = s.head_dim - s.head_dim % kWidth;
  score_all<Multiply>(s, [&](int key, const float*(&keys)[kDecodeStep]) {
    for (int k = 0; k < kDecodeStep; ++k) {
      float* const to = s.widened + k * pad;
      const typename In::Row row = In::at(*s.k, key + k < s.count ? key + k : s.count - 1, pad);
      int d = 0;
      for (; d < whole; d += kWidth) store(to + d, In::load(row, d));
      if (d < s.head_dim) store(to + d, In::load_n(row, d, s.head_dim - d));
      keys[k] = to;
    }
  });
}
void scores_f32(const DecodeStrip& s) {
  if (s.head_dim % 4 != 0) return scores<F32>(s);
  score_plain<Multiply>(s);
}
void scores_bf16(const DecodeStrip& s) {
#if TILEWISE_TARGET_LEVEL >= 3
  if (s.has_pairs && s.head_dim % 8 == 0) return score_plain<Dot>(s);
  if (s.has_pairs) {
    return score_all<Dot>(s, [&](int key, const float*(&keys)[kDecodeStep]) {
      for (int k = 0; k < kDecodeStep; ++k) {
        float* const to = s.widened + k * s.chunks * 4;
        to[s.chunks * 4 - 1] = to[s.chunks * 4 - 2] = to[s.chunks * 4 - 3] = to[s.chunks * 4 - 4] = 0;
        __builtin_memcpy(to, s.k->data[key + k], static_cast<size_t>(s.head_dim) * 2);
        keys[k] = to;
      }
    });
  }
#endif
  scores<Bf16>(s);
}

void lay(const void* first, int64_t stride, int count, const void** to) {
  const auto address = reinterpret_cast<uintptr_t>(first);
  for (int i = 0; i < count; ++i) to[i] = reinterpret_cast<const void*>(address + static_cast<uintptr_t>(i) * static_cast<uintptr_t>(stride));
}

// Keys that a row does not read get -infinity.
void test_row(const DecodeStrip& s, float* score, int row) {
  for (int i = 0; i < s.count; ++i) {
    const bool is_seen = s.token[i] == INT32_MIN || (s.token[i] <= s.last[row] && (s.token[i] >= s.first[row] || s.token[i] < s.sink[row]));
    if (!is_seen || (s.queries[i] & s.query[row]) == 0) score[i / 4 * kWidth + i % 4] = -kInfinity;
  }
}

// P = 2^(s * c - m * c) in place of the scores; with it the running maximum and sum.
void softmax(const DecodeStrip& s) {
  const int fours = (s.count + 3) / 4;
  const float c = s.softcap != 0 ? kLog2E : s.scale * kLog2E;
  for (int row = 0; row < s.rows; row += kBlock) {
    float* const score = s.scores + row * kDecodeStrip;
    for (int i = 0; i < fours && s.has_scale_k; ++i) {  // (code - zero) * scale of each key, taken out of the sum over channels
      const Vf centred = sub(load(score + i * kWidth), mul(broadcast_four(s.k->zero + i * 4), load(s.q_sum + row * 4)));
      store(score + i * kWidth, mul(centred, broadcast_four(s.k->scale + i * 4)));
    }
    for (int i = 0; i < fours && s.softcap != 0; ++i) {
      const Vf x = mul(load(score + i * kWidth), broadcast(s.scale / s.softcap));
      store(score + i * kWidth, mul(broadcast(s.softcap), tanh(x)));
    }
    for (int r = row; r < row + kBlock && r < s.rows && s.is_tested; ++r) test_row(s, score + (r - row) * 4, r);
    for (int i = s.count; i < fours * 4; ++i) {
      for (int r = 0; r < kBlock; ++r) score[i / 4 * kWidth + r * 4 + i % 4] = -kInfinity;
    }

    Vf most = load(score);
    for (int i = 1; i < fours; ++i) most = max(most, load(score + i * kWidth));
    const Vf before = load(s.row_max + row * 4), now = max(before, max_fours(most));
    const Vf finite = select(equal(now, broadcast(-kInfinity)), zero(), now);
    const Vf shift = mul(finite, broadcast(-c));
    Vf sum = zero(), zeros = zero();
    for (int i = 0; i < fours; ++i) {
      Vf p = exp2(fma(load(score + i * kWidth), broadcast(c), shift));
      sum = add(sum, p);
      if (s.has_scale_v) {
        p = mul(p, broadcast_four(s.v->scale + i * 4));
        zeros = fma(p, broadcast_four(s.v->zero + i * 4), zeros);
      }
      store(score + i * kWidth, p);
    }
    // Exactly 1 where nothing moved: exp2(0) is off by 1e-7 on some targets, which 64 strips would add up.
    const Vf rescale = select(equal(before, now), broadcast(1.0f), exp2(mul(sub(before, finite), broadcast(c))));
    store(s.rescale + row * 4, rescale);
    store(s.correction + row * 4, zeros);
    store(s.row_max + row * 4, now);
    store(s.row_sum + row * 4, fma(load(s.row_sum + row * 4), rescale, sum));
  }
}

// V vectors of channels from d on. Of bf16, two are even and odd channels: one instruction each instead of two.
template <class In, int V>
inline constexpr bool kHasPairs = false;
template <int V>
inline constexpr bool kHasPairs<Bf16, V> = V % 2 == 0;

template <class In, int V>
TILEWISE_INLINE void load_channels(const typename In::Row& row, int d, int left, Vf (&x)[V]) {
  TILEWISE_UNROLL
  for (int j = 0; j < V; ++j) {
    if constexpr (kHasPairs<In, V>) {
      if (j % 2 == 0) load_bf16_pairs(static_cast<const uint16_t*>(row.data) + d + j * kWidth, x[j], x[j + 1]);
    } else {
      x[j] = V == 1 && left < kWidth ? In::load_n(row, d, left) : In::load(row, d + j * kWidth);
    }
  }
}
template <class In, int V>
TILEWISE_INLINE void put_in_order(Vf (&sums)[V]) {
  if constexpr (kHasPairs<In, V>) {
    TILEWISE_UNROLL
    for (int j = 0; j < V; j += 2) interleave(sums[j], sums[j + 1], sums[j], sums[j + 1]);
  }
}

// sums = sums * rescale + P V of keys [key, end) for R rows and V vectors of channels from d on; the last vector may be short. Of what is asked for ahead, the
// same share.
template <class In, int R, int V>
TILEWISE_INLINE void value_block(const DecodeStrip& s, int key, int end, int row, int d, int left, Share share) {
  const int pad = padded(s.head_dim_v);
  // Rows of a group lie in one block, or in whole ones: their probabilities are at distances that the compiler knows.
  const float* const p = s.scores + row / kBlock * kBlock * kDecodeStrip + row % kBlock * 4;
  if (row > 0) share = {};
  Vf acc[R][V];
  TILEWISE_UNROLL
  for (int r = 0; r < R; ++r) {
    TILEWISE_UNROLL
    for (int j = 0; j < V; ++j) acc[r][j] = zero();
  }
  const auto add_key = [&](int i, int u) __attribute__((always_inline)) {
    const typename In::Row values = In::at(*s.v, i + u, pad);
    Vf x[V];
    load_channels<In, V>(values, d, left, x);
    TILEWISE_UNROLL
    for (int r = 0; r < R; ++r) {
      const Vf weight = broadcast_at(p + i * kBlock + r / kBlock * kBlock * kDecodeStrip + r % kBlock * 4 + u);
      TILEWISE_UNROLL
      for (int j = 0; j < V; ++j) acc[r][j] = fma(x[j], weight, acc[r][j]);
    }
  };
  int i = key;
  for (; i + 4 <= end; i += 4) {
    TILEWISE_UNROLL
    for (int u = 0; u < 4; ++u) {
      if (u == 0 || (u == 2 && share.is_twice)) ask_for(*s.ask, share);
      add_key(i, u);
    }
  }
  for (int u = 0; i + u < end; ++u) add_key(i, u);
  TILEWISE_UNROLL
  for (int r = 0; r < R; ++r) {
    float* const sums = s.sums + static_cast<int64_t>(row + r) * pad + d;
    put_in_order<In, V>(acc[r]);
    if (key > 0) {
      TILEWISE_UNROLL
      for (int j = 0; j < V; ++j) store(sums + j * kWidth, add(load(sums + j * kWidth), acc[r][j]));
      continue;
    }
    const float* const parts = s.correction + (row + r) * 4;
    const Vf rescale = broadcast(s.rescale[(row + r) * 4]), correction = broadcast((parts[0] + parts[2]) + (parts[1] + parts[3]));
    TILEWISE_UNROLL
    for (int j = 0; j < V; ++j) store(sums + j * kWidth, fma(load(sums + j * kWidth), rescale, sub(acc[r][j], correction)));
  }
}

template <class In, int R>
TILEWISE_INLINE void value_rows(const DecodeStrip& s, int key, int end, int row, Share share) {
  constexpr int V = kSumsInFlight / R > 8 ? 8 : kSumsInFlight / R;
  int d = 0;
  for (; d + V * kWidth <= s.head_dim_v; d += V * kWidth) value_block<In, R, V>(s, key, end, row, d, kWidth, share);
  for (; d < s.head_dim_v; d += kWidth) value_block<In, R, 1>(s, key, end, row, d, s.head_dim_v - d, share);
}

template <class In>
void values(const DecodeStrip& s) {
  const int passes = passes_of(s), keys = passes == 1 ? kDecodeStrip : kDecodeValues;
  Share share = values_ask(s) ? share_of(s, passes) : Share{};
  if (share.k >= 8) {
    share = share_of(s, 2 * passes);
    share.is_twice = true;
  }
  for (int key = 0; key < s.count; key += keys) {
    const int end = key + keys < s.count ? key + keys : s.count;
    int row = 0;
    for (; row + 4 <= s.rows; row += 4) value_rows<In, 4>(s, key, end, row, share);
    if (row + 2 <= s.rows) {
      value_rows<In, 2>(s, key, end, row, share);
      row += 2;
    }
    if (row < s.rows) value_rows<In, 1>(s, key, end, row, share);
  }
}

}  // namespace

extern const DecodeTable decode_table;
// NOLINTNEXTLINE(misc-definitions-in-headers): this file is compiled once for each target, in a namespace of its own
const DecodeTable decode_table{
    .rows = kBlock,
    .dots_bf16 = TILEWISE_TARGET_LEVEL >= 3,
    .lay = &lay,
    .scores = {&scores_f32, &scores_bf16, &scores<F16>, &scores<I8>, &scores<I4>, &scores<Scaled<I8>>, &scores<Scaled<I4>>},
    .softmax = &softmax,
    .values = {&values<F32>, &values<Bf16>, &values<F16>, &values<I8>, &values<I4>, &values<Scaled<I8>>, &values<Scaled<I4>>},
};

}  // namespace tilewise::attend::cpu::TILEWISE_TARGET
