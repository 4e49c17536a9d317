// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/bits.h"

#include <algorithm>

#include "tilewise/base/executor.h"
#include "tilewise/plan/axis.h"
#include "tilewise/plan/mask.h"
#include "tilewise/plan/rows.h"

TILEWISE_BEGIN_PUBLIC
namespace {

using plan::Axis;

/// Calls body(row slot, first, last, is_tested) for every slot of a row and run that it reads, in the direction at hand.
void for_each_run(const PlanData& data, bool is_by_query, int64_t b, int head, FunctionRef<void(int64_t, int64_t, int64_t, bool)> body) {
  const Lists& lists = is_by_query ? data.by_query : data.by_key;
  const int64_t slots = is_by_query ? plan::slots_q(data) : plan::slots_k_with_pools(data);
  for (int64_t row = 0; row < plan::num_rows(lists, slots); ++row) {
    const int64_t first = plan::row_first(lists, row), last = plan::row_last(lists, row, slots);
    for (const RunList* list : {&lists.whole, &lists.masked, &lists.picked}) {
      const plan::Runs runs = plan::runs_of(*list, b, head, data.heads_q, row);
      for (int i = 0; i < runs.count; ++i) {
        const int64_t stop = plan::run_stop(runs, i, list->grain, is_by_query ? plan::part_end(data, runs.start[i]) : plan::slots_q(data));
        for (int64_t slot = first; slot < last; ++slot) {
          if (plan::reads(runs, i, slot - first)) body(slot, runs.start[i], stop, list == &lists.masked);
        }
      }
    }
  }
}

bool uses_by_query(const PlanData& data) { return data.by_query.has_runs() || !data.by_key.has_runs(); }

/// The slots of k that a key slot holds: itself, or the group of a pooled key.
std::pair<int64_t, int64_t> group_of(const PlanData& data, int64_t slot) {
  int64_t first = plan::slots_k(data);
  if (slot < first) return {slot, slot + 1};
  for (const int group : data.pools) {
    const int64_t keys = (plan::slots_k(data) + group - 1) / group;
    if (slot < first + keys) return {(slot - first) * group, std::min<int64_t>((slot - first + 1) * group, plan::slots_k(data))};
    first += keys;
  }
  return {0, 0};
}

}  // namespace

Tensor to_bits(const Plan& plan, bool pooled, const std::shared_ptr<Memory>& memory) {
  check(plan != nullptr, Error::Kind::value, "to_bits: the plan is null; make one with a method or load one");
  const PlanData& data = *plan;
  Tensor bits(memory, Dtype::boolean, {data.batch, data.heads_q, data.seqlen_q, data.seqlen_k});
  bits.fill_zero();
  auto* to = static_cast<bool*>(bits.view.raw());
  const bool is_by_query = uses_by_query(data);
  for (int64_t b = 0; b < data.batch; ++b) {
    for (int head = 0; head < data.heads_q; ++head) {
      const Axis queries = Axis::of_queries(data, b, head), keys = Axis::of_keys(data, b, head);
      bool* of_head = to + (b * data.heads_q + head) * data.seqlen_q * data.seqlen_k;
      const auto set = [&](int64_t query_slot, int64_t key_slot, bool is_tested) {
        const int64_t query = queries.token(query_slot), key = keys.token(key_slot);
        if (query < 0 || key < 0 || (key_slot >= plan::slots_k(data) && !pooled)) return;
        if (is_tested && !plan::allows(data.mask, head, b, query, key, data.seqlen_k - data.seqlen_q)) return;
        const auto [first, last] = group_of(data, key_slot);
        for (int64_t slot = first; slot < last; ++slot) {
          if (keys.token(slot) >= 0) of_head[query * data.seqlen_k + keys.token(slot)] = true;
        }
      };
      for_each_run(data, is_by_query, b, head, [&](int64_t slot, int64_t first, int64_t last, bool is_tested) {
        for (int64_t other = first; other < last; ++other) set(is_by_query ? slot : other, is_by_query ? other : slot, is_tested);
      });
    }
  }
  return bits;
}

Tensor to_tiles(const Plan& plan, int tile_q, int tile_k, const std::shared_ptr<Memory>& memory) {
  check(plan != nullptr, Error::Kind::value, "to_tiles: the plan is null; make one with a method or load one");
  check(tile_q >= 1 && tile_k >= 1, Error::Kind::value, "to_tiles: tiles of ", tile_q, " x ", tile_k, ", takes at least 1 slot each way");
  const PlanData& data = *plan;
  const int64_t tiles_q = (plan::slots_q(data) + tile_q - 1) / tile_q, tiles_k = (plan::slots_k_with_pools(data) + tile_k - 1) / tile_k;
  Tensor tiles(memory, Dtype::boolean, {data.batch, data.heads_q, tiles_q, tiles_k});
  tiles.fill_zero();
  auto* to = static_cast<bool*>(tiles.view.raw());
  const bool is_by_query = uses_by_query(data);
  for (int64_t b = 0; b < data.batch; ++b) {
    for (int head = 0; head < data.heads_q; ++head) {
      const Axis queries = Axis::of_queries(data, b, head), keys = Axis::of_keys(data, b, head);
      bool* of_head = to + (b * data.heads_q + head) * tiles_q * tiles_k;
      const Axis& rows = is_by_query ? queries : keys;
      const Axis& runs = is_by_query ? keys : queries;
      const int tile_row = is_by_query ? tile_q : tile_k, tile_run = is_by_query ? tile_k : tile_q;
      for_each_run(data, is_by_query, b, head, [&](int64_t slot, int64_t first, int64_t last, bool) {
        if (rows.token(slot) < 0) return;
        for (int64_t tile = first / tile_run; tile * tile_run < last; ++tile) {
          if (runs.real(std::max(first, tile * tile_run), std::min(last, (tile + 1) * tile_run)) == 0) continue;
          of_head[is_by_query ? slot / tile_row * tiles_k + tile : tile * tiles_k + slot / tile_row] = true;
        }
      });
    }
  }
  return tiles;
}

TILEWISE_END_PUBLIC
