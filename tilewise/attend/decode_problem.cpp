// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/decode_problem.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <memory>
#include <utility>

#include "tilewise/plan/builder.h"
#include "tilewise/plan/rows.h"

namespace tilewise::attend {
namespace {

using Kind = Error::Kind;

constexpr int64_t kLowest = std::numeric_limits<int32_t>::min(), kHighest = std::numeric_limits<int32_t>::max();

int32_t clamp(int64_t token) { return static_cast<int32_t>(std::clamp(token, kLowest, kHighest)); }

// The keys that any query of a sequence sees through a band, as masked runs.
RowRuns runs_of_band(const Mask::Band& band, int64_t length, int64_t queries) {
  const int64_t oldest = length - queries, newest = length - 1;
  const int64_t stop = band.right >= length ? length : std::min(length, newest + band.right + 1);
  const int64_t start = band.left == Mask::kAll || band.left > oldest ? 0 : oldest - band.left;
  const int64_t sink = std::clamp<int64_t>(band.sink, 0, std::max<int64_t>(0, stop));
  RowRuns runs;
  const auto add = [&runs](int64_t from, int64_t to) {
    if (from < to) runs.masked.push_back({static_cast<int32_t>(from), static_cast<int32_t>(to), {}});
  };
  if (sink < start) {
    add(0, sink);
    add(start, stop);
  } else {
    add(0, stop);
  }
  return runs;
}

// Without lengths (on a GPU) a plan that says no more than the mask.
Plan plan_of_band(const Mask::Band& band, const Sizes& sizes, const std::vector<int32_t>& lengths, const Context& context) {
  constexpr int kTile = 16;  // the smallest that a plan may have
  auto plan = std::make_shared<PlanData>();
  plan->seqlen_q = sizes.seqlen_q;
  plan->seqlen_k = sizes.seqlen_k;
  plan->batch = sizes.batch;
  plan->heads_q = sizes.heads_q;
  plan->mask.bands = {band};
  if (sizes.batch == 0 || sizes.seqlen_q == 0 || lengths.empty()) return plan;
  ListsBuilder builder(kTile, sizes.batch, 1, 1);
  for (int64_t b = 0; b < sizes.batch; ++b) builder.set(b, 0, 0, runs_of_band(band, lengths[static_cast<size_t>(b)], sizes.seqlen_q));
  plan->by_query = builder.build(context.memory, *plan);
  return plan;
}

Sizes check_operands(const Checker& c, const DecodeParams& p, Store& k, Store& v) {
  c.is_there("q", p.q, "[B, Hq, Sq, D]");
  c.has_rank("q", p.q, 4, "[B, Hq, Sq, D]");
  c.is_float("q", p.q);
  c.is_usable("q", p.q);
  c.require(p.q.dim(1) >= 1 && p.q.dim(1) <= kHighest, Kind::shape, "q has ", p.q.dim(1), " heads: ", p.q.shape(), "; takes 1 or more");
  c.require(p.q.dim(2) >= 1 && p.q.dim(2) <= kMostNewTokens, p.q.dim(2) > kMostNewTokens ? Kind::unsupported : Kind::shape, "q has ", p.q.dim(2),
            " new tokens a sequence: ", p.q.shape(), ", takes 1 to ", kMostNewTokens, "; more are attend_forward's");
  Sizes sizes;
  sizes.batch = p.q.dim(0);
  sizes.heads_q = static_cast<int>(p.q.dim(1));
  sizes.seqlen_q = p.q.dim(2);
  sizes.head_dim = p.q.dim(3);
  k = check_store(c, "k", p.k, p.q.dtype(), sizes.batch);
  c.require(k.channels == sizes.head_dim, Kind::shape, "q and k differ in head_dim: q ", p.q.shape(), ", k has ", k.channels,
            " channels; give both the same D");
  c.require(sizes.heads_q % k.heads == 0, Kind::shape, "heads of k must divide the heads of q: q has ", sizes.heads_q, ", k has ", k.heads,
            "; repeat or drop heads of k");
  sizes.heads_kv = static_cast<int>(k.heads);
  const auto* const plain_v = std::get_if<TensorView>(&p.v);
  const bool has_v = plain_v == nullptr || plain_v->has_value();
  c.require(has_v == p.out.has_value(), Kind::value, has_v ? "v is given without out" : "out is given without v",
            "; give both, or leave both absent for lse alone");
  c.require(has_v || p.lse.has_value(), Kind::value, "out and lse are both absent: nothing to write; give one of them");
  if (!has_v) return sizes;
  v = check_store(c, "v", p.v, p.q.dtype(), sizes.batch);
  c.require(v.heads == 1 || v.heads == k.heads, Kind::shape, "v has ", v.heads, " heads, takes 1 or ", k.heads, " as k");
  sizes.heads_v = static_cast<int>(v.heads);
  sizes.head_dim_v = v.channels;
  return sizes;
}

void check_lengths(const Checker& c, const DecodeParams& p, int64_t batch) {
  if (!p.lengths.has_value()) return;
  c.has_shape("lengths", p.lengths, {batch}, "[B]");
  c.has_dtype("lengths", p.lengths, Dtype::i32, "always");
  c.is_usable("lengths", p.lengths);
}

std::vector<int32_t> lengths_of(const Checker& c, const DecodeParams& p, int64_t batch, int64_t capacity) {
  const int64_t most = p.plan != nullptr ? std::min(capacity, p.plan->seqlen_k) : capacity;
  if (!p.lengths.has_value()) return std::vector<int32_t>(static_cast<size_t>(batch), static_cast<int32_t>(most));
  std::vector<int32_t> lengths;
  for (int64_t b = 0; b < batch; ++b) {
    const int32_t length = p.lengths.at<int32_t>(b);
    c.require(length >= 0 && length <= capacity, Kind::value, "lengths[", b, "] is ", length, ", the cache holds 0 to ", capacity, " tokens");
    c.require(length <= most, Kind::value, "lengths[", b, "] is ", length, ", the plan is made for ", most, " keys; plan for the longest sequence");
    lengths.push_back(length);
  }
  return lengths;
}

// Of one row of by_query.
struct RowLists {
  std::array<plan::Runs, 3> lists;  // whole, masked, picked
  std::array<int, 3> grains;

  RowLists(const Lists& from, int64_t b, int head, int heads, int64_t row)
      : lists{plan::runs_of(from.whole, b, head, heads, row), plan::runs_of(from.masked, b, head, heads, row),
              plan::runs_of(from.picked, b, head, heads, row)},
        grains{from.whole.grain, from.masked.grain, 1} {}

  bool equals(const RowLists& other) const {
    for (size_t i = 0; i < lists.size(); ++i) {
      if (lists[i].count != other.lists[i].count || (lists[i].count > 0 && lists[i].start != other.lists[i].start)) return false;
    }
    return true;
  }
};

// Cuts the rows of a plan of bands into units and segments, and refuses what would read what is not there.
class Cutter {
 public:
  Cutter(const Checker& c, DecodeProblem& problem) : c_(c), problem_(problem) {}

  void cut() {
    const Lists& lists = problem_.params.plan->by_query;
    const Sizes& sizes = problem_.sizes;
    const int64_t rows = plan::num_rows(lists, sizes.seqlen_q);
    const int group = sizes.heads_q / sizes.heads_kv;
    if (!lists.has_runs()) {  // every row without a key is a row all the same
      for (int64_t b = 0; b < sizes.batch; ++b) {
        for (int head = 0; head < sizes.heads_q; ++head) add_unit(b, head, head + 1, 0, static_cast<int>(sizes.seqlen_q), nullptr, 0);
      }
      return;
    }
    c_.require(plan::row_first(lists, 0) == 0 && plan::row_last(lists, rows - 1, sizes.seqlen_q) == sizes.seqlen_q, Kind::value,
               "plan: the rows of by_query do not cover the ", sizes.seqlen_q, " queries; validate() the plan");
    for (const RunList* const list : {&lists.whole, &lists.masked, &lists.picked}) check_begin(*list, rows);
    for (int64_t b = 0; b < sizes.batch; ++b) {
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t first = plan::row_first(lists, row), last = plan::row_last(lists, row, sizes.seqlen_q);
        c_.require(0 <= first && first <= last && last <= sizes.seqlen_q, Kind::value, "plan: by_query.edge is out of order; validate() the plan");
        if (first == last) continue;
        const int most = std::max(1, kDecodeRows / static_cast<int>(last - first));
        for (int head = 0; head < sizes.heads_q;) {
          const RowLists here(lists, b, head, sizes.heads_q, row);
          int next = head + 1;
          while (next < sizes.heads_q && next % group != 0 && next - head < most && here.equals(RowLists(lists, b, next, sizes.heads_q, row))) ++next;
          add_unit(b, head, next, static_cast<int>(first), static_cast<int>(last), &here, first);
          head = next;
        }
      }
    }
  }

 private:
  // Runs lie inside of their arrays.
  void check_begin(const RunList& list, int64_t rows) {
    if (!list.has_runs()) return;
    const int64_t capacity = list.start.dim(0);
    for (int64_t b = 0; b < problem_.sizes.batch; ++b) {
      for (int head = 0; head < problem_.sizes.heads_q; ++head) {
        for (int64_t row = 0; row < rows; ++row) {
          const int64_t begin =
              list.begin.at<int64_t>(plan::batch_index(list.begin, b), plan::group_index(list.begin, head, problem_.sizes.heads_q), row);
          const int32_t count =
              list.count.at<int32_t>(plan::batch_index(list.count, b), plan::group_index(list.count, head, problem_.sizes.heads_q), row);
          c_.require(count >= 0 && (count == 0 || (begin >= 0 && begin <= capacity - count)), Kind::value, "plan: by_query row ", row, " of head ",
                     head, " has ", count, " runs from ", begin, " on, the arrays hold ", capacity, "; validate() the plan");
        }
      }
    }
  }

  void add_unit(int64_t b, int head, int head_end, int query, int query_end, const RowLists* lists, int64_t row_first) {
    DecodeUnit unit{.b = b,
                    .head_kv = head / (problem_.sizes.heads_q / problem_.sizes.heads_kv),
                    .head = head,
                    .heads = head_end - head,
                    .query = query,
                    .queries = query_end - query,
                    .first = static_cast<int64_t>(problem_.segments.size()),
                    .last = 0,
                    .keys = 0};
    if (lists != nullptr) {
      set_limits(unit);
      for (size_t list = 0; list < 3; ++list) {
        for (int i = 0; i < lists->lists[list].count; ++i) add_run(unit, *lists, list, i, row_first);
      }
    }
    unit.last = static_cast<int64_t>(problem_.segments.size());
    problem_.units.push_back(unit);
  }

  // What all rows of the unit see, and what any of them does.
  void set_limits(const DecodeUnit& unit) {
    first_least_ = sink_least_ = last_least_ = kHighest;
    first_most_ = sink_most_ = last_most_ = kLowest;
    for (int head = unit.head; head < unit.head + unit.heads; ++head) {
      for (int query = unit.query; query < unit.query + unit.queries; ++query) {
        const DecodeBand band = problem_.band(unit.b, head, query);
        first_least_ = std::min<int64_t>(first_least_, band.first);
        first_most_ = std::max<int64_t>(first_most_, band.first);
        last_least_ = std::min<int64_t>(last_least_, band.last);
        last_most_ = std::max<int64_t>(last_most_, band.last);
        sink_least_ = std::min<int64_t>(sink_least_, band.sink);
        sink_most_ = std::max<int64_t>(sink_most_, band.sink);
      }
    }
  }

  void add_run(DecodeUnit& unit, const RowLists& lists, size_t list, int i, int64_t row_first) {
    const plan::Runs& runs = lists.lists[list];
    const int64_t length = problem_.lengths[static_cast<size_t>(unit.b)], seqlen_k = problem_.sizes.seqlen_k;
    const bool is_masked = list == 1, is_picked = list == 2;
    const int64_t start = runs.start[i];
    int64_t stop = is_picked ? start + 1 : plan::run_stop(runs, i, lists.grains[list], seqlen_k);
    if (!is_masked && runs.stop == nullptr && !is_picked && start < length)
      stop = std::min(stop, length);  // such a run says that it ends with the keys
    const int64_t end = is_masked ? seqlen_k : length;
    c_.require(0 <= start && start < stop && stop <= end, Kind::value, "plan: by_query of sequence ", unit.b, ", head ", unit.head, " has the ",
               is_masked   ? "masked"
               : is_picked ? "picked"
                           : "whole",
               " run [", start, ", ", stop, "), the ", is_masked ? "plan" : "sequence", " has ", end, " keys; cut it there");
    uint8_t queries = 0;
    for (int query = unit.query; query < unit.query + unit.queries; ++query) {
      if (plan::reads(runs, i, query - row_first)) queries = static_cast<uint8_t>(queries | (1u << query));
    }
    if (queries == 0) return;
    if (!is_masked) return add(unit, start, stop, queries, false);
    // Keys that no row sees are left out, and those that all see are not tested.
    stop = std::min(stop, last_most_ + 1);
    const int64_t middle = std::clamp(sink_most_, start, std::max(start, stop));
    add_masked(unit, start, std::min(middle, stop), queries);
    add_masked(unit, std::max(middle, first_least_), stop, queries);
  }

  void add_masked(DecodeUnit& unit, int64_t start, int64_t stop, uint8_t queries) {
    if (start >= stop) return;
    const bool is_below_all_sinks = stop <= sink_least_;
    const int64_t free_start = std::clamp(is_below_all_sinks ? start : first_most_, start, stop);
    const int64_t free_stop = std::clamp(last_least_ + 1, free_start, stop);
    add(unit, start, free_start, queries, true);
    add(unit, free_start, free_stop, queries, false);
    add(unit, free_stop, stop, queries, true);
  }

  void add(DecodeUnit& unit, int64_t start, int64_t stop, uint8_t queries, bool is_tested) {
    if (start >= stop) return;
    check_pages("k", problem_.k, unit, start, stop);
    if (problem_.v.has_value()) check_pages("v", problem_.v, unit, start, stop);
    problem_.segments.push_back({static_cast<int32_t>(start), static_cast<int32_t>(stop), queries, is_tested});
    unit.keys += stop - start;
    problem_.pairs_read += (stop - start) * unit.heads * std::popcount(queries);
  }

  void check_pages(const char* name, const Store& store, const DecodeUnit& unit, int64_t start, int64_t stop) const {
    if (!store.table.has_value()) return;
    const int64_t page = store.page();
    for (int64_t i = start / page; i <= (stop - 1) / page; ++i) {
      const int64_t entry = place_of(store, unit.b, unit.head_kv, i * page).entry;
      c_.require(entry >= 0, Kind::value, name, ".table: page ", i, " (tokens from ", i * page, " on) of sequence ", unit.b, ", K/V head ",
                 unit.head_kv, " is not stored (", entry, "), and the run [", start, ", ", stop, ") reads it; store it, or plan without it");
      c_.require(entry < store.data.dim(0), Kind::value, name, ".table: page ", i, " of sequence ", unit.b, ", K/V head ", unit.head_kv, " is ",
                 entry, ", the pool has ", store.data.dim(0), " pages");
    }
  }

  const Checker& c_;
  DecodeProblem& problem_;
  int64_t first_least_ = 0, first_most_ = 0, last_least_ = 0, last_most_ = 0, sink_least_ = 0, sink_most_ = 0;
};

}  // namespace

DecodeBand DecodeProblem::band(int64_t b, int head, int query) const {
  const Mask& mask = params.plan->mask;
  const Mask::Band& rule = mask.bands[static_cast<size_t>(plan::head_class(mask, head))];
  const int64_t length = lengths[static_cast<size_t>(b)], token = length - sizes.seqlen_q + query;
  return {.first = rule.left == Mask::kAll ? static_cast<int32_t>(kLowest) : clamp(token - rule.left),
          .last = rule.right == Mask::kAll ? static_cast<int32_t>(length - 1) : clamp(std::min(length - 1, token + rule.right)),
          .sink = clamp(rule.sink)};
}

DecodeProblem check_decode(const DecodeParams& params, const Context& context) {
  const Checker c("attend_decode", context);
  const bool is_on_host = context.device.type == Device::Type::cpu;  // else plan, lengths and tables are where this code cannot read
  DecodeProblem problem;
  problem.params = params;
  problem.sizes = check_operands(c, params, problem.k, problem.v);
  const int64_t capacity = problem.v.has_value() ? std::min(problem.k.capacity, problem.v.capacity) : problem.k.capacity;
  c.require(problem.k.capacity <= kHighest, Kind::shape, "k has room for ", problem.k.capacity, " tokens, takes at most ", kHighest);
  c.require((params.plan != nullptr) != params.dense_band.has_value(), Kind::value,
            params.plan != nullptr ? "plan and dense_band are both given; give one of them"
                                   : "plan is null, and is needed; to read every key say so by dense_band");
  if (params.plan != nullptr) {
    const PlanData& plan = *params.plan;
    c.require(params.lengths.has_value() || plan.seqlen_k <= capacity, Kind::shape, "plan is made for ", plan.seqlen_k, " keys, k and v hold ",
              capacity, "; give lengths, or plan for what is there");
    c.require(plan.pools.empty() && !plan.order_q.token.has_value() && !plan.order_k.token.has_value(), Kind::unsupported,
              "plan has pools or orders; decode takes runs of tokens");
    c.require(plan.by_query.has_runs() || !plan.by_key.has_runs(), Kind::unsupported,
              "plan has by_key alone, decode reads by_query; complete() it first");
  }
  check_lengths(c, params, problem.sizes.batch);
  if (is_on_host) problem.lengths = lengths_of(c, params, problem.sizes.batch, capacity);
  problem.sizes.seqlen_k = params.plan != nullptr ? params.plan->seqlen_k : capacity;
  if (params.dense_band) {
    constexpr int64_t kFarthest = int64_t{1} << 40;  // of a plan's bands, too
    for (const int64_t side : {params.dense_band->left, params.dense_band->right}) {
      c.require(side == Mask::kAll || (-kFarthest <= side && side <= kFarthest), Kind::value, "dense_band reaches ", side,
                " tokens, takes -2^40 to 2^40 or Mask::kAll");
    }
    c.require(params.dense_band->sink >= 0, Kind::value, "dense_band.sink is ", params.dense_band->sink, ", takes 0 or more");
    problem.params.plan = plan_of_band(*params.dense_band, problem.sizes, problem.lengths, context);
  }
  check_decode_parts(c, params, problem.params.plan, problem.sizes);
  for (const Named& written : {Named{"out", params.out}, Named{"lse", params.lse}}) {
    if (written.view.has_value()) c.are_apart(written, {{"k", problem.k.data}, {"v", problem.v.data}});
  }
  if (is_on_host && !problem.params.plan->mask.bands.empty()) Cutter(c, problem).cut();
  return problem;
}

}  // namespace tilewise::attend
