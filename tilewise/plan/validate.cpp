// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/validate.h"

#include <algorithm>
#include <vector>

#include "tilewise/plan/axis.h"
#include "tilewise/plan/fault.h"
#include "tilewise/plan/fingerprint.h"
#include "tilewise/plan/mask.h"
#include "tilewise/plan/mask_rule.h"
#include "tilewise/plan/rows.h"
#include "tilewise/plan/validate_lists.h"

TILEWISE_BEGIN_PUBLIC
namespace {

using plan::Axis;
using plan::Direction;
using plan::require;

void require_order(const char* name, const Order& order, const PlanData& data, int64_t seqlen) {
  if (!order.token.has_value()) {
    require(!order.boxes.has_value(), name, " has boxes but no tokens");
    return;
  }
  const TensorView& token = order.token;
  require(token.device().type == Device::Type::cpu && token.dtype() == Dtype::i32 && token.rank() == 3 &&
              (token.dim(0) == 1 || token.dim(0) == data.batch) && token.dim(1) >= 1 && data.heads_q % token.dim(1) == 0 && token.dim(2) >= seqlen &&
              token.dim(2) <= INT32_MAX,
          name, ".token is ", token.dtype(), " ", token.shape(), ", takes i32 [1 or ", data.batch, ", a divisor of ", data.heads_q, ", at least ",
          seqlen, "]");
  std::vector<uint8_t> is_held;
  for (int64_t b = 0; b < token.dim(0); ++b) {
    for (int64_t g = 0; g < token.dim(1); ++g) {
      is_held.assign(static_cast<size_t>(seqlen), 0);
      int64_t held = 0;
      for (int64_t slot = 0; slot < token.dim(2); ++slot) {
        const int32_t at = token.at<int32_t>(b, g, slot);
        if (at == -1) continue;
        require(at >= 0 && at < seqlen, name, " slot ", slot, " holds token ", at, ", takes -1 to ", seqlen - 1);
        require(is_held[static_cast<size_t>(at)] == 0, name, " slot ", slot, " holds token ", at, " a second time");
        is_held[static_cast<size_t>(at)] = 1;
        ++held;
      }
      require(held == seqlen, name, " holds ", held, " of ", seqlen, " tokens; every token has a slot");
    }
  }
  if (!order.boxes.has_value()) return;
  const BoxOrder& boxes = *order.boxes;
  require(!boxes.grid.empty() && boxes.box.size() == boxes.grid.size() && boxes.dilation.size() == boxes.grid.size(), name, ".boxes has ",
          boxes.grid.size(), " axes of grid, ", boxes.box.size(), " of box, ", boxes.dilation.size(), " of dilation; takes as many of each");
  for (size_t axis = 0; axis < boxes.grid.size(); ++axis) {
    require(boxes.grid[axis] >= 1 && boxes.box[axis] >= 1 && boxes.dilation[axis] >= 1, name, ".boxes axis ", axis, " has grid ", boxes.grid[axis],
            ", box ", boxes.box[axis], ", dilation ", boxes.dilation[axis], "; takes at least 1");
  }
}

void require_structure(const PlanData& data) {
  require(data.seqlen_q >= 0 && data.seqlen_k >= 0 && data.seqlen_q <= INT32_MAX && data.seqlen_k <= INT32_MAX, "seqlen_q is ", data.seqlen_q,
          " and seqlen_k ", data.seqlen_k, ", takes 0 to 2^31 - 1");
  require(data.batch >= 1 && data.heads_q >= 1 && data.dense_reads >= 0, "batch is ", data.batch, ", heads_q ", data.heads_q, ", dense_reads ",
          data.dense_reads, "; takes at least 1, 1 and 0");
  constexpr int64_t kMostHeads = 1 << 24;  // over the batch: what is done for each head comes to an end
  require(data.batch <= kMostHeads && data.heads_q <= kMostHeads / data.batch, "batch is ", data.batch, " and heads_q ", data.heads_q,
          ", takes at most 2^24 heads over the batch");
  if (!data.dense_reads_of_head.empty()) {
    require(static_cast<int>(data.dense_reads_of_head.size()) == data.heads_q, "dense_reads_of_head has ", data.dense_reads_of_head.size(),
            " numbers, takes one for each of ", data.heads_q, " heads, or none");
    int64_t rest = data.dense_reads;  // subtracted, so that no sum of damaged numbers overflows
    for (const int64_t reads : data.dense_reads_of_head) {
      require(reads >= 0 && reads <= rest, "dense_reads_of_head adds up to more than dense_reads, ", data.dense_reads,
              ", or holds a negative number");
      rest -= reads;
    }
    require(rest == 0, "dense_reads_of_head adds up to ", data.dense_reads - rest, ", dense_reads is ", data.dense_reads);
  }
  require(!data.is_by_key || data.by_key.has_runs() || !data.by_query.has_runs(), "the plan was made by_key, and by_key has no runs");
  require_order("order_q", data.order_q, data, data.seqlen_q);
  require_order("order_k", data.order_k, data, data.seqlen_k);
  for (const int group : data.pools) require(group >= 2, "a pool has groups of ", group, " slots, takes at least 2");
  require(plan::slots_k_with_pools(data) <= INT32_MAX, "keys and pools take ", plan::slots_k_with_pools(data), " slots, takes at most 2^31 - 1");
  if (const auto fault = plan::mask_fault(data.mask, data.batch, data.heads_q, data.seqlen_q, data.seqlen_k)) throw plan::Fault{*fault};
  plan::require_lists(data, Direction::by_query);
  plan::require_lists(data, Direction::by_key);
  if (!data.by_query.has_runs() || !data.by_key.has_runs()) return;

  for (const plan::Reader& reader : plan::distinct_readers(data)) {
    require(plan::fingerprint(data, Direction::by_query, reader.b, reader.head) == plan::fingerprint(data, Direction::by_key, reader.b, reader.head),
            "by_key names other pairs than by_query for head ", reader.head, " of batch entry ", reader.b);
  }
}

/// Walks the pairs of one head in one direction, run by run.
class PairsCheck {
 public:
  PairsCheck(const PlanData& data, bool is_by_query, int64_t b, int head)
      : data_(data),
        lists_(is_by_query ? data.by_query : data.by_key),
        is_by_query_(is_by_query),
        b_(b),
        head_(head),
        shift_(data.seqlen_k - data.seqlen_q),
        queries_(Axis::of_queries(data, b, head)),
        keys_(Axis::of_keys(data, b, head)) {}

  // Each untested pair satisfies `mask`, each tested pair that the plan's own mask lets through as well. `mask` may be the plan's own.
  void run(const Mask& mask, const char* whose, bool has_tested) const {
    const Axis& rows = is_by_query_ ? queries_ : keys_;
    for (int64_t row = 0; row < plan::num_rows(lists_, rows.slots()); ++row) {
      const int64_t first = plan::row_first(lists_, row), last = plan::row_last(lists_, row, rows.slots());
      for (const RunList* list : {&lists_.whole, &lists_.masked, &lists_.picked}) {
        const bool is_tested = list == &lists_.masked;
        if (is_tested && !has_tested) continue;
        const plan::Runs runs = plan::runs_of(*list, b_, head_, data_.heads_q, row);
        for (int i = 0; i < runs.count; ++i) {
          const int64_t end = is_by_query_ ? plan::part_end(data_, runs.start[i]) : queries_.slots();
          const int64_t stop = plan::run_stop(runs, i, list->grain, end);
          for (int64_t slot = first; slot < last; ++slot) {
            if (rows.token(slot) < 0 || !plan::reads(runs, i, slot - first)) continue;
            if (is_by_query_)
              require_keys(mask, whose, slot, runs.start[i], stop, is_tested);
            else
              require_queries(mask, whose, slot, runs.start[i], stop, is_tested);
          }
        }
      }
    }
  }

 private:
  void require_keys(const Mask& mask, const char* whose, int64_t query_slot, int64_t start, int64_t stop, bool is_tested) const {
    if (keys_.is_plain() && mask.grids.empty() && (!is_tested || data_.mask.grids.empty())) {
      const int64_t query = queries_.token(query_slot);
      const plan::VisibleKeys keys = plan::visible_keys(mask, head_, b_, query, shift_, data_.seqlen_k);
      if (!is_tested) {
        if (keys.overlap(start, stop) == stop - start) return;
      } else {
        const plan::VisibleKeys own = plan::visible_keys(data_.mask, head_, b_, query, shift_, data_.seqlen_k);
        bool is_inside = true;
        for (size_t part = 0; part < 2; ++part) {
          const int64_t low = std::max(start, own.start[part]), high = std::min(stop, own.stop[part]);
          is_inside = is_inside && (low >= high || keys.overlap(low, high) == high - low);
        }
        if (is_inside) return;
      }
    }
    for (int64_t slot = start; slot < stop; ++slot) require_pair(mask, whose, query_slot, slot, is_tested);
  }

  void require_queries(const Mask& mask, const char* whose, int64_t key_slot, int64_t start, int64_t stop, bool is_tested) const {
    if (plan::is_full(mask, head_)) return;
    for (int64_t slot = start; slot < stop; ++slot) require_pair(mask, whose, slot, key_slot, is_tested);
  }

  void require_pair(const Mask& mask, const char* whose, int64_t query_slot, int64_t key_slot, bool is_tested) const {
    const int64_t query = queries_.token(query_slot), key = keys_.token(key_slot);
    if (query < 0 || key < 0) return;
    if (is_tested && !plan::allows(data_.mask, head_, b_, query, key, shift_)) return;
    require(plan::allows(mask, head_, b_, query, key, shift_), is_by_query_ ? "by_query" : "by_key", " lets query ", query, " of head ", head_,
            " read key ", key, ", which ", whose, " forbids");
  }

  const PlanData& data_;
  const Lists& lists_;
  const bool is_by_query_;
  const int64_t b_;
  const int head_;
  const int64_t shift_;
  const Axis queries_, keys_;
};

void require_pairs(const PlanData& data, const Mask& allowed) {
  if (const auto fault = plan::mask_fault(allowed, data.batch, data.heads_q, data.seqlen_q, data.seqlen_k)) throw plan::Fault{"allowed: " + *fault};
  for (const bool is_by_query : {true, false}) {
    const Lists& lists = is_by_query ? data.by_query : data.by_key;
    if (!lists.has_runs()) continue;
    const bool is_first = is_by_query || !data.by_query.has_runs();  // both directions name the same pairs: one is held against the model's mask
    for (const plan::Reader& reader : plan::distinct_readers(data, lists)) {
      if (!plan::is_full(data.mask, reader.head)) PairsCheck(data, is_by_query, reader.b, reader.head).run(data.mask, "the plan's own mask", false);
    }
    if (!is_first) continue;
    for (int64_t b = 0; b < data.batch; ++b) {
      for (int head = 0; head < data.heads_q; ++head) {
        if (!plan::is_full(allowed, head)) PairsCheck(data, is_by_query, b, head).run(allowed, "the model's mask", true);
      }
    }
  }
}

const PlanData& data_of(const Plan& plan) {
  check(plan != nullptr, Error::Kind::value, "validate: the plan is null; make one with a method or load one");
  for (const TensorView* view : {&plan->by_query.whole.begin, &plan->by_query.masked.begin, &plan->by_query.picked.begin, &plan->by_key.whole.begin,
                                 &plan->by_key.masked.begin, &plan->by_key.picked.begin}) {
    check(view->device().type == Device::Type::cpu, Error::Kind::unsupported, "validate: the plan lies on ", view->device(),
          ", takes one on the host");
  }
  return *plan;
}

}  // namespace

std::optional<std::string> find_fault(const Plan& plan) {
  try {
    require_structure(data_of(plan));
  } catch (const plan::Fault& fault) {
    return fault.text;
  }
  return std::nullopt;
}

std::optional<std::string> find_fault(const Plan& plan, const Mask& allowed) {
  try {
    require_structure(data_of(plan));
    require_pairs(*plan, allowed);
  } catch (const plan::Fault& fault) {
    return fault.text;
  }
  return std::nullopt;
}

void validate(const Plan& plan) {
  if (const auto fault = find_fault(plan)) fail(Error::Kind::value, "validate: ", *fault);
}

void validate(const Plan& plan, const Mask& allowed) {
  if (const auto fault = find_fault(plan, allowed)) fail(Error::Kind::value, "validate: ", *fault);
}

TILEWISE_END_PUBLIC
