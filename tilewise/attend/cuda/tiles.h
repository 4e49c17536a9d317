// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/attend/cuda/forward_args.h"
#include "tilewise/machine/cuda/numbers.h"
#include "tilewise/machine/cuda/warps.h"

// Tiles in shared memory and the products of them. Of 16-bit elements by the matrix units; of f32 by plain FMAs: three TF32 products would be no faster than
// half the matrix rate of what they replace, round to 2^-21 instead of 2^-24, and want layouts of their own; f32 is asked for its digits.
namespace tilewise::attend::cuda {

/// HeadDim: 64, 128 or 256, to which fewer channels are filled up with zeros. A warp has 16 rows of a tile of its own; stages have TileK.
template <class E, int HeadDim, int Warps, int TileK>
struct Tiling {
  using Element = E;
  using Bits = typename E::Bits;
  static constexpr int kHeadDim = HeadDim;
  static constexpr bool kIsF32 = sizeof(Bits) == 4;
  static constexpr int kWarps = Warps, kThreads = 32 * Warps, kTileQ = 16 * Warps, kTileK = TileK;
  static constexpr int kPiece = 16 / sizeof(Bits);  // elements that are copied at a time
  static constexpr int kRow = kIsF32 ? HeadDim + kPiece : HeadDim;  // 16-bit rows are swizzled, f32 rows padded: neighbouring rows lie in other banks
  static constexpr int kScores = kTileK / 2, kAcc = HeadDim / 2;  // of a thread

  /// Where a row's elements [column, column + kPiece) lie; column is a multiple of kPiece.
  TILEWISE_HOST_DEVICE static int at(int row, int column) {
    if constexpr (kIsF32) return row * kRow + column;
    return row * kRow + ((column / kPiece) ^ (row % 8)) * kPiece;
  }
};

// Of such sizes that the tiles fit the 99 KB of shared memory of compute capability 8.6.
template <class E>
constexpr bool kIsF32 = sizeof(typename E::Bits) == 4;
template <class E, int HeadDim>
using ForwardTiling = Tiling<E, HeadDim, kIsF32<E> && HeadDim == 256 ? 2 : 4, (HeadDim == 256 ? 32 : 64) / (kIsF32<E> ? 2 : 1)>;
template <class E, int HeadDim>
using BackwardTiling = Tiling<E, HeadDim, kIsF32<E> && HeadDim == 256 ? 1 : 4, kIsF32<E> ? (HeadDim == 64 ? 32 : 16) : 4096 / HeadDim>;

/// Copies `rows` rows of `tensor` on their way to shared memory: row(i) is where the i-th lies (null: zeros). Channels behind the tensor's become zeros, up to
/// a multiple of 16.
template <class C, class Block, class Row>
TILEWISE_DEVICE void copy_rows(Block& block, const TensorArg& tensor, typename C::Bits* tile, int rows, const Row& row) {
  const int pieces = (tensor.channels + 15) / 16 * 16 / C::kPiece;
  block.lanes([&](int thread) {
    for (int i = thread; i < rows * pieces; i += C::kThreads) {
      const int to = i / pieces, column = i % pieces * C::kPiece;
      const auto* const from = static_cast<const typename C::Bits*>(row(to));
      typename C::Bits* const at = tile + C::at(to, column);
      const bool is_there = from != nullptr && column < tensor.channels;
      if (tensor.is_wide) {
        block.copy16(at, is_there ? from + column : tensor.data, is_there);
      } else {
        TILEWISE_UNROLL for (int j = 0; j < C::kPiece; ++j) at[j] = is_there && column + j < tensor.channels ? from[column + j] : typename C::Bits{};
      }
    }
  });
}

template <class C>
TILEWISE_HOST_DEVICE const typename C::Bits* row_at(const TensorArg& tensor, int64_t batch, int64_t head, int64_t row) {
  return static_cast<const typename C::Bits*>(tensor.data) + batch * tensor.stride_batch + head * tensor.stride_head + row * tensor.stride_row;
}

/// scores += a b^T for the warps' own 16 rows of `a` and kTileK rows of `b`, over `channels`.
template <class C, class Block, class Scores>
TILEWISE_DEVICE void multiply_by_rows(Block& block, Scores& scores, const typename C::Bits* a, const typename C::Bits* b, int channels) {
  using Bits = typename C::Bits;
  if constexpr (!C::kIsF32) {
    typename Block::template Registers<uint32_t, 4> left(block), right(block);
    TILEWISE_UNROLL for (int k = 0; k < C::kHeadDim; k += 16) {
      if (k >= channels) break;
      block.template load_matrices<false>(left, [&](int thread) { return a + C::at(thread / 32 * 16 + thread % 16, k + thread % 32 / 16 * 8); });
      TILEWISE_UNROLL for (int n = 0; n < C::kTileK; n += 16) {
        block.template load_matrices<false>(right,
                                            [&](int thread) { return b + C::at(n + thread % 8 + thread % 32 / 16 * 8, k + thread / 8 % 2 * 8); });
        block.template multiply<typename C::Element>(scores, n / 2, left, 0, right, 0);
        block.template multiply<typename C::Element>(scores, n / 2 + 4, left, 0, right, 2);
      }
    }
  } else {
    block.lanes([&](int thread) {
      const int row = machine::cuda::fragment_row(thread), column = machine::cuda::fragment_column(thread);
      for (int k = 0; k < channels; k += C::kPiece) {
        const Bits *const above = a + C::at(row, k), *const below = a + C::at(row + 8, k);
        Bits x[2][4];
        TILEWISE_UNROLL for (int j = 0; j < 4; ++j) x[0][j] = above[j], x[1][j] = below[j];
        TILEWISE_UNROLL for (int n = 0; n < C::kTileK / 4; ++n) {
          const Bits* const key = b + C::at(n / 2 * 8 + column + n % 2, k);
          TILEWISE_UNROLL for (int j = 0; j < 4; ++j) {
            scores(thread, n / 2 * 4 + n % 2) += x[0][j] * key[j];
            scores(thread, n / 2 * 4 + 2 + n % 2) += x[1][j] * key[j];
          }
        }
      }
    });
  }
}

/// What multiply_by_columns() takes of a thread's scores: pairs for the matrix units; f32 goes through shared memory.
template <class C>
struct Weights {
  static constexpr int kPairs = C::kIsF32 ? 1 : C::kScores / 2;
  static constexpr int kRow = C::kTileK + 4;  // f32: of a row of weights in shared memory
  static constexpr int kShared = C::kIsF32 ? C::kTileQ * kRow : 0;
};

/// A thread's scores, rounded to the element, as multiply_by_columns() takes them. For f32 a barrier must follow.
template <class C, class Block, class Scores, class Pairs>
TILEWISE_DEVICE void keep_weights(Block& block, const Scores& scores, Pairs& pairs, float* shared) {
  block.lanes([&](int thread) {
    if constexpr (!C::kIsF32) {
      TILEWISE_UNROLL for (int i = 0; i < C::kScores / 2; ++i) {
        pairs(thread, i) = C::Element::pair(scores(thread, 2 * i), scores(thread, 2 * i + 1));
      }
    } else {
      const int row = machine::cuda::fragment_row(thread), column = machine::cuda::fragment_column(thread);
      TILEWISE_UNROLL for (int i = 0; i < C::kScores; ++i) {
        shared[(row + i / 2 % 2 * 8) * Weights<C>::kRow + i / 4 * 8 + column + i % 2] = scores(thread, i);
      }
    }
  });
}

/// acc += weights b for the warps' own 16 rows of weights and kTileK rows of `b`, into `channels` columns.
template <class C, class Block, class Acc, class Pairs>
TILEWISE_DEVICE void multiply_by_columns(Block& block, Acc& acc, const Pairs& pairs, const float* shared, const typename C::Bits* b, int channels) {
  if constexpr (!C::kIsF32) {
    typename Block::template Registers<uint32_t, 4> right(block);
    TILEWISE_UNROLL for (int n = 0; n < C::kHeadDim; n += 16) {
      if (n >= channels) break;
      TILEWISE_UNROLL for (int k = 0; k < C::kTileK; k += 16) {
        block.template load_matrices<true>(right, [&](int thread) { return b + C::at(k + thread % 16, n + thread % 32 / 16 * 8); });
        block.template multiply<typename C::Element>(acc, n / 2, pairs, k / 4, right, 0);
        block.template multiply<typename C::Element>(acc, n / 2 + 4, pairs, k / 4, right, 2);
      }
    }
  } else {
    block.lanes([&](int thread) {
      const int row = machine::cuda::fragment_row(thread), column = machine::cuda::fragment_column(thread);
      for (int k = 0; k < C::kTileK; ++k) {
        const float above = shared[row * Weights<C>::kRow + k], below = shared[(row + 8) * Weights<C>::kRow + k];
        TILEWISE_UNROLL for (int n = 0; n < C::kHeadDim / 8; ++n) {
          if (8 * n >= channels) break;
          const float* const at = b + k * C::kRow + 8 * n + column;
          TILEWISE_UNROLL for (int j = 0; j < 2; ++j) {
            acc(thread, 4 * n + j) += above * at[j];
            acc(thread, 4 * n + 2 + j) += below * at[j];
          }
        }
      }
    });
  }
}

}  // namespace tilewise::attend::cuda
