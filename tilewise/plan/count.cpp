// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/count.h"

#include <algorithm>
#include <array>

#include "tilewise/plan/axis.h"
#include "tilewise/plan/mask_rule.h"
#include "tilewise/plan/rows.h"

TILEWISE_BEGIN_PUBLIC

namespace {

using plan::Axis;
using plan::Runs;

struct Counts {
  int64_t reads = 0, allowed = 0;
};

/// Counts the pairs of one batch entry and head in one direction.
class Counter {
 public:
  Counter(const PlanData& data, bool is_by_query, int64_t b, int head)
      : data_(data),
        lists_(is_by_query ? data.by_query : data.by_key),
        is_by_query_(is_by_query),
        b_(b),
        head_(head),
        queries_(Axis::of_queries(data, b, head)),
        keys_(Axis::of_keys(data, b, head)) {}

  Counts count(bool has_allowed) {
    Counts counts;
    const Axis& rows = is_by_query_ ? queries_ : keys_;
    for (int64_t row = 0; row < plan::num_rows(lists_, rows.slots()); ++row) {
      first_ = plan::row_first(lists_, row);
      last_ = plan::row_last(lists_, row, rows.slots());
      for (const RunList* list : {&lists_.whole, &lists_.masked, &lists_.picked}) {
        const Runs runs = plan::runs_of(*list, b_, head_, data_.heads_q, row);
        for (int i = 0; i < runs.count; ++i) {
          const int64_t start = runs.start[i];
          const int64_t end = is_by_query_ ? plan::part_end(data_, start) : queries_.slots();
          const int64_t stop = plan::run_stop(runs, i, list->grain, end);
          counts.reads += readers(rows, runs, i) * (is_by_query_ ? keys_ : queries_).real(start, stop);
          if (has_allowed && list == &lists_.masked) counts.allowed += tested(runs, i, start, stop);
          if (has_allowed && list != &lists_.masked) counts.allowed += readers(rows, runs, i) * (is_by_query_ ? keys_ : queries_).real(start, stop);
        }
      }
    }
    return counts;
  }

 private:
  /// Real slots of the row that read run i.
  int64_t readers(const Axis& rows, const Runs& runs, int i) const {
    if (runs.rows == nullptr) return rows.real(first_, last_);
    int64_t total = 0;
    for (int64_t slot = first_; slot < last_; ++slot) total += plan::reads(runs, i, slot - first_) && rows.token(slot) >= 0 ? 1 : 0;
    return total;
  }

  /// Pairs of run i that the mask lets through.
  int64_t tested(const Runs& runs, int i, int64_t start, int64_t stop) const {
    int64_t total = 0;
    for (int64_t slot = first_; slot < last_; ++slot) {
      if (!plan::reads(runs, i, slot - first_)) continue;
      if (is_by_query_ && keys_.is_plain()) {
        if (queries_.token(slot) >= 0) total += plan::count_seen(data_, b_, head_, queries_.token(slot), start, stop);
        continue;
      }
      for (int64_t other = start; other < stop; ++other) {
        const int64_t q = queries_.token(is_by_query_ ? slot : other), k = keys_.token(is_by_query_ ? other : slot);
        total += q >= 0 && k >= 0 && plan::sees(data_, b_, head_, q, k) ? 1 : 0;
      }
    }
    return total;
  }

  const PlanData& data_;
  const Lists& lists_;
  const bool is_by_query_;
  const int64_t b_;
  const int head_;
  const Axis queries_, keys_;
  int64_t first_ = 0, last_ = 0;
};

const PlanData& data_of(const Plan& plan, const char* function) {
  check(plan != nullptr, Error::Kind::value, function, ": the plan is null; make one with a method or load one");
  return *plan;
}

void require_head(const char* function, const PlanData& data, int head) {
  check(head >= 0 && head < data.heads_q, Error::Kind::value, function, ": head ", head, " of a plan with ", data.heads_q, " heads");
}

bool uses_by_query(const PlanData& data) { return data.by_query.has_runs() || !data.by_key.has_runs(); }

/// Over all heads, or one; equal readers are counted once and multiplied.
Counts count(const PlanData& data, bool has_allowed, int only_head = -1) {
  const bool is_by_query = uses_by_query(data);
  Counts total;
  if (only_head >= 0) {
    for (int64_t b = 0; b < data.batch; ++b) {
      const Counts one = Counter(data, is_by_query, b, only_head).count(has_allowed);
      total.reads += one.reads;
      total.allowed += one.allowed;
    }
    return total;
  }
  for (const plan::Reader& reader : plan::distinct_readers(data, is_by_query ? data.by_query : data.by_key)) {
    const Counts one = Counter(data, is_by_query, reader.b, reader.head).count(has_allowed);
    total.reads += one.reads * reader.times;
    total.allowed += one.allowed * reader.times;
  }
  return total;
}

}  // namespace

int64_t reads(const Plan& plan) { return count(data_of(plan, "reads"), false).reads; }
int64_t reads(const Plan& plan, int head) {
  const PlanData& data = data_of(plan, "reads");
  require_head("reads", data, head);
  return count(data, false, head).reads;
}
int64_t allowed_pairs(const Plan& plan) { return count(data_of(plan, "allowed_pairs"), true).allowed; }
int64_t allowed_pairs(const Plan& plan, int head) {
  const PlanData& data = data_of(plan, "allowed_pairs");
  require_head("allowed_pairs", data, head);
  return count(data, true, head).allowed;
}

double density(const Plan& plan) {
  const PlanData& data = data_of(plan, "density");
  return data.dense_reads == 0 ? 0.0 : static_cast<double>(reads(plan)) / static_cast<double>(data.dense_reads);
}

double dense_reads_of(const Plan& plan, int head) {
  const PlanData& data = data_of(plan, "dense_reads_of");
  require_head("dense_reads_of", data, head);
  return data.dense_reads_of_head.empty() ? static_cast<double>(data.dense_reads) / data.heads_q
                                          : static_cast<double>(data.dense_reads_of_head[static_cast<size_t>(head)]);
}

double density(const Plan& plan, int head) {
  require_head("density", data_of(plan, "density"), head);
  const double dense = dense_reads_of(plan, head);
  return dense == 0 ? 0.0 : static_cast<double>(reads(plan, head)) / dense;
}

double fill(const Plan& plan) {
  const Counts counts = count(data_of(plan, "fill"), true);
  return counts.reads == 0 ? 1.0 : static_cast<double>(counts.allowed) / static_cast<double>(counts.reads);
}

double flops(const Plan& plan, int64_t head_dim, int64_t head_dim_v) {
  return 2.0 * static_cast<double>(reads(plan)) * static_cast<double>(head_dim + head_dim_v);
}

int64_t max_runs(const Plan& plan) {
  const PlanData& data = data_of(plan, "max_runs");
  int64_t most = 0;
  for (const plan::Reader& reader : plan::distinct_readers(data, data.by_query)) {
    for (int64_t row = 0; row < plan::num_rows(data.by_query, plan::slots_q(data)); ++row) {
      int64_t runs = 0;
      for (const RunList* list : {&data.by_query.whole, &data.by_query.masked, &data.by_query.picked}) {
        runs += plan::runs_of(*list, reader.b, reader.head, data.heads_q, row).count;
      }
      most = std::max(most, runs);
    }
  }
  return most;
}

int64_t empty_rows(const Plan& plan) {
  const PlanData& data = data_of(plan, "empty_rows");
  int64_t empty = 0;
  for (const plan::Reader& reader : plan::distinct_readers(data, data.by_query)) {
    const Axis queries = Axis::of_queries(data, reader.b, reader.head);
    for (int64_t row = 0; row < plan::num_rows(data.by_query, queries.slots()); ++row) {
      const int64_t first = plan::row_first(data.by_query, row), last = plan::row_last(data.by_query, row, queries.slots());
      std::array<Runs, 3> lists;
      bool has_plain_run = false;  // a run that every slot reads
      size_t used = 0;
      for (const RunList* list : {&data.by_query.whole, &data.by_query.masked, &data.by_query.picked}) {
        const Runs runs = plan::runs_of(*list, reader.b, reader.head, data.heads_q, row);
        has_plain_run = has_plain_run || (runs.count > 0 && runs.rows == nullptr);
        lists[used++] = runs;
      }
      if (has_plain_run) continue;
      for (int64_t slot = first; slot < last; ++slot) {
        if (queries.token(slot) < 0) continue;
        bool reads_any = false;
        for (const Runs& runs : lists) {
          for (int i = 0; i < runs.count && !reads_any; ++i) reads_any = plan::reads(runs, i, slot - first);
        }
        empty += reads_any ? 0 : reader.times;
      }
    }
  }
  return empty;
}

TILEWISE_END_PUBLIC
