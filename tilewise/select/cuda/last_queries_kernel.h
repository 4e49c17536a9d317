// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>
#include <cstdint>

#include "tilewise/select/cuda/warp_product.h"

// last_query_sums() on a GPU: the probabilities of the last queries, added up by key and by distance. Four kernels: the maximum and the sum of exponentials of 64 queries over
// each strip of 64 keys; each query's own from them; the products again, as probabilities that are added up over the 64 queries; sums of these sums. Orders of sums are fixed.
namespace tilewise::select::cuda {

struct LastQueriesArgs {
  const void *q, *k;  // [B, Hq, Sq, D], [B, Hkv, Sk, D]
  int64_t q_batch, q_head, q_token, k_batch, k_head, k_token;  // strides, in elements
  bool is_wide;
  int heads, group, dim;
  int64_t seqlen_q, seqlen_k;
  int queries, row_blocks;  // of 64
  int64_t batch_heads, chunks;  // of 256 keys
  float scale, scale_log2, softcap;
  float *most, *mass;  // [batch_heads, chunks * 4, row_blocks * 64]
  float* shift;  // [batch_heads, row_blocks * 64] log2 of the sum of exponentials
  float* key_part;  // [batch_heads, row_blocks, chunks * 256]
  float* offset_part;  // [batch_heads, row_blocks, chunks, kDiagonals]
  float *key, *offset;  // [batch_heads, Sk] written
};

constexpr int kLastThreads = 128, kLastRows = 64, kLastKeys = 256, kLastStages = 2, kStripsAChunk = kLastKeys / kWarpColumns;
constexpr int kDiagonals = kLastRows + kLastKeys;  // one more than there are
constexpr int kSumThreads = 256;
constexpr unsigned long kLastStageBytes = (kLastRows + kLastKeys) * kRowBytes;
constexpr unsigned long kLastSharedBytes = kLastStages * kLastStageBytes;
constexpr int kWideKeys = kLastKeys + 1;  // of a row of probabilities: columns and diagonals then lie in different banks
static_assert(kLastRows * kWideKeys * sizeof(float) <= kLastSharedBytes);

/// 64 queries and 256 keys of a head.
struct LastItem {
  int64_t of, chunk, first_key, first_token;  // token of the first query, as it counts
  int rows, row_block;

  TILEWISE_DEVICE LastItem(const LastQueriesArgs& args, int64_t index) {
    chunk = index % args.chunks;
    row_block = static_cast<int>(index / args.chunks % args.row_blocks);
    of = index / args.chunks / args.row_blocks;
    first_key = chunk * kLastKeys;
    first_token = args.seqlen_k - args.queries + row_block * kLastRows;
    rows = args.queries - row_block * kLastRows < kLastRows ? args.queries - row_block * kLastRows : kLastRows;
  }
};

/// The logits of block `block.index()`, in exponents of 2, -inf where a query does not see a key.
template <int kDtype, class Block, class Logits>
TILEWISE_DEVICE void last_logits(Block& block, const LastQueriesArgs& args, const LastItem& item, Logits& logits) {
  typename Block::template Registers<RowPieces> rows(block);
  typename Block::template Registers<ColumnPiece> columns(block);
  constexpr int kBytes = kElementBytes<kDtype>;
  const int64_t b = item.of / args.heads, head = item.of % args.heads;
  const auto* const q = static_cast<const unsigned char*>(args.q) + (b * args.q_batch + head * args.q_head) * kBytes;
  const auto* const k = static_cast<const unsigned char*>(args.k) + (b * args.k_batch + head / args.group * args.k_head) * kBytes;
  const int64_t first_query = args.seqlen_q - args.queries + item.row_block * kLastRows;
  const int stages = (args.dim + kStageChannels<kDtype> - 1) / kStageChannels<kDtype>;
  const auto slot = [&](int stage) { return block.shared() + static_cast<unsigned long>(stage % kLastStages) * kLastStageBytes; };
  const auto load = [&](int thread, int stage) {
    if (stage < stages) {
      const int channel = stage * kStageChannels<kDtype>;
      load_rows<kDtype, kLastThreads, kLastRows>({q, args.q_token, args.dim, channel, args.is_wide}, slot(stage), thread,
                                                 [&](int row) { return row < item.rows ? first_query + row : int64_t{-1}; });
      load_rows<kDtype, kLastThreads, kLastKeys>({k, args.k_token, args.dim, channel, args.is_wide}, slot(stage) + kLastRows * kRowBytes, thread,
                                                 [&](int key) { return item.first_key + key < args.seqlen_k ? item.first_key + key : int64_t{-1}; });
    }
    machine::cuda::commit_copies();
  };
  block.each([&](int thread) {
    logits[thread] = WarpLogits{};
    load(thread, 0);
  });
  for (int stage = 0; stage < stages; ++stage) {
    block.each([&](int thread) {
      load(thread, stage + 1);
      machine::cuda::wait_copies<1>();
    });
    block.warps([&](int warp) { multiply_stage<kDtype, kLastRows, kLastKeys>(block, warp, slot(stage), logits, rows, columns); });
    block.each([](int) {});  // nobody reads the slot any more
  }
  block.warps([&](int warp) {
    block.lanes(warp, [&](int thread) {
      const int g = thread % 32 / 4, c = thread % 4;
      TILEWISE_UNROLL for (int i = 0; i < 4; ++i) {
        TILEWISE_UNROLL for (int j = 0; j < 8; ++j) {
          TILEWISE_UNROLL for (int e = 0; e < 4; ++e) {
            float& x = logits[thread].at[i][j][e];
            if (args.softcap > 0) x = args.softcap * std::tanh(x * args.scale / args.softcap);
            const int64_t key = item.first_key + warp * kWarpColumns + 8 * j + 2 * c + e % 2;
            const int row = 16 * i + g + e / 2 * 8;
            x = key < args.seqlen_k && key <= item.first_token + row && row < item.rows ? x * args.scale_log2 : -HUGE_VALF;
          }
        }
      }
    });
  });
}

template <int kDtype, class Block>
TILEWISE_DEVICE void last_stats_kernel(Block& block, const LastQueriesArgs& args) {
  const LastItem item(args, block.index());
  typename Block::template Registers<WarpLogits> logits(block);
  struct Sums {
    float most, mass;
  };
  typename Block::template Registers<Sums> sums(block);
  last_logits<kDtype>(block, args, item, logits);
  const int64_t across = int64_t{args.row_blocks} * kLastRows;
  block.warps([&](int warp) {
    const int64_t strip = (item.of * args.chunks + item.chunk) * kStripsAChunk + warp;
    TILEWISE_UNROLL for (int slot = 0; slot < 8; ++slot) {
      const int i = slot / 2, h = slot % 2;
      block.lanes(warp, [&](int thread) {
        float most = -HUGE_VALF;
        TILEWISE_UNROLL for (int j = 0; j < 8; ++j) {
          TILEWISE_UNROLL for (int e = 0; e < 2; ++e) {
            const float x = logits[thread].at[i][j][2 * h + e];
            most = x > most ? x : most;
          }
        }
        sums[thread].most = most;
      });
      block.fold_lanes(warp, 4, [&](int thread) -> float& { return sums[thread].most; }, [](float a, float b) { return a > b ? a : b; });
      block.lanes(warp, [&](int thread) {
        const float shift = sums[thread].most == -HUGE_VALF ? 0.0f : sums[thread].most;
        float mass = 0;
        TILEWISE_UNROLL for (int j = 0; j < 8; ++j) {
          TILEWISE_UNROLL for (int e = 0; e < 2; ++e) mass += std::exp2(logits[thread].at[i][j][2 * h + e] - shift);
        }
        sums[thread].mass = mass;
      });
      block.fold_lanes(warp, 4, [&](int thread) -> float& { return sums[thread].mass; }, [](float a, float b) { return a + b; });
      block.lanes(warp, [&](int thread) {
        if (thread % 4 != 0) return;
        const int64_t at = strip * across + item.row_block * kLastRows + 16 * i + 8 * h + thread % 32 / 4;
        args.most[at] = sums[thread].most;
        args.mass[at] = sums[thread].mass;
      });
    }
  });
}

/// A thread a query.
template <class Block>
TILEWISE_DEVICE void last_shift_kernel(Block& block, const LastQueriesArgs& args) {
  const int64_t across = int64_t{args.row_blocks} * kLastRows, strips = args.chunks * kStripsAChunk;
  block.each([&](int thread) {
    const int64_t query = block.index() * kSumThreads + thread;
    if (query >= args.batch_heads * across) return;
    const int64_t base = query / across * strips * across + query % across;
    float most = -HUGE_VALF, mass = 0;
    for (int64_t strip = 0; strip < strips; ++strip) {
      const float x = args.most[base + strip * across];
      most = x > most ? x : most;
    }
    most = most == -HUGE_VALF ? 0.0f : most;
    for (int64_t strip = 0; strip < strips; ++strip) mass += args.mass[base + strip * across] * std::exp2(args.most[base + strip * across] - most);
    args.shift[query] = mass == 0 ? 0.0f : most + std::log2(mass);
  });
}

template <int kDtype, class Block>
TILEWISE_DEVICE void last_sums_kernel(Block& block, const LastQueriesArgs& args) {
  const LastItem item(args, block.index());
  typename Block::template Registers<WarpLogits> logits(block);
  last_logits<kDtype>(block, args, item, logits);
  float* const p = reinterpret_cast<float*>(block.shared());  // [64, kWideKeys]
  const float* const shift = args.shift + (item.of * args.row_blocks + item.row_block) * kLastRows;
  block.each([&](int thread) {
    const int warp = thread / 32, g = thread % 32 / 4, c = thread % 4;
    TILEWISE_UNROLL for (int i = 0; i < 4; ++i) {
      TILEWISE_UNROLL for (int h = 0; h < 2; ++h) {
        const int row = 16 * i + 8 * h + g;
        const float of_row = shift[row];
        TILEWISE_UNROLL for (int j = 0; j < 8; ++j) {
          TILEWISE_UNROLL for (int e = 0; e < 2; ++e) p[row * kWideKeys + warp * kWarpColumns + 8 * j + 2 * c + e] =
              std::exp2(logits[thread].at[i][j][2 * h + e] - of_row);
        }
      }
    }
  });
  const int64_t part = item.of * args.row_blocks + item.row_block;
  block.each([&](int thread) {
    for (int key = thread; key < kLastKeys; key += kLastThreads) {
      float sum = 0;
      for (int row = 0; row < kLastRows; ++row) sum += p[row * kWideKeys + key];
      args.key_part[(part * args.chunks + item.chunk) * kLastKeys + key] = sum;
    }
    // Diagonal d is the distance first_token - first_key - (kLastKeys - 1) + d: the key of row r is kLastKeys - 1 - d + r.
    for (int diagonal = thread; diagonal < kDiagonals; diagonal += kLastThreads) {
      float sum = 0;
      for (int row = 0; row < kLastRows; ++row) {
        const int key = kLastKeys - 1 - diagonal + row;
        if (key >= 0 && key < kLastKeys) sum += p[row * kWideKeys + key];
      }
      args.offset_part[(part * args.chunks + item.chunk) * kDiagonals + diagonal] = sum;
    }
  });
}

/// A thread a key and a distance.
template <class Block>
TILEWISE_DEVICE void last_totals_kernel(Block& block, const LastQueriesArgs& args) {
  const int64_t blocks = (args.seqlen_k + kSumThreads - 1) / kSumThreads, of = block.index() / blocks;
  block.each([&](int thread) {
    const int64_t index = block.index() % blocks * kSumThreads + thread;
    if (index >= args.seqlen_k) return;
    float key = 0, offset = 0;
    for (int row_block = 0; row_block < args.row_blocks; ++row_block) {
      const int64_t part = of * args.row_blocks + row_block, first_token = args.seqlen_k - args.queries + row_block * kLastRows;
      key += args.key_part[part * args.chunks * kLastKeys + index];
      // Chunks of keys that hold first_token + row - index for some row.
      const int64_t nearest = first_token - index;
      int64_t first = nearest < 0 ? 0 : nearest / kLastKeys;
      const int64_t farthest = nearest + kLastRows - 1, past = farthest < 0 ? 0 : farthest / kLastKeys + 1;
      for (; first < past && first < args.chunks; ++first) {
        offset += args.offset_part[(part * args.chunks + first) * kDiagonals + index - (first_token - first * kLastKeys - (kLastKeys - 1))];
      }
    }
    args.key[of * args.seqlen_k + index] = key;
    args.offset[of * args.seqlen_k + index] = offset;
  });
}

}  // namespace tilewise::select::cuda
