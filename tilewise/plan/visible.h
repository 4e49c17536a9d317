// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "tilewise/plan/intervals.h"
#include "tilewise/plan/plan.h"

// What a mask lets a row of queries see, as intervals of key tokens: the one place where plans are made from a mask.
namespace tilewise::plan {

/// Disjoint, ascending. `whole`: every query of the row sees the keys; `masked`: some query may.
struct TILEWISE_API Visible {
  std::vector<Interval> whole, masked;
  int64_t length() const;
};

/// Which token each slot of an axis holds, for one batch entry and head; -1: padding.
struct SlotTokens {
  const int32_t* token = nullptr;  // null: slot s holds token s
  int64_t count = 0;
  int64_t operator[](int64_t slot) const { return token == nullptr ? slot : token[slot]; }
};

/// The rows of a plan: `tile` query slots each, cut by `edge` where it is not empty. Without orders slots are tokens.
struct TILEWISE_API RowGrid {
  int64_t seqlen_q = 0, seqlen_k = 0;  // tokens
  int tile = 0;
  std::vector<int32_t> edge = {};
  Order order_q = {}, order_k = {};    // rows are slots of the one, what they see slots of the other; the caller keeps the arrays alive
  int heads = 1;                       // query heads that the orders' groups are shared out to

  bool has_orders() const { return order_q.token.has_value() || order_k.token.has_value(); }
  int64_t slots_q() const { return order_q.token.has_value() ? order_q.token.dim(2) : seqlen_q; }
  int64_t slots_k() const { return order_k.token.has_value() ? order_k.token.dim(2) : seqlen_k; }
  SlotTokens queries(int64_t b, int head) const;
  SlotTokens keys(int64_t b, int head) const;
  /// Slots of the row that hold a query.
  int64_t real_queries(int64_t b, int head, int64_t row) const;

  int64_t rows() const { return edge.empty() ? (slots_q() + tile - 1) / tile : static_cast<int64_t>(edge.size()) - 1; }
  int64_t first(int64_t row) const { return edge.empty() ? row * tile : edge[static_cast<size_t>(row)]; }
  int64_t last(int64_t row) const;
  /// Query i counts as this key token, plus i (bottom-right).
  int64_t offset() const { return seqlen_k - seqlen_q; }

  /// Rows from slot 0.
  static RowGrid plain(int64_t seqlen_q, int64_t seqlen_k, int tile) { return {seqlen_q, seqlen_k, tile, {}}; }
  /// Rows cut where the query's token is a multiple of `tile`, so that they lie on the key tiles; the first may be short.
  static RowGrid on_key_tiles(int64_t seqlen_q, int64_t seqlen_k, int tile);
};

/// Keys that the queries of a row see, as slots. Whole intervals begin and end at multiples of `align` (or at Sk); what that leaves over is masked.
/// A neighbourhood (Mask::grids) is not taken apart: all keys are masked. Under orders the mask is asked on the tokens in the slots, whatever their order;
/// padding is seen by nobody, a row that holds padding sees its keys masked, and `align` says nothing.
TILEWISE_API Visible visible_keys(const Mask& mask, int head, int64_t batch, const RowGrid& grid, int64_t row, int align);

/// True where every head of the mask is a band without a left limit and with right = 0 (or Sk, for the second).
TILEWISE_API bool is_causal(const Mask& mask, int64_t seqlen_k);
TILEWISE_API bool is_full(const Mask& mask, int64_t seqlen_q, int64_t seqlen_k);

/// Whether two heads (batch entries) may see different keys: then lists are written per head (per entry).
TILEWISE_API bool differs_by_head(const Mask& mask);
TILEWISE_API bool differs_by_batch(const Mask& mask);
/// The same with the grid's orders.
TILEWISE_API bool differs_by_head(const Mask& mask, const RowGrid& grid);
TILEWISE_API bool differs_by_batch(const Mask& mask, const RowGrid& grid);

/// Pairs that the dense plan of the mask reads on these rows, over the batch: one number a head, or a single one where no two heads differ.
TILEWISE_API std::vector<int64_t> dense_reads_of_heads(const Mask& mask, const RowGrid& grid, int64_t batch, int heads);
/// The sum over all heads.
TILEWISE_API int64_t dense_reads(const Mask& mask, const RowGrid& grid, int64_t batch, int heads);
/// Sets dense_reads and, where heads differ, dense_reads_of_head of a plan whose batch and heads are set.
TILEWISE_API void set_dense_reads(PlanData& plan, const Mask& model, const RowGrid& grid);

}  // namespace tilewise::plan
