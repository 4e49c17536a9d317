// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/reference/pairs.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string>

#include "tilewise/attend/reference/mask.h"
#include "tilewise/plan/rows.h"
#include "tilewise/plan/validate.h"

namespace tilewise::attend::reference {
namespace {

using plan::Runs;

// One run of a row, whichever list it comes from.
struct Entry {
  const Runs* runs;
  int index;
  int64_t start, stop;
  bool is_masked;
};

// The three lists of a row and their runs by start.
struct Row {
  std::array<Runs, 3> lists;
  std::vector<Entry> entries;
};

void gather(const Lists& lists, const PlanData& plan, int64_t b, int head, int64_t row, int64_t axis_slots, bool is_by_query, Row& out) {
  out.entries.clear();
  const std::array<const RunList*, 3> sources{&lists.whole, &lists.masked, &lists.picked};
  for (size_t i = 0; i < sources.size(); ++i) {
    out.lists[i] = plan::runs_of(*sources[i], b, head, plan.heads_q, row);
    for (int index = 0; index < out.lists[i].count; ++index) {
      const int64_t start = out.lists[i].start[index];
      const int64_t end = is_by_query ? plan::part_end(plan, start) : axis_slots;
      const int64_t stop = plan::run_stop(out.lists[i], index, sources[i]->grain, end);
      out.entries.push_back({&out.lists[i], index, start, stop, i == 1});
    }
  }
  std::sort(out.entries.begin(), out.entries.end(), [](const Entry& a, const Entry& b2) { return a.start < b2.start; });
}

}  // namespace

void check_entries(const char* function, const Plan& plan) {
  const std::optional<std::string> fault = find_fault(plan);
  if (fault) fail(Error::Kind::value, function, ": plan: ", *fault);
}

HeadPairs::HeadPairs(const PlanData& plan, int64_t b, int head, std::span<const int64_t> tokens_q, std::span<const int64_t> tokens_k)
    : plan_(plan), b_(b), head_(head), tokens_q_(tokens_q), tokens_k_(tokens_k) {}

int64_t HeadPairs::items() const {
  const bool is_by_key = !plan_.by_query.has_runs() && plan_.by_key.has_runs();
  return is_by_key ? 1 : plan::num_rows(plan_.by_query, plan::slots_q(plan_));
}

int64_t HeadPairs::for_each_query(int64_t item, FunctionRef<void(int64_t, std::span<const Pair>)> body) const {
  const bool is_by_key = !plan_.by_query.has_runs() && plan_.by_key.has_runs();
  return is_by_key ? walk_columns(body) : walk_rows(item, body);
}

bool HeadPairs::sees(int64_t query_slot, int64_t key_slot) const {
  return mask_sees(plan_, b_, head_, tokens_q_[static_cast<size_t>(query_slot)], tokens_k_[static_cast<size_t>(key_slot)]);
}

int64_t HeadPairs::walk_rows(int64_t row, FunctionRef<void(int64_t, std::span<const Pair>)> body) const {
  const Lists& lists = plan_.by_query;
  const int64_t slots_q = static_cast<int64_t>(tokens_q_.size());
  const int64_t first = plan::row_first(lists, row), last = plan::row_last(lists, row, slots_q);
  Row entries;
  gather(lists, plan_, b_, head_, row, static_cast<int64_t>(tokens_k_.size()), true, entries);
  int64_t reads = 0;
  std::vector<Pair> pairs;
  for (int64_t slot = first; slot < last; ++slot) {
    if (tokens_q_[static_cast<size_t>(slot)] < 0) continue;
    pairs.clear();
    for (size_t run = 0; run < entries.entries.size(); ++run) {
      const Entry& entry = entries.entries[run];
      if (!plan::reads(*entry.runs, entry.index, slot - first)) continue;
      for (int64_t key = entry.start; key < entry.stop; ++key) {
        if (tokens_k_[static_cast<size_t>(key)] < 0) continue;
        ++reads;
        if (entry.is_masked && !sees(slot, key)) continue;
        pairs.push_back({static_cast<int32_t>(key), static_cast<int32_t>(run)});
      }
    }
    body(slot, pairs);
  }
  return reads;
}

int64_t HeadPairs::walk_columns(FunctionRef<void(int64_t, std::span<const Pair>)> body) const {
  const Lists& lists = plan_.by_key;
  const int64_t slots_q = static_cast<int64_t>(tokens_q_.size()), slots_k = static_cast<int64_t>(tokens_k_.size());
  int64_t reads = 0;
  std::vector<std::vector<Pair>> queries(static_cast<size_t>(slots_q));
  Row entries;
  for (int64_t row = 0; row < plan::num_rows(lists, slots_k); ++row) {
    const int64_t first = plan::row_first(lists, row), last = plan::row_last(lists, row, slots_k);
    gather(lists, plan_, b_, head_, row, slots_q, false, entries);
    for (size_t run = 0; run < entries.entries.size(); ++run) {
      const Entry& entry = entries.entries[run];
      for (int64_t key = first; key < last; ++key) {
        if (tokens_k_[static_cast<size_t>(key)] < 0 || !plan::reads(*entry.runs, entry.index, key - first)) continue;
        for (int64_t slot = entry.start; slot < entry.stop; ++slot) {
          if (tokens_q_[static_cast<size_t>(slot)] < 0) continue;
          ++reads;
          if (entry.is_masked && !sees(slot, key)) continue;
          queries[static_cast<size_t>(slot)].push_back({static_cast<int32_t>(key), static_cast<int32_t>(run)});
        }
      }
    }
  }
  for (int64_t slot = 0; slot < slots_q; ++slot) {
    if (tokens_q_[static_cast<size_t>(slot)] < 0) continue;
    std::vector<Pair>& pairs = queries[static_cast<size_t>(slot)];
    std::sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b2) { return a.key_slot < b2.key_slot; });
    body(slot, pairs);
  }
  return reads;
}

}  // namespace tilewise::attend::reference
