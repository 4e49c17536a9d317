// SPDX-License-Identifier: Apache-2.0
// Decode of one strip of keys, compiled once per target. A cache is read once and every element meets a few rows only, so lanes are channels: keys and values
// are loaded whole, from where and as they lie, and turned into f32 in registers. kWidth scores are summed over their lanes together.
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

// Lane i: the sum of the lanes of rows[i].
TILEWISE_INLINE Vf sum_each(Vf (&rows)[kWidth]) {
  transpose(rows);
  TILEWISE_UNROLL
  for (int step = kWidth / 2; step > 0; step /= 2) {
    TILEWISE_UNROLL
    for (int i = 0; i < step; ++i) rows[i] = add(rows[i], rows[i + step]);
  }
  return rows[0];
}

// Products in f32, kWidth channels a step.
template <class In>
struct Multiply {
  using Keys = In;
  static constexpr int kStep = kWidth, kPerFloat = 1;
  TILEWISE_INLINE Vf load(const typename In::Row& row, int d) { return In::load(row, d); }
  TILEWISE_INLINE Vf load_n(const typename In::Row& row, int d, int n) { return In::load_n(row, d, n); }
  TILEWISE_INLINE Vf multiply_add(Vf acc, Vf x, Vf q) { return fma(x, q, acc); }
};
#if TILEWISE_TARGET_LEVEL >= 3
struct Dot {
  using Keys = Bf16;
  static constexpr int kStep = 2 * kWidth, kPerFloat = 2;
  TILEWISE_INLINE Vf load(const Plain& row, int d) { return F32::load(row, d / 2); }
  TILEWISE_INLINE Vf load_n(const Plain& row, int d, int n) { return F32::load_n(row, d / 2, n / 2); }
  TILEWISE_INLINE Vf multiply_add(Vf acc, Vf x, Vf q) { return dot_bf16(acc, x, q); }
};
#endif

// Scores of R rows.
template <class Op, int R>
TILEWISE_INLINE void score_rows(const DecodeStrip& s, int row) {
  constexpr int K = kWidth / R;  // keys at a time
  using Keys = typename Op::Keys;
  const int pad = padded(s.head_dim), whole = s.head_dim - s.head_dim % Op::kStep;
  const float* q[R];
  TILEWISE_UNROLL
  for (int r = 0; r < R; ++r) q[r] = s.q + static_cast<int64_t>(row + r) * pad;
  for (int key = 0; key < s.count; key += K) {
    typename Keys::Row keys[K];
    TILEWISE_UNROLL
    for (int k = 0; k < K; ++k) keys[k] = Keys::at(*s.k, key + k < s.count ? key + k : s.count - 1, pad);
    Vf acc[kWidth];
    TILEWISE_UNROLL
    for (int i = 0; i < kWidth; ++i) acc[i] = zero();
    const auto step = [&](int d, auto&& load_key) __attribute__((always_inline)) {
      Vf queries[R];
      TILEWISE_UNROLL
      for (int r = 0; r < R; ++r) queries[r] = load(q[r] + d / Op::kPerFloat);
      TILEWISE_UNROLL
      for (int k = 0; k < K; ++k) {
        const Vf x = load_key(keys[k]);
        TILEWISE_UNROLL
        for (int r = 0; r < R; ++r) acc[r * K + k] = Op::multiply_add(acc[r * K + k], x, queries[r]);
      }
    };
    int d = 0;
    for (; d < whole; d += Op::kStep) step(d, [d](const auto& row_of_key) __attribute__((always_inline)) { return Op::load(row_of_key, d); });
    if (d < s.head_dim) {
      const int left = s.head_dim - d;
      step(d, [d, left](const auto& row_of_key) __attribute__((always_inline)) { return Op::load_n(row_of_key, d, left); });
    }
    float sums[kWidth];
    store(sums, sum_each(acc));
    TILEWISE_UNROLL
    for (int r = 0; r < R; ++r) __builtin_memcpy(s.scores + (row + r) * kDecodeStrip + key, sums + r * K, K * sizeof(float));
  }
}

template <class Op>
TILEWISE_INLINE void score_all(const DecodeStrip& s) {
  int row = 0;
  for (; row + 4 <= s.rows; row += 4) score_rows<Op, 4>(s, row);
  if (row + 2 <= s.rows) {
    score_rows<Op, 2>(s, row);
    row += 2;
  }
  if (row < s.rows) score_rows<Op, 1>(s, row);
}

template <class In>
void scores(const DecodeStrip& s) {
  score_all<Multiply<In>>(s);
}
void scores_bf16(const DecodeStrip& s) {
#if TILEWISE_TARGET_LEVEL >= 3
  if (s.has_pairs) return score_all<Dot>(s);
#endif
  score_all<Multiply<Bf16>>(s);
}

// Keys that a row does not read get -infinity.
void test_row(const DecodeStrip& s, int row) {
  float* const score = s.scores + row * kDecodeStrip;
  for (int i = 0; i < s.count; ++i) {
    const bool is_seen = s.token[i] == INT32_MIN || (s.token[i] <= s.last[row] && (s.token[i] >= s.first[row] || s.token[i] < s.sink[row]));
    if (!is_seen || (s.queries[i] & s.query[row]) == 0) score[i] = -kInfinity;
  }
}

// P = 2^(s * c - m * c) in place of the scores; with it the running maximum and sum.
void softmax(const DecodeStrip& s) {
  const int vectors = (s.count + kWidth - 1) / kWidth;
  const float c = s.softcap != 0 ? kLog2E : s.scale * kLog2E;
  for (int row = 0; row < s.rows; ++row) {
    float* const score = s.scores + row * kDecodeStrip;
    for (int j = 0; j < vectors && s.has_scale_k; ++j) {  // (code - zero) * scale of each key, taken out of the sum over channels
      const Vf centred = fma(load(s.k->zero + j * kWidth), broadcast(-s.q_sum[row]), load(score + j * kWidth));
      store(score + j * kWidth, mul(centred, load(s.k->scale + j * kWidth)));
    }
    for (int j = 0; j < vectors && s.softcap != 0; ++j) {
      const Vf x = mul(load(score + j * kWidth), broadcast(s.scale / s.softcap));
      store(score + j * kWidth, mul(broadcast(s.softcap), tanh(x)));
    }
    if (s.is_tested) test_row(s, row);
    for (int i = s.count; i < vectors * kWidth; ++i) score[i] = -kInfinity;

    Vf most = broadcast(-kInfinity);
    for (int j = 0; j < vectors; ++j) most = max(most, load(score + j * kWidth));
    const float before = s.row_max[row], here = reduce_max(most);
    const float now = here > before ? here : before;
    const Vf shift = broadcast(now == -kInfinity ? 0.0f : -now * c);
    Vf sum = zero(), zeros = zero();
    for (int j = 0; j < vectors; ++j) {
      Vf p = exp2(fma(load(score + j * kWidth), broadcast(c), shift));
      sum = add(sum, p);
      if (s.has_scale_v) {
        p = mul(p, load(s.v->scale + j * kWidth));
        zeros = fma(p, load(s.v->zero + j * kWidth), zeros);
      }
      store(score + j * kWidth, p);
    }
    float lanes[kWidth];
    store(lanes, exp2(broadcast(before == -kInfinity ? -kInfinity : (before - now) * c)));
    s.rescale[row] = lanes[0];
    s.correction[row] = s.has_scale_v ? reduce_add(zeros) : 0.0f;
    s.row_max[row] = now;
    s.row_sum[row] = s.row_sum[row] * lanes[0] + reduce_add(sum);
  }
}

// sums = sums * rescale + P V for R rows and V vectors of channels from d on; the last vector may be short.
template <class In, int R, int V>
TILEWISE_INLINE void value_block(const DecodeStrip& s, int row, int d, int left) {
  const int pad = padded(s.head_dim_v);
  const float* p[R];
  Vf acc[R][V];
  TILEWISE_UNROLL
  for (int r = 0; r < R; ++r) {
    p[r] = s.scores + (row + r) * kDecodeStrip;
    TILEWISE_UNROLL
    for (int j = 0; j < V; ++j) acc[r][j] = zero();
  }
  const auto add_key = [&](int i, auto&& load_value) __attribute__((always_inline)) {
    const typename In::Row values = In::at(*s.v, i, pad);
    Vf x[V];
    TILEWISE_UNROLL
    for (int j = 0; j < V; ++j) x[j] = load_value(values, d + j * kWidth);
    TILEWISE_UNROLL
    for (int r = 0; r < R; ++r) {
      const Vf weight = broadcast_at(p[r] + i);
      TILEWISE_UNROLL
      for (int j = 0; j < V; ++j) acc[r][j] = fma(x[j], weight, acc[r][j]);
    }
  };
  if (left < kWidth) {
    for (int i = 0; i < s.count; ++i) {
      add_key(i, [left](const auto& values, int at) __attribute__((always_inline)) { return In::load_n(values, at, left); });
    }
  } else {
    for (int i = 0; i < s.count; ++i) {
      add_key(i, [](const auto& values, int at) __attribute__((always_inline)) { return In::load(values, at); });
    }
  }
  TILEWISE_UNROLL
  for (int r = 0; r < R; ++r) {
    const Vf rescale = broadcast(s.rescale[row + r]), correction = broadcast(s.correction[row + r]);
    float* const sums = s.sums + static_cast<int64_t>(row + r) * pad + d;
    TILEWISE_UNROLL
    for (int j = 0; j < V; ++j) store(sums + j * kWidth, fma(load(sums + j * kWidth), rescale, sub(acc[r][j], correction)));
  }
}

#if TILEWISE_TARGET_LEVEL >= 2
inline constexpr int kSums = 16;  // vectors of sums in flight
#else
inline constexpr int kSums = 8;
#endif

template <class In, int R>
TILEWISE_INLINE void value_rows(const DecodeStrip& s, int row) {
  constexpr int V = kSums / R > 8 ? 8 : kSums / R;
  int d = 0;
  for (; d + V * kWidth <= s.head_dim_v; d += V * kWidth) value_block<In, R, V>(s, row, d, kWidth);
  for (; d < s.head_dim_v; d += kWidth) value_block<In, R, 1>(s, row, d, s.head_dim_v - d);
}

template <class In>
void values(const DecodeStrip& s) {
  int row = 0;
  for (; row + 4 <= s.rows; row += 4) value_rows<In, 4>(s, row);
  if (row + 2 <= s.rows) {
    value_rows<In, 2>(s, row);
    row += 2;
  }
  if (row < s.rows) value_rows<In, 1>(s, row);
}

}  // namespace

extern const DecodeTable decode_table;
// NOLINTNEXTLINE(misc-definitions-in-headers): this file is compiled once for each target, in a namespace of its own
const DecodeTable decode_table{
    .dots_bf16 = TILEWISE_TARGET_LEVEL >= 3,
    .scores = {&scores<F32>, &scores_bf16, &scores<F16>, &scores<I8>, &scores<I4>, &scores<Scaled<I8>>, &scores<Scaled<I4>>},
    .softmax = &softmax,
    .values = {&values<F32>, &values<Bf16>, &values<F16>, &values<I8>, &values<I4>, &values<Scaled<I8>>, &values<Scaled<I4>>},
};

}  // namespace tilewise::attend::cpu::TILEWISE_TARGET
