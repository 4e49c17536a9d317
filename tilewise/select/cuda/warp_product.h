// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <cstring>

#include "tilewise/machine/cuda/mma.h"

// Products of gathered rows: a stage of shared memory holds 128 bytes of each of kRows rows and of kColumns others, which a warp multiplies 64 by 64 in its registers.
namespace tilewise::select::cuda {

constexpr int kWarpRows = 64, kWarpColumns = 64;
constexpr int kPieceBytes = 16, kBlockBytes = 64, kStageBlocks = 2;  // a row of a stage: two blocks of 64 bytes, each kept with its neighbours'
constexpr int kRowBytes = kStageBlocks * kBlockBytes;

/// Dtypes by number: 0: f32, 1: bf16, 2: f16.
template <int kDtype>
constexpr int kElementBytes = kDtype == 0 ? 4 : 2;
template <int kDtype>
constexpr int kStageChannels = kRowBytes / kElementBytes<kDtype>;

struct RowsToLoad {
  const unsigned char* first;  // channel 0 of token 0
  int64_t stride;  // elements from token to token
  int dim, channel;  // channels there are, the first of the stage
  bool is_wide;  // rows are aligned to 16 bytes and whole pieces of 16
};

/// Begins one thread's share of the copies of kRows rows: row i is that of token token_of(i), zeros where it is below 0.
template <int kDtype, int kThreads, int kRows, class TokenOf>
TILEWISE_DEVICE void load_rows(const RowsToLoad& rows, unsigned char* to, int thread, const TokenOf& token_of) {
  constexpr int kBytes = kElementBytes<kDtype>, kPieceChannels = kPieceBytes / kBytes, kBlockPieces = kBlockBytes / kPieceBytes;
  constexpr int kRowsAtOnce = kThreads / kBlockPieces;
  const int piece = thread % kBlockPieces, first_row = thread / kBlockPieces;
  TILEWISE_UNROLL for (int block = 0; block < kStageBlocks; ++block) {
    const int channel = rows.channel + (block * kBlockPieces + piece) * kPieceChannels;
    const int channels = rows.dim - channel < kPieceChannels ? rows.dim - channel : kPieceChannels;
    unsigned char* const of_piece = to + block * kRows * kBlockBytes + piece * kPieceBytes;
    TILEWISE_UNROLL for (int i = 0; i < kRows / kRowsAtOnce; ++i) {
      const int row = first_row + i * kRowsAtOnce;
      const int64_t token = token_of(row);
      const bool is_there = token >= 0 && channels > 0;
      const unsigned char* const from = rows.first + (token * rows.stride + channel) * kBytes;
      unsigned char* const place = of_piece + row * kBlockBytes;
      if (rows.is_wide) {
        machine::cuda::begin_copy_16(place, is_there ? from : rows.first, is_there);
        continue;
      }
      TILEWISE_UNROLL for (int element = 0; element < kPieceChannels; ++element) {
        if (is_there && element < channels)
          std::memcpy(place + element * kBytes, from + element * kBytes, kBytes);
        else
          std::memset(place + element * kBytes, 0, kBytes);
      }
    }
  }
}

/// A warp's products, 64 rows by 64 columns: with g = lane / 4 and c = lane % 4 a lane holds of [i][j] the rows 16i + g, 16i + g, 16i + g + 8, 16i + g + 8 and the
/// columns 8j + 2c, 8j + 2c + 1, 8j + 2c, 8j + 2c + 1.
struct WarpLogits {
  float at[4][8][4];
};
/// What a lane reads of the rows, of 8 of the columns: 16 bytes each.
struct RowPieces {
  uint32_t word[4][2][4];
};
struct ColumnPiece {
  uint32_t word[4];
};

TILEWISE_DEVICE inline void load_16(uint32_t (&to)[4], const unsigned char* from) { std::memcpy(to, __builtin_assume_aligned(from, 16), 16); }

/// Adds the products of one stage. Warps lie side by side over the columns, then over the rows. Lane c of a quad reads the c-th 16 bytes of each row's block: its depths
/// are other ones than the product's own, but the same in rows and columns.
template <int kDtype, int kRows, int kColumns, class Block, class Logits, class Rows, class Columns>
TILEWISE_DEVICE void multiply_stage(Block& block, int warp, const unsigned char* stage, Logits& logits, Rows& rows, Columns& columns) {
  constexpr int kAcross = kColumns / kWarpColumns;
  const unsigned char* const first_row = stage + warp / kAcross * kWarpRows * kBlockBytes;
  const unsigned char* const first_column = stage + kRows * kRowBytes + warp % kAcross * kWarpColumns * kBlockBytes;
  TILEWISE_UNROLL for (int part = 0; part < kStageBlocks; ++part) {
    const unsigned char* const of_rows = first_row + part * kRows * kBlockBytes;
    const unsigned char* const of_columns = first_column + part * kColumns * kBlockBytes;
    if constexpr (kDtype == 0) {
      block.lanes(warp, [&](int thread) {
        const int g = thread % 32 / 4, c = thread % 4;
        for (int depth = 0; depth < kBlockBytes / 4; ++depth) {
          float x[8], y[16];
          TILEWISE_UNROLL for (int i = 0; i < 8; ++i) std::memcpy(&x[i], of_rows + (g + 8 * i) * kBlockBytes + depth * 4, 4);
          TILEWISE_UNROLL for (int i = 0; i < 16; ++i) std::memcpy(&y[i], of_columns + (i / 2 * 8 + 2 * c + i % 2) * kBlockBytes + depth * 4, 4);
          TILEWISE_UNROLL for (int i = 0; i < 8; ++i) {
            TILEWISE_UNROLL for (int j = 0; j < 16; ++j) logits[thread].at[i / 2][j / 2][i % 2 * 2 + j % 2] += x[i] * y[j];
          }
        }
      });
    } else {
      constexpr auto kHalf = kDtype == 1 ? machine::cuda::Half::bf16 : machine::cuda::Half::f16;
      block.lanes(warp, [&](int thread) {
        const unsigned char* const mine = of_rows + thread % 32 / 4 * kBlockBytes + thread % 4 * kPieceBytes;
        TILEWISE_UNROLL for (int i = 0; i < 4; ++i) {
          load_16(rows[thread].word[i][0], mine + 16 * i * kBlockBytes);
          load_16(rows[thread].word[i][1], mine + (16 * i + 8) * kBlockBytes);
        }
      });
      TILEWISE_UNROLL for (int j = 0; j < 8; ++j) {
        block.lanes(warp, [&](int thread) {
          load_16(columns[thread].word, of_columns + (8 * j + thread % 32 / 4) * kBlockBytes + thread % 4 * kPieceBytes);
        });
        TILEWISE_UNROLL for (int half = 0; half < 2; ++half) {
          TILEWISE_UNROLL for (int i = 0; i < 4; ++i) {
            machine::cuda::mma_16x8x16<kHalf>(
                warp, [&](int thread) -> float(&)[4] { return logits[thread].at[i][j]; },
                [&](int thread) {
                  const auto& word = rows[thread].word[i];
                  return machine::cuda::MmaA{{word[0][2 * half], word[1][2 * half], word[0][2 * half + 1], word[1][2 * half + 1]}};
                },
                [&](int thread) {
                  const auto& word = columns[thread].word;
                  return machine::cuda::MmaB{{word[2 * half], word[2 * half + 1]}};
                });
          }
        }
      }
    }
  }
}

}  // namespace tilewise::select::cuda
