// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "tilewise/infer/drawn_weight.h"
#include "tilewise/machine/cuda/block.h"

// What a model on a GPU runs between its products and its attention, written over a block of threads (machine/cuda/block.h). Sums have a fixed order.
// Kernels that sum over a row take one thread block a row, the others kPerBlock elements of a row.
namespace tilewise::infer::cuda {

constexpr int kThreads = 256, kTurnThreads = 64;  // pairs of a head of 128 channels
constexpr int64_t kPerBlock = 4 * kThreads;
constexpr unsigned long kSumBytes = kThreads * sizeof(double);  // shared memory of every kernel

TILEWISE_HOST_DEVICE constexpr int64_t blocks_of(int64_t elements) { return (elements + kPerBlock - 1) / kPerBlock; }

/// Where a number goes in the model's dtype.
struct Output {
  void* data = nullptr;
  bool is_bf16 = false;
};

/// Rounds to nearest, ties to even, as tilewise::bf16 does.
TILEWISE_HOST_DEVICE inline uint16_t bf16_bits(float value) {
  const uint32_t u = std::bit_cast<uint32_t>(value);
  const bool is_nan = (u & 0x7fffffffU) > 0x7f800000U;
  return is_nan ? static_cast<uint16_t>((u >> 16) | 0x40U) : static_cast<uint16_t>((u + 0x7fffU + ((u >> 16) & 1U)) >> 16);
}

TILEWISE_HOST_DEVICE inline void put(const Output& to, int64_t at, float value) {
  if (to.is_bf16) {
    static_cast<uint16_t*>(to.data)[at] = bf16_bits(value);
  } else {
    static_cast<float*>(to.data)[at] = value;
  }
}

/// body(row, column) for the cells of this thread block, each by one thread, neighbours side by side. Rows are cut into pieces of kPerBlock columns, so that
/// a thread block divides once.
template <class Block, class Body>
TILEWISE_DEVICE void for_cells(Block& block, int64_t width, const Body& body) {
  const int64_t pieces = blocks_of(width), row = block.index() / pieces, first = block.index() % pieces * kPerBlock;
  block.each([&](int thread) {
    for (int64_t column = first + thread; column < first + kPerBlock && column < width; column += kThreads) body(row, column);
  });
}

/// residual[row] = embedding[token[row]]
struct EmbedArgs {
  const float* embedding = nullptr;  // [vocab, width]
  const int32_t* tokens = nullptr;  // [rows]
  float* residual = nullptr;  // [rows, width]
  int64_t rows = 0, width = 0;
  static constexpr int kBlockThreads = kThreads;
  int64_t blocks() const { return rows * blocks_of(width); }
};
template <class Block>
TILEWISE_DEVICE void embed_kernel(Block& block, const EmbedArgs& args) {
  for_cells(block, args.width,
            [&](int64_t row, int64_t column) { args.residual[row * args.width + column] = args.embedding[args.tokens[row] * args.width + column]; });
}

/// y = x / sqrt(mean(x^2) + eps) * weight, a row each.
struct NormArgs {
  const float* x = nullptr;  // [rows, width]
  const float* weight = nullptr;  // [width]
  Output y;  // [rows, width]
  int64_t rows = 0, width = 0;
  float eps = 0;
  static constexpr int kBlockThreads = kThreads;
  int64_t blocks() const { return rows; }
};
template <class Block>
TILEWISE_DEVICE void norm_kernel(Block& block, const NormArgs& args) {
  float* const sums = reinterpret_cast<float*>(block.shared());
  const int64_t row = static_cast<int64_t>(block.index()) * args.width;
  block.each([&](int thread) {
    float sum = 0;
    for (int64_t i = thread; i < args.width; i += kThreads) sum += args.x[row + i] * args.x[row + i];
    sums[thread] = sum;
  });
  const float sum = machine::cuda::folded(block, sums, [](float a, float b) { return a + b; });
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(args.width) + args.eps);
  block.each([&](int thread) {
    for (int64_t i = thread; i < args.width; i += kThreads) put(args.y, row + i, args.x[row + i] * scale * args.weight[i]);
  });
}

/// Of what the product of q, k and v gave: bias, norm of each head of q and k, rotary; q to its buffer, k and v into the cache. A thread block takes one
/// head of one row.
struct TurnArgs {
  const float* qkv = nullptr;  // [rows, (Hq + 2 Hkv) D]: heads of q, then k, then v
  const float* bias = nullptr;  // [(Hq + 2 Hkv) D], or null
  const float *q_norm = nullptr, *k_norm = nullptr;  // [D], or null
  const float* angles = nullptr;  // [rows, D]: cosines, then sines
  Output q;  // [rows, Hq, D]
  Output k, v;  // of the first row: [Hkv, capacity, D]
  int64_t rows = 0, heads_q = 0, heads_kv = 0, head_dim = 0;
  int64_t stride_head = 0;  // of the cache, elements
  float eps = 0;
  static constexpr int kBlockThreads = kTurnThreads;
  int64_t blocks() const { return rows * (heads_q + 2 * heads_kv); }
};
template <class Block>
TILEWISE_DEVICE void turn_kernel(Block& block, const TurnArgs& args) {
  float* const sums = reinterpret_cast<float*>(block.shared());
  const int64_t heads = args.heads_q + 2 * args.heads_kv, dim = args.head_dim, half = dim / 2;
  const int64_t row = block.index() / heads, head = block.index() % heads;
  const bool is_q = head < args.heads_q, is_v = head >= args.heads_q + args.heads_kv;
  const float* const from = args.qkv + (row * heads + head) * dim;
  const auto value = [&](int64_t i) { return args.bias == nullptr ? from[i] : from[i] + args.bias[head * dim + i]; };
  const float* const norm = is_q ? args.q_norm : is_v ? nullptr : args.k_norm;
  float scale = 1;
  if (norm != nullptr) {
    block.each([&](int thread) {
      float sum = 0;
      for (int64_t i = thread; i < dim; i += kTurnThreads) sum += value(i) * value(i);
      sums[thread] = sum;
    });
    const float sum = machine::cuda::folded(block, sums, [](float a, float b) { return a + b; });
    scale = 1.0f / std::sqrt(sum / static_cast<float>(dim) + args.eps);
  }
  const auto normed = [&](int64_t i) { return norm == nullptr ? value(i) : value(i) * scale * norm[i]; };
  const Output to = is_q ? args.q : is_v ? args.v : args.k;
  const int64_t at = is_q   ? (row * args.heads_q + head) * dim
                     : is_v ? (head - args.heads_q - args.heads_kv) * args.stride_head + row * dim
                            : (head - args.heads_q) * args.stride_head + row * dim;
  block.each([&](int thread) {
    for (int64_t i = thread; i < half; i += kTurnThreads) {
      const float a = normed(i), b = normed(i + half);
      const float c = is_v ? 1.0f : args.angles[row * dim + i], s = is_v ? 0.0f : args.angles[row * dim + i + half];
      put(to, at + i, is_v ? a : a * c - b * s);
      put(to, at + i + half, is_v ? b : b * c + a * s);
    }
  });
}

/// y = silu(gate + bias) * (up + bias)
struct SiluArgs {
  const float* gate_up = nullptr;  // [rows, 2 width]: gate, then up
  const float* bias = nullptr;  // [2 width], or null
  Output y;  // [rows, width]
  int64_t rows = 0, width = 0;
  static constexpr int kBlockThreads = kThreads;
  int64_t blocks() const { return rows * blocks_of(width); }
};
template <class Block>
TILEWISE_DEVICE void silu_kernel(Block& block, const SiluArgs& args) {
  for_cells(block, args.width, [&](int64_t row, int64_t column) {
    const float* const from = args.gate_up + 2 * row * args.width;
    float gate = from[column], up = from[args.width + column];
    if (args.bias != nullptr) {
      gate += args.bias[column];
      up += args.bias[args.width + column];
    }
    put(args.y, row * args.width + column, gate / (1.0f + std::exp(-gate)) * up);
  });
}

/// y += bias
struct BiasArgs {
  const float* bias = nullptr;  // [width]
  float* y = nullptr;  // [rows, width]
  int64_t rows = 0, width = 0;
  static constexpr int kBlockThreads = kThreads;
  int64_t blocks() const { return rows * blocks_of(width); }
};
template <class Block>
TILEWISE_DEVICE void bias_kernel(Block& block, const BiasArgs& args) {
  for_cells(block, args.width, [&](int64_t row, int64_t column) { args.y[row * args.width + column] += args.bias[column]; });
}

/// bits[row] = -log2 of the share that target[row] has in softmax(logits[row]): exponentials in f32, their sum in f64; nothing for a row whose target is below 0.
struct BitsArgs {
  const float* logits = nullptr;  // [rows, width]
  const int32_t* targets = nullptr;  // [rows]
  double* bits = nullptr;  // [rows]
  int64_t rows = 0, width = 0;
  static constexpr int kBlockThreads = kThreads;
  int64_t blocks() const { return rows; }
};
template <class Block>
TILEWISE_DEVICE void bits_kernel(Block& block, const BitsArgs& args) {
  if (args.targets[block.index()] < 0) return;
  float* const largest_of = reinterpret_cast<float*>(block.shared());
  double* const sums = reinterpret_cast<double*>(block.shared());
  const float* const logits = args.logits + static_cast<int64_t>(block.index()) * args.width;
  block.each([&](int thread) {
    float largest = logits[0];
    for (int64_t i = thread; i < args.width; i += kThreads) largest = logits[i] > largest ? logits[i] : largest;
    largest_of[thread] = largest;
  });
  const float largest = machine::cuda::folded(block, largest_of, [](float a, float b) { return b > a ? b : a; });
  block.each([&](int thread) {
    double sum = 0;
    for (int64_t i = thread; i < args.width; i += kThreads) sum += static_cast<double>(std::exp(logits[i] - largest));
    sums[thread] = sum;
  });
  const double sum = machine::cuda::folded(block, sums, [](double a, double b) { return a + b; });
  block.each([&](int thread) {
    if (thread != 0) return;
    const double target = static_cast<double>(logits[args.targets[block.index()]]);
    args.bits[block.index()] = (std::log(sum) + static_cast<double>(largest) - target) * 1.4426950408889634;
  });
}

/// y[i] = drawn_weight(key, i, deviation)
struct DrawArgs {
  uint64_t key = 0;
  float deviation = 0;
  Output y;  // [count]
  int64_t count = 0;
  static constexpr int kBlockThreads = kThreads;
  int64_t blocks() const { return blocks_of(count); }
};
template <class Block>
TILEWISE_DEVICE void draw_kernel(Block& block, const DrawArgs& args) {
  for_cells(block, args.count, [&](int64_t, int64_t i) { put(args.y, i, drawn_weight(args.key, i, args.deviation)); });
}

}  // namespace tilewise::infer::cuda
