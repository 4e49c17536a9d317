// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/content_hash.h"

#include <map>
#include <utility>
#include <vector>

#include "tilewise/base/hash.h"
#include "tilewise/plan/axis.h"
#include "tilewise/plan/pack.h"
#include "tilewise/plan/rows.h"

TILEWISE_BEGIN_PUBLIC
namespace {

class Hash {
 public:
  void add(uint64_t value) { state_ = splitmix64(state_ ^ value) + value * 0x9e3779b97f4a7c15ull; }
  void add_signed(int64_t value) { add(static_cast<uint64_t>(value)); }
  uint64_t value() const { return splitmix64(state_); }

 private:
  uint64_t state_ = 0x74696c6577697365ull;
};

/// One list of one batch entry and head, row by row.
uint64_t hash_list(const PlanData& data, const Lists& lists, const RunList& list, bool is_by_query, int64_t b, int head) {
  Hash hash;
  const int64_t slots = is_by_query ? plan::slots_q(data) : plan::slots_k_with_pools(data);
  const bool is_picked = &list == &lists.picked;
  for (int64_t row = 0; row < plan::num_rows(lists, slots); ++row) {
    const int64_t length = plan::row_last(lists, row, slots) - plan::row_first(lists, row);
    const plan::Runs runs = plan::runs_of(list, b, head, data.heads_q, row);
    const auto stop_of = [&](int i) {
      return plan::run_stop(runs, i, list.grain, is_by_query ? plan::part_end(data, runs.start[i]) : plan::slots_q(data));
    };
    for (int i = 0; i < runs.count;) {
      const plan::RowBits bits = plan::moved_bits(runs, i, 0, length, 0);
      const int64_t start = runs.start[i];
      int64_t stop = stop_of(i++);
      while (!is_picked && i < runs.count && runs.start[i] == stop && (!is_by_query || plan::part_end(data, start) > stop) &&
             plan::moved_bits(runs, i, 0, length, 0) == bits) {
        stop = stop_of(i++);
      }
      hash.add_signed(start);
      hash.add_signed(stop);
      if (bits != plan::bits_between(0, length)) {
        for (const uint64_t word : bits) hash.add(word);
      }
    }
    hash.add_signed(-1 - row);  // the end of a row, which no run looks like
  }
  return hash.value();
}

void add_mask(Hash& hash, const PlanData& data) {
  const Mask& mask = data.mask;
  hash.add(mask.bands.size());
  for (const Mask::Band& band : mask.bands) {
    hash.add_signed(band.left);
    hash.add_signed(band.right);
    hash.add_signed(band.sink);
  }
  hash.add(mask.grids.size());
  for (const auto& grid : mask.grids) {
    hash.add(grid.size());
    for (const Mask::Axis& axis : grid) {
      for (const int value : {axis.length, axis.window, axis.stride, axis.dilation, axis.is_causal ? 1 : 0}) hash.add_signed(value);
    }
  }
  hash.add_signed(mask.grids.empty() ? 0 : mask.first);
  for (int head = 0; head < data.heads_q; ++head) hash.add_signed(plan::head_class(mask, head));
  if (!mask.spans.has_value()) return;
  for (int64_t c = 0; c < mask.spans.dim(0); ++c) {
    for (int64_t b = 0; b < data.batch; ++b) {
      for (int64_t q = 0; q < data.seqlen_q; ++q) {
        for (int64_t i = 0; i < 4; ++i) hash.add_signed(mask.spans.at<int32_t>(c, mask.spans.dim(1) == 1 ? 0 : b, q, i));
      }
    }
  }
}

}  // namespace

uint64_t content_hash(const Plan& plan) {
  check(plan != nullptr, Error::Kind::value, "content_hash: the plan is null; make one with a method or load one");
  const PlanData& data = *plan;
  const bool is_by_query = !data.by_key.has_runs() || (data.by_query.has_runs() && !data.is_by_key);
  const Lists& lists = is_by_query ? data.by_query : data.by_key;
  Hash hash;
  for (const int64_t value :
       {data.seqlen_q, data.seqlen_k, data.dense_reads, data.batch, int64_t{data.heads_q}, int64_t{is_by_query}, int64_t{lists.tile}}) {
    hash.add_signed(value);
  }
  for (const int64_t reads : data.dense_reads_of_head) hash.add_signed(reads);
  const int64_t slots = is_by_query ? plan::slots_q(data) : plan::slots_k_with_pools(data);
  for (int64_t row = 0; row < plan::num_rows(lists, slots); ++row) hash.add_signed(plan::row_last(lists, row, slots));
  hash.add(data.pools.size());
  for (const int group : data.pools) hash.add_signed(group);
  add_mask(hash, data);
  for (const Order* order : {&data.order_q, &data.order_k}) {
    hash.add(order->boxes.has_value() ? 1 : 0);
    if (!order->boxes.has_value()) continue;
    for (const auto* values : {&order->boxes->grid, &order->boxes->box, &order->boxes->dilation}) {
      hash.add(values->size());
      for (const int value : *values) hash.add_signed(value);
    }
  }

  // Each list and order once for each place it lies in, then read out for every batch entry and head.
  std::map<std::vector<int64_t>, uint64_t> known;
  const auto place = [&](int64_t what, const TensorView& a, const TensorView& b2, int64_t b, int head) {
    std::vector<int64_t> key{what};
    for (const TensorView* view : {&a, &b2}) {
      if (!view->has_value()) continue;
      key.push_back(plan::batch_index(*view, b));
      key.push_back(plan::group_index(*view, head, data.heads_q));
    }
    return key;
  };
  for (int64_t b = 0; b < data.batch; ++b) {
    for (int head = 0; head < data.heads_q; ++head) {
      int64_t what = 0;
      for (const RunList* list : {&lists.whole, &lists.masked, &lists.picked}) {
        const auto [at, is_new] = known.emplace(place(what++, list->begin, list->count, b, head), 0);
        if (is_new) at->second = hash_list(data, lists, *list, is_by_query, b, head);
        hash.add(at->second);
      }
      for (const Order* order : {&data.order_q, &data.order_k}) {
        const auto [at, is_new] = known.emplace(place(what++, order->token, {}, b, head), 0);
        if (is_new && order->token.has_value()) {
          Hash tokens;
          for (int64_t slot = 0; slot < order->token.dim(2); ++slot) {
            tokens.add_signed(
                order->token.at<int32_t>(plan::batch_index(order->token, b), plan::group_index(order->token, head, data.heads_q), slot));
          }
          at->second = tokens.value();
        }
        hash.add(at->second);
      }
    }
  }
  return hash.value();
}

std::string content_hash_text(const Plan& plan) {
  const uint64_t hash = content_hash(plan);
  std::string text(16, '0');
  for (size_t i = 0; i < 16; ++i) text[i] = "0123456789abcdef"[(hash >> (60 - 4 * i)) & 15];
  return text;
}

TILEWISE_END_PUBLIC
