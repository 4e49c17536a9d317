// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/head_counts.h"

#include <algorithm>
#include <bit>

#include "tilewise/plan/rows.h"

namespace tilewise::study {
namespace {

/// Slots of the row that read run i.
int64_t readers(const plan::Runs& runs, int i, int64_t row_slots) {
  if (runs.rows == nullptr) return row_slots;
  int64_t total = 0;
  for (int word = 0; word < runs.words; ++word) {
    uint64_t bits = runs.rows[static_cast<int64_t>(i) * runs.words + word];
    const int64_t left = row_slots - int64_t{64} * word;
    if (left < 64) bits &= left <= 0 ? 0 : (uint64_t{1} << left) - 1;
    total += std::popcount(bits);
  }
  return total;
}

class Counter {
 public:
  Counter(const PlanData& data, int head)
      : data_(data), is_by_query_(data.by_query.has_runs() || !data.by_key.has_runs()), lists_(is_by_query_ ? data.by_query : data.by_key), head_(head) {}

  HeadCounts run() {
    const int64_t slots = is_by_query_ ? data_.seqlen_q : data_.seqlen_k;
    has_bands_ = !data_.mask.bands.empty();
    for (int64_t b = 0; b < data_.batch; ++b) {
      for (int64_t row = 0; row < plan::num_rows(lists_, slots); ++row) {
        first_ = plan::row_first(lists_, row);
        last_ = plan::row_last(lists_, row, slots);
        add(lists_.whole, b, row, false, false);
        add(lists_.masked, b, row, true, false);
        add(lists_.picked, b, row, false, true);
      }
    }
    if (!has_bands_) counts_.allowed = -1;
    return counts_;
  }

 private:
  void add(const RunList& list, int64_t b, int64_t row, bool is_masked, bool is_single) {
    const plan::Runs runs = plan::runs_of(list, b, head_, data_.heads_q, row);
    const int64_t axis_end = is_by_query_ ? data_.seqlen_k : data_.seqlen_q;
    for (int i = 0; i < runs.count; ++i) {
      const int64_t start = runs.start[i];
      const int64_t stop = is_single ? start + 1 : plan::run_stop(runs, i, list.grain, axis_end);
      const int64_t pairs = readers(runs, i, last_ - first_) * (stop - start);
      counts_.reads += pairs;
      if (!is_masked) {
        counts_.allowed += pairs;
      } else if (has_bands_) {
        counts_.allowed += allowed(runs, i, start, stop);
      }
    }
  }

  int64_t allowed(const plan::Runs& runs, int i, int64_t start, int64_t stop) const {
    const Mask::Band& band = data_.mask.bands[static_cast<size_t>(plan::head_class(data_.mask, head_))];
    const int64_t shift = data_.seqlen_k - data_.seqlen_q;
    int64_t total = 0;
    for (int64_t slot = first_; slot < last_; ++slot) {
      if (!plan::reads(runs, i, slot - first_)) continue;
      if (is_by_query_) {
        total += count_band(band, slot + shift, start, stop);
      } else {
        for (int64_t q = start; q < stop; ++q) total += plan::band_allows(band, q + shift, slot) ? 1 : 0;
      }
    }
    return total;
  }

  const PlanData& data_;
  const bool is_by_query_;
  const Lists& lists_;
  const int head_;
  bool has_bands_ = false;
  int64_t first_ = 0, last_ = 0;
  HeadCounts counts_;
};

}  // namespace

int64_t count_band(const Mask::Band& band, int64_t q, int64_t start, int64_t stop) {
  const int64_t high = band.right == Mask::kAll ? stop : std::min(stop, q + band.right + 1);
  const int64_t low = band.left == Mask::kAll ? start : std::max(start, q - band.left);
  const int64_t window = std::max<int64_t>(0, high - low);
  // Sink keys before the window.
  const int64_t sink = std::max<int64_t>(0, std::min({band.sink, high, std::max(low, start)}) - start);
  return window + sink;
}

std::vector<HeadCounts> count_heads(const Plan& plan) {
  check(plan != nullptr, Error::Kind::value, "count_heads: the plan is null");
  const PlanData& data = *plan;
  check(!data.order_q.token.has_value() && !data.order_k.token.has_value() && data.pools.empty(), Error::Kind::unsupported,
        "count_heads: per-head figures of plans with orders or pools are not built");
  std::vector<HeadCounts> heads;
  for (int head = 0; head < data.heads_q; ++head) heads.push_back(Counter(data, head).run());
  return heads;
}

}  // namespace tilewise::study
