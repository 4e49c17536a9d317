// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "tilewise/base/hash.h"
#include "tilewise/plan/builder.h"
#include "tilewise/plan/make.h"
#include "tilewise/plan/pack.h"
#include "tilewise/plan/plan.h"

// What the design rests on: each published system's selection is a plan, the plan says exactly the pairs that the paper defines, complete() keeps them in
// both directions at every tile, and attention over it equals a dense masked softmax, forward and backward.
namespace tilewise::testing {

constexpr int kHeadsQ = 4, kHeadsKv = 2;

/// A number in [0, below) from a place: selections that look random and are the same everywhere.
inline int64_t draw(int64_t below, std::initializer_list<int64_t> place) {
  uint64_t hash = 0x51ed270b;
  for (const int64_t part : place) hash = splitmix64(hash ^ static_cast<uint64_t>(part));
  return static_cast<int64_t>(hash % static_cast<uint64_t>(below));
}
inline bool draw_one_in(int64_t n, std::initializer_list<int64_t> place) { return draw(n, place) == 0; }

/// One system: its plan as section 5 of its spec builds it, and its pairs as sections 3 and 4 define them.
struct System {
  std::string name;
  Plan plan;
  /// Whether query token q of head h reads key `key`: a token below Sk, else pooled key number key - Sk in the order of the pools.
  std::function<bool(int64_t b, int h, int64_t q, int64_t key)> reads;
  /// Tokens that each pooled key of head h is the mean of, from the system's own definition; empty without pools.
  std::function<std::vector<std::vector<int64_t>>(int64_t b, int h)> pooled = {};
};

/// Runs every check of this folder on it.
void check_system(const System& system);

/// Sizes and mask of a plan to be.
inline PlanData plan_data(int64_t seqlen_q, int64_t seqlen_k, Mask mask, int64_t batch = 1) {
  PlanData data;
  data.seqlen_q = seqlen_q;
  data.seqlen_k = seqlen_k;
  data.batch = batch;
  data.heads_q = kHeadsQ;
  data.dense_reads = batch * kHeadsQ * seqlen_q * seqlen_k;
  data.mask = std::move(mask);
  return data;
}

inline void add_run(std::vector<Run>& runs, int64_t start, int64_t stop, std::vector<uint64_t> rows = {}) {
  if (start < stop) runs.push_back({static_cast<int32_t>(start), static_cast<int32_t>(stop), std::move(rows)});
}

/// Makes by_query: `row` gives the runs of slots [first, last) of group g of batch entry b. An empty edge means rows of `tile`.
using RowMaker = std::function<RowRuns(int64_t b, int g, int64_t row, int64_t first, int64_t last)>;
inline void make_by_query(PlanData& data, int tile, int groups, const RowMaker& row, std::vector<int32_t> edge = {}, int64_t batch = 1) {
  const int64_t slots = plan::slots_q(data);
  const int64_t rows = edge.empty() ? (slots + tile - 1) / tile : static_cast<int64_t>(edge.size()) - 1;
  ListsBuilder builder(tile, batch, groups, rows, edge);
  for (int64_t b = 0; b < batch; ++b) {
    for (int g = 0; g < groups; ++g) {
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t first = edge.empty() ? i * tile : edge[static_cast<size_t>(i)];
        const int64_t last = edge.empty() ? std::min<int64_t>(first + tile, slots) : edge[static_cast<size_t>(i) + 1];
        builder.set(b, g, i, row(b, g, i, first, last));
      }
    }
  }
  data.by_query = builder.build(host_memory(), data);
}

/// An order of `tokens` (-1: padding) for G groups, laid one after another.
inline Order make_order(PlanData& data, const std::vector<int32_t>& tokens, int64_t groups = 1) {
  return {plan::own(tokens.data(), {1, groups, static_cast<int64_t>(tokens.size()) / groups}, host_memory(), data), {}};
}

/// Spans [C = 1, B = 1, Sq, 4].
inline void make_spans(PlanData& data, const std::vector<int32_t>& spans) {
  data.mask = {};
  data.mask.spans = plan::own(spans.data(), {1, 1, data.seqlen_q, 4}, host_memory(), data);
}

/// Bits of the slots for which `has` holds.
inline std::vector<uint64_t> bits_where(int tile, int64_t slots, const std::function<bool(int64_t slot)>& has) {
  std::vector<uint64_t> words(static_cast<size_t>((tile + 63) / 64), 0);
  for (int64_t slot = 0; slot < slots; ++slot) {
    if (has(slot)) words[static_cast<size_t>(slot / 64)] |= uint64_t{1} << (slot % 64);
  }
  return words;
}
inline bool is_zero(const std::vector<uint64_t>& words) {
  for (const uint64_t word : words) {
    if (word != 0) return false;
  }
  return true;
}

}  // namespace tilewise::testing
