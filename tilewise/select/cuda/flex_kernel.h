// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "tilewise/select/cuda/choose_kernel.h"

// What flexprefill chooses on a GPU, a block a head: columns and diagonals of tiles from the sums over the last queries, or the best of the map of means.
namespace tilewise::select::cuda {

struct FlexArgs {
  const float* sums[2];  // [batch_heads, Sk] by key, by distance, over `queries`
  const float *mean_q, *mean_k;  // [batch_heads, D] of the last queries, [B * Hkv, tiles, D]
  const float* map;  // [batch_heads, rows, tiles]
  int64_t seqlen_k, rows;
  int heads, group, dim, queries, tile, tiles, words;
  float gamma, tau, scale, softcap;
  int64_t min_budget, max_budget;
  // Written: [batch_heads, words] bits of tiles, [batch_heads] whether the head chooses by the map, [batch_heads, map_words] bits of row * tiles + tile.
  uint32_t *columns, *diagonals, *map_bits;
  int32_t* asks;
  int64_t map_words;
};

constexpr int kFlexThreads = 512;

/// Where a walk over values, largest first, ends that stays within a share: all above `threshold`, and the first `at_threshold` of those that have its bits.
struct CoverCut {
  uint32_t threshold;
  int64_t at_threshold, covered;
};

struct CoverParts {
  unsigned long long *mass, *held;  // [256], [1]
  int *count, *found;  // [256], [3] bin, values at it that are taken, values above it

  TILEWISE_HOST_DEVICE explicit CoverParts(machine::cuda::SharedParts& parts)
      : mass(parts.take<unsigned long long>(256)), held(parts.take<unsigned long long>(1)), count(parts.take<int>(256)), found(parts.take<int>(3)) {}
};

/// A value as a whole number of 2^-50: sums of these do not depend on their order, so that threads may add as they come.
TILEWISE_HOST_DEVICE inline unsigned long long fixed_of(float value) { return static_cast<unsigned long long>(static_cast<double>(value) * 0x1p50); }

/// values[0 .. size) are finite and at least 0; `share` as fixed_of.
template <class Block, class ValueOf>
TILEWISE_DEVICE CoverCut cover_cut(Block& block, const CoverParts& at, int64_t size, const ValueOf& value_of, unsigned long long share) {
  const int threads = block.threads();
  block.each([&](int thread) {
    if (thread != 0) return;
    *at.held = 0;
    at.found[2] = 0;
  });
  CoverCut cut{0, 0, 0};
  for (int shift = 24; shift >= 0; shift -= 8) {
    const uint32_t decided = shift == 24 ? 0 : ~uint32_t{0} << (shift + 8);
    block.each([&](int thread) {
      for (int bin = thread; bin < 256; bin += threads) {
        at.mass[bin] = 0;
        at.count[bin] = 0;
      }
    });
    block.each([&](int thread) {
      for (int64_t i = thread; i < size; i += threads) {
        const float value = value_of(i);
        const auto bits = std::bit_cast<uint32_t>(value);
        if ((bits & decided) != cut.threshold) continue;
        block.add(&at.count[(bits >> shift) & 255], 1);
        block.add(&at.mass[(bits >> shift) & 255], fixed_of(value));
      }
    });
    block.each([&](int thread) {
      if (thread != 0) return;
      int bin = 255, taken = 0;
      unsigned long long held = *at.held;
      while (bin >= 0 && held + at.mass[bin] <= share) {
        held += at.mass[bin];
        taken += at.count[bin--];
      }
      *at.held = held;
      at.found[0] = bin;
      at.found[2] += taken;
      // On the last byte all of a bin are equal; it is not empty and holds more than is left.
      at.found[1] = shift == 0 && bin >= 0 ? static_cast<int>((share - held) / (at.mass[bin] / static_cast<unsigned>(at.count[bin]))) : 0;
    });
    const int bin = block.get(at.found[0]);
    cut.covered = block.get(at.found[2]);
    cut.at_threshold = block.get(at.found[1]);
    if (bin < 0) return {cut.threshold, size, cut.covered};  // all there were: those at what is decided by now and above
    cut.threshold |= static_cast<uint32_t>(bin) << shift;
  }
  cut.covered += cut.at_threshold;
  return cut;
}

struct FlexParts {
  uint64_t* keys;  // [power_of_two(tiles)] to be sorted; logarithms of the distance before
  double* sums;  // [2]
  float* pooled[2];  // [tiles]
  int* is_unknown;  // [1]
  CoverParts cover;

  TILEWISE_HOST_DEVICE FlexParts(machine::cuda::SharedParts& parts, int tiles)
      : keys(parts.take<uint64_t>(power_of_two(tiles))),
        sums(parts.take<double>(2)),
        pooled{parts.take<float>(tiles), parts.take<float>(tiles)},
        is_unknown(parts.take<int>(1)),
        cover(parts) {}
};

inline unsigned long flex_shared_bytes(int tiles) {
  machine::cuda::SharedParts parts(nullptr);
  FlexParts(parts, tiles);
  return parts.bytes();
}

/// Whether the mean of the last queries tells the same distribution over tiles as they do: square root of the Jensen-Shannon divergence below tau.
template <class Block>
TILEWISE_DEVICE bool agrees_with_mean(Block& block, const FlexArgs& args, const FlexParts& at, int64_t of) {
  double* const p = reinterpret_cast<double*>(at.keys);
  const int64_t b = of / args.heads, head = of % args.heads, heads_kv = args.heads / args.group;
  const float* const q = args.mean_q + of * args.dim;
  const float* const k = args.mean_k + (b * heads_kv + head / args.group) * args.tiles * args.dim;
  block.each([&](int thread) {
    for (int j = thread; j < args.tiles; j += kFlexThreads) {
      double dot = 0;
      for (int d = 0; d < args.dim; ++d) dot += static_cast<double>(q[d]) * static_cast<double>(k[int64_t{j} * args.dim + d]);
      dot *= static_cast<double>(args.scale);
      const auto cap = static_cast<double>(args.softcap);
      p[j] = cap > 0 ? cap * std::tanh(dot / cap) : dot;
    }
  });
  block.each([&](int thread) {
    if (thread != 0) return;
    double most = p[0];
    for (int j = 1; j < args.tiles; ++j) most = p[j] > most ? p[j] : most;
    at.sums[0] = most;
  });
  const double most = block.get(at.sums[0]);
  block.each([&](int thread) {
    for (int j = thread; j < args.tiles; j += kFlexThreads) p[j] = std::exp(p[j] - most);
  });
  block.each([&](int thread) {
    if (thread != 0) return;
    double total = 0;
    for (int j = 0; j < args.tiles; ++j) total += p[j];
    at.sums[1] = total;
  });
  const double total = block.get(at.sums[1]);
  block.each([&](int thread) {
    for (int j = thread; j < args.tiles; j += kFlexThreads) {
      const double x = p[j] / total, y = static_cast<double>(at.pooled[0][j]), middle = (x + y) / 2;
      p[j] = (x > 0 ? x * std::log(x / middle) / 2 : 0.0) + (y > 0 ? y * std::log(y / middle) / 2 : 0.0);
    }
  });
  block.each([&](int thread) {
    if (thread != 0) return;
    double divergence = 0;
    for (int j = 0; j < args.tiles; ++j) divergence += p[j];
    at.sums[0] = std::sqrt(divergence > 0 ? divergence : 0.0);  // equal distributions may round below 0
  });
  return block.get(at.sums[0]) < static_cast<double>(args.tau);
}

template <class Block>
TILEWISE_DEVICE void flex_kernel(Block& block, const FlexArgs& args) {
  machine::cuda::SharedParts parts(block.shared());
  const FlexParts at(parts, args.tiles);
  const int64_t of = block.index(), size = args.seqlen_k;
  const auto mean_of = [&](int kind, int64_t i) {
    return (kind == 0 ? args.sums[0] : args.sums[1])[of * size + i] / static_cast<float>(args.queries);
  };
  block.each([&](int thread) {
    if (thread == 0) *at.is_unknown = 0;
    for (int word = thread; word < args.words; word += kFlexThreads)
      args.columns[of * args.words + word] = args.diagonals[of * args.words + word] = 0;
  });
  block.each([&](int thread) {
    bool is_known = true;
    for (int64_t i = thread; i < size; i += kFlexThreads)
      is_known = is_known && mean_of(0, i) - mean_of(0, i) == 0 && mean_of(1, i) - mean_of(1, i) == 0;
    if (!is_known) block.max(at.is_unknown, 1);
    for (int tile = thread; tile < args.tiles; tile += kFlexThreads) {
      for (int kind = 0; kind < 2; ++kind) {
        float sum = 0;
        for (int64_t i = int64_t{tile} * args.tile; i < (int64_t{tile} + 1) * args.tile && i < size; ++i) sum += mean_of(kind, i);
        (kind == 0 ? at.pooled[0] : at.pooled[1])[tile] = sum;
      }
    }
  });
  const bool is_known = block.get(*at.is_unknown) == 0;
  const bool asks = is_known && args.tau > 0 && agrees_with_mean(block, args, at, of);
  for (int kind = 0; kind < 2; ++kind) {
    int64_t count = args.tiles;
    if (asks) {
      count = args.min_budget;
    } else if (is_known) {
      const CoverCut cut = cover_cut(block, at.cover, size, [&](int64_t i) { return mean_of(kind, i); }, fixed_of(args.gamma));
      const int64_t tokens = cut.covered + 1 < size ? cut.covered + 1 : size;
      count = tokens / args.tile + 1 > args.min_budget ? tokens / args.tile + 1 : args.min_budget;
      if (args.max_budget > 0 && count > args.max_budget) count = args.max_budget;
    }
    // The first column and the diagonal come before all others, and count.
    const int most_keys = power_of_two(args.tiles);
    block.each([&](int thread) {
      for (int tile = thread; tile < most_keys; tile += kFlexThreads) {
        const float value = tile < args.tiles ? (kind == 0 ? at.pooled[0] : at.pooled[1])[tile] : 0.0f;
        const uint32_t rank = tile == 0 ? 0 : rank_of(value > 0 ? value : 0.0f, false);
        at.keys[tile] = tile < args.tiles ? static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(tile) : ~uint64_t{0};
      }
    });
    sort_keys(block, at.keys, most_keys);
    block.each([&](int thread) {
      uint32_t* const bits = (kind == 0 ? args.columns : args.diagonals) + of * args.words;
      for (int i = thread; i < args.tiles && i < count; i += kFlexThreads) {
        const auto tile = static_cast<uint32_t>(at.keys[i]);
        block.add(&bits[tile / 32], uint32_t{1} << (tile % 32));  // each tile once: adding sets its bit
      }
    });
  }
  block.each([&](int thread) {
    if (thread == 0) args.asks[of] = asks ? 1 : 0;
  });
}

struct FlexMapParts {
  CoverParts cover;
  int *ties, *sums, *is_unknown;
  unsigned long long* total;

  TILEWISE_HOST_DEVICE explicit FlexMapParts(machine::cuda::SharedParts& parts)
      : cover(parts),
        ties(parts.take<int>(kFlexThreads)),
        sums(parts.take<int>(machine::cuda::sums_ints(kFlexThreads))),
        is_unknown(parts.take<int>(1)),
        total(parts.take<unsigned long long>(1)) {}
};

inline unsigned long flex_map_shared_bytes() {
  machine::cuda::SharedParts parts(nullptr);
  FlexMapParts{parts};
  return parts.bytes();
}

/// The best tiles of the map over all rows of a head, as long as their sum stays within gamma of all. Tiles outside the rows' sight hold 0.
template <class Block>
TILEWISE_DEVICE void flex_map_kernel(Block& block, const FlexArgs& args) {
  const int64_t of = block.index(), size = args.rows * args.tiles;
  if (args.asks[of] == 0) return;
  machine::cuda::SharedParts parts(block.shared());
  const FlexMapParts at(parts);
  const float* const map = args.map + of * size;
  block.each([&](int thread) {
    if (thread != 0) return;
    *at.is_unknown = 0;
    *at.total = 0;
  });
  block.each([&](int thread) {
    unsigned long long sum = 0;
    bool is_known = true;
    for (int64_t i = thread; i < size; i += kFlexThreads) {
      is_known = is_known && map[i] - map[i] == 0;
      if (is_known) sum += fixed_of(map[i]);
    }
    block.add(at.total, sum);
    if (!is_known) block.max(at.is_unknown, 1);
  });
  const bool is_known = block.get(*at.is_unknown) == 0;
  const auto share = static_cast<unsigned long long>(static_cast<double>(args.gamma) * static_cast<double>(block.get(*at.total)));
  CoverCut cut{0, size, 0};
  if (is_known) cut = cover_cut(block, at.cover, size, [&](int64_t i) { return map[i]; }, share);
  int64_t left = cut.at_threshold;
  for (int64_t first = 0; first < args.map_words; first += kFlexThreads) {
    const auto is_tie = [&](int64_t i) { return is_known && std::bit_cast<uint32_t>(map[i]) == cut.threshold; };
    block.each([&](int thread) {
      int ties = 0;
      for (int64_t i = (first + thread) * 32; i < (first + thread + 1) * 32 && i < size; ++i) ties += is_tie(i) ? 1 : 0;
      at.ties[thread] = ties;
    });
    const int here = machine::cuda::exclusive_sums(block, at.ties, at.sums);
    block.each([&](int thread) {
      if (first + thread >= args.map_words) return;
      uint32_t word = 0;
      int64_t rest = left - at.ties[thread];
      for (int64_t i = (first + thread) * 32; i < (first + thread + 1) * 32 && i < size; ++i) {
        const bool is_best = !is_known || std::bit_cast<uint32_t>(map[i]) > cut.threshold;
        const bool is_taken = is_best || (is_tie(i) && rest-- > 0);
        if (is_taken && (!is_known || map[i] > 0)) word |= uint32_t{1} << (i % 32);
      }
      args.map_bits[of * args.map_words + first + thread] = word;
    });
    left = left > here ? left - here : 0;
  }
}

}  // namespace tilewise::select::cuda
