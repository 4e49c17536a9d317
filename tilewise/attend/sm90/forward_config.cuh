// SPDX-License-Identifier: Apache-2.0
// What the two halves of a forward kernel, producer and consumers, agree on.
#pragma once

#include <type_traits>

#include "tilewise/attend/sm90/forward_args.h"
#include "tilewise/machine/sm90/pipeline.cuh"
#include "tilewise/machine/sm90/wgmma.cuh"

namespace tilewise::attend::sm90 {

using namespace machine::sm90;

constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

/// HeadDim: 64, 128 or 256, to which fewer channels of q, k and v are filled up with zeros.
template <int HeadDim, class T, int Variant = kPlain>
struct ForwardConfig {
  using Element = T;
  static constexpr int kHeadDim = HeadDim;
  static constexpr int kBlocks = HeadDim / 64;  // column blocks of 128 bytes
  static constexpr bool kHasPools = Variant == kPooled;
  static constexpr bool kIsGeneral = Variant == kGeneral || kHasPools;
  static constexpr bool kIsProof = Variant == kProof;
  static constexpr bool kIsSplit = Variant == kSplit;
  using Args = std::conditional_t<kHasPools, PooledArgs,
                                  std::conditional_t<kIsGeneral, GeneralArgs, std::conditional_t<kIsSplit, SplitForwardArgs, ForwardArgs>>>;
  // Rows of 64 queries have a warpgroup each: two thread blocks a multiprocessor, which hide one another's softmax, with stages of half the size.
  static constexpr bool kIsNarrow = is_narrow(Variant);
  static constexpr int kTileQ = kIsNarrow ? 64 : 128, kTileK = HeadDim == 256 || kIsNarrow ? 64 : 128;
  static constexpr int kThreadBlocks = kIsNarrow ? 2 : 1;  // of a multiprocessor
  // Q in registers: fewer bytes read by each product, and its buffer is free for the next row at once. 256 channels do not fit.
  static constexpr bool kHasQInRegisters = !kIsGeneral && HeadDim <= 128;
  static constexpr bool kRunsAcrossRows = kHasQInRegisters && Variant != kRowByRow;
  static constexpr bool kStoresUnderQk = Variant == kSeam || Variant == kNarrowSeam;  // to be measured
  // V is let go of one step later than K, so it has the spare stage where shared memory has room.
  static constexpr int kStagesK = 2, kStagesV = HeadDim == 256 ? 2 : 3;
  static constexpr int kItems = 2;  // claimed ahead
  static constexpr int kConsumers = kTileQ / 64;
  static constexpr int kThreads = 128 * (1 + kConsumers);
  // Together 504 (256 of a narrow block) of a thread of each warpgroup. A spill in a plain kernel fails the build (tools/sm90_harness.sh).
  static constexpr int kConsumerRegisters = kIsNarrow ? 200 : HeadDim == 64 ? 184 : HeadDim == 256 ? 216 : kIsGeneral ? 208 : 224;
  static constexpr int kProducerRegisters = kIsNarrow ? 56 : 504 - 2 * kConsumerRegisters;
  static constexpr int kRowBytes = HeadDim * 2;
  static constexpr int kTileBytes = kTileK * kRowBytes;
};

/// What the consumers must know of a stage of keys.
struct StageInfo {
  int key;        // slot of the first key (plain masked stages hold neighbouring keys)
  int fill;       // keys in the stage; the rest are to be masked
  int has_next;   // the row has another stage
  int is_tested;  // 3: `rows` alone, 2: every pair by mask and `rows`; 1: keys past `fill`; 0: nothing; kHasBias on top: keys have a bias
  static constexpr int kHasBias = 4;
};
/// What they must know of an item; first < 0: no more.
struct ItemInfo {
  int head;   // b * Hq + h: one number, since a register too many would spill; split: ~ of an index into SplitView::parts for a part of a row
  int first;  // slot of the first query
  int count;  // queries; the plain kernel leaves the end to the copy engine
  int row_word;  // general: 64-query words of the row before the item
};
/// Of each key of a tested stage: its token (-1: not to be read) and which queries of the item read it.
template <int kTileK, bool kEnabled>
struct StageKeys {
  int token[kTileK];
  uint64_t rows[kTileK][2];
};
template <int kTileK>
struct StageKeys<kTileK, false> {};
/// With the logarithm of how many keys each is the mean of.
template <int kTileK>
struct PooledStageKeys : StageKeys<kTileK, true> {
  float bias[kTileK];
};

/// Runs of a row: first the masked ones, then the whole ones, then (general) the picked ones.
template <bool kIsGeneral>
struct RowRuns {
  int end_masked = 0, num_runs = 0;
  int64_t begin_masked = 0, begin_whole = 0;
};
template <>
struct RowRuns<true> {
  int end_masked = 0, num_runs = 0, end_whole = 0, row_word = 0;
  int64_t begin_masked = 0, begin_whole = 0, begin_picked = 0;
};

/// The runs of a part of a row, as a row of its own.
struct PartRuns : RowRuns<false> {
  int skip = 0, cut = 0;  // keys of another part: at the start of the first run, at the end of the last
  int part = -1;          // its index in SplitView::parts; -1: a whole row
};
template <class C>
using RunsOf = std::conditional_t<C::kIsSplit, PartRuns, RowRuns<C::kIsGeneral>>;

/// What one lane holds of 32 consecutive runs.
template <bool kIsGeneral>
struct RunChunk {
  int start = 0, stop = 0;
};
template <>
struct RunChunk<true> {
  int start = 0, stop = 0;
  uint64_t rows[2] = {~uint64_t{0}, ~uint64_t{0}};
};

/// An item on its way from the warp that claims to those that copy keys and values.
template <class C>
struct ClaimedItem {
  int number;  // -1: no more
  RunsOf<C> row;
  RunChunk<C::kIsGeneral> runs[32];  // the row's first
};

/// Of each warp of consumers the rows that it has yet to merge, as a list through SplitView::arrived: 1 + an index into its parts, 0: no more.
template <bool kEnabled>
struct PendingRows {
  int32_t first[kSplitWarps];
};
template <>
struct PendingRows<false> {};

template <class C>
struct alignas(1024) Shared {  // 1024: the period of the 128-byte swizzle
  uint8_t q[C::kConsumers][C::kBlocks][64 * 128];
  uint8_t out[C::kHasQInRegisters ? sizeof(q) : 1024];  // else a warpgroup's output takes the place of its queries
  uint8_t k[C::kStagesK][C::kTileBytes];
  uint8_t v[C::kStagesV][C::kTileBytes];
  Ring<1> q_ring;
  Ring<C::kStagesK> k_ring;
  Ring<C::kStagesV> v_ring;
  alignas(16) ItemInfo item;
  Ring<C::kItems> item_ring;
  ClaimedItem<C> claimed[C::kItems];
  alignas(16) StageInfo stage[C::kStagesK];
  std::conditional_t<C::kHasPools, PooledStageKeys<C::kTileK>, StageKeys<C::kTileK, C::kIsGeneral>> keys[C::kStagesK];
  PendingRows<C::kIsSplit> pending;
};

/// Where a column block is to the copy engine.
template <class C>
__device__ Coordinate5 box_at(bool is_flat, int block, int token, int head, int batch) {
  if constexpr (C::kIsGeneral) {
    if (is_flat) return {block * 64, token, 0, head, batch};
  }
  return {0, token, block, head, batch};
}

/// Token of a slot under an order; -1: padding.
__device__ inline int order_token(const OrderView& order, int slots, int batch, int head, int heads_q, int slot) {
  if (!order.token) return slot;
  const int64_t list = int64_t{order.batch == 1 ? 0 : batch} * order.groups + head / (heads_q / order.groups);
  return order.token[list * slots + slot];
}

}  // namespace tilewise::attend::sm90
