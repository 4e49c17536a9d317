// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/axis.h"

#include <algorithm>
#include <initializer_list>
#include <map>

#include "tilewise/plan/groups.h"
#include "tilewise/plan/mask.h"
#include "tilewise/plan/rows.h"

namespace tilewise::plan {
namespace {

std::vector<int32_t> order_tokens(const Order& order, const PlanData& plan, int64_t b, int head) {
  std::vector<int32_t> tokens;
  if (!order.token.has_value()) return tokens;
  const int64_t bi = batch_index(order.token, b), g = group_index(order.token, head, plan.heads_q);
  tokens.resize(static_cast<size_t>(order.token.dim(2)));
  for (size_t s = 0; s < tokens.size(); ++s) tokens[s] = order.token.at<int32_t>(bi, g, static_cast<int64_t>(s));
  return tokens;
}

}  // namespace

void Axis::count_reals() {
  if (tokens_.empty()) return;
  reals_.assign(tokens_.size() + 1, 0);
  for (size_t s = 0; s < tokens_.size(); ++s) reals_[s + 1] = reals_[s] + (tokens_[s] >= 0 ? 1 : 0);
}

Axis Axis::of_queries(const PlanData& plan, int64_t b, int head) {
  Axis axis;
  axis.slots_ = slots_q(plan);
  axis.tokens_ = order_tokens(plan.order_q, plan, b, head);
  axis.count_reals();
  return axis;
}

Axis Axis::of_keys(const PlanData& plan, int64_t b, int head) {
  Axis axis;
  const int64_t slots = slots_k(plan);
  axis.slots_ = slots_k_with_pools(plan);
  axis.tokens_ = order_tokens(plan.order_k, plan, b, head);
  if (!plan.pools.empty()) {
    if (axis.tokens_.empty()) {
      for (int64_t s = 0; s < slots; ++s) axis.tokens_.push_back(static_cast<int32_t>(s));
    }
    axis.tokens_.reserve(static_cast<size_t>(axis.slots_));
    for (const int group : plan.pools) {
      for (int64_t first = 0; first < slots; first += group) {
        const auto begin = axis.tokens_.begin() + first, end = axis.tokens_.begin() + std::min<int64_t>(slots, first + group);
        axis.tokens_.push_back(*std::max_element(begin, end));
      }
    }
  }
  axis.count_reals();
  return axis;
}

std::vector<int64_t> part_edges(const PlanData& plan) {
  std::vector<int64_t> edges{0, slots_k(plan)};
  for (const int group : plan.pools) edges.push_back(edges.back() + (slots_k(plan) + group - 1) / group);
  return edges;
}

namespace {

/// The work is that of the arrays' own sizes: a plan may say that it has very many heads and batch entries that share one list.
std::vector<Reader> readers_of(const PlanData& plan, std::initializer_list<const Lists*> directions) {
  std::vector<TensorView> views;
  for (const Lists* lists : directions) {
    for (const RunList* list : {&lists->whole, &lists->masked, &lists->picked}) {
      if (!list->has_runs()) continue;
      views.push_back(list->begin);
      views.push_back(list->count);
    }
  }
  for (const Order* order : {&plan.order_q, &plan.order_k}) {
    if (order->token.has_value()) views.push_back(order->token);
  }
  const bool has_own_spans = plan.mask.spans.has_value() && plan.mask.spans.dim(1) > 1;
  bool is_batched = has_own_spans;
  std::vector<int> heads{0};  // those where something may change
  for (const TensorView& view : views) {
    is_batched = is_batched || view.dim(0) > 1;
    const int groups = static_cast<int>(view.dim(1));
    for (int g = 1; g < groups; ++g) heads.push_back(first_head(g, groups, plan.heads_q));
  }
  for (int head = 1; head < static_cast<int>(plan.mask.head_class.size()); ++head) {
    if (head_class(plan.mask, head) != head_class(plan.mask, head - 1)) heads.push_back(head);
  }
  std::sort(heads.begin(), heads.end());
  heads.erase(std::unique(heads.begin(), heads.end()), heads.end());
  heads.push_back(plan.heads_q);

  std::map<std::vector<int64_t>, size_t> seen;
  std::vector<Reader> readers;
  for (int64_t b = 0; b < (is_batched ? plan.batch : 1); ++b) {
    for (size_t i = 0; i + 1 < heads.size(); ++i) {
      const int head = heads[i];
      std::vector<int64_t> key{head_class(plan.mask, head), has_own_spans ? b : 0};
      for (const TensorView& view : views) {
        key.push_back(batch_index(view, b));
        key.push_back(group_index(view, head, plan.heads_q));
      }
      const int64_t times = (heads[i + 1] - head) * (is_batched ? 1 : plan.batch);
      const auto [at, is_new] = seen.emplace(std::move(key), readers.size());
      if (is_new) {
        readers.push_back({b, head, times});
      } else {
        readers[at->second].times += times;
      }
    }
  }
  return readers;
}

}  // namespace

std::vector<Reader> distinct_readers(const PlanData& plan, const Lists& lists) { return readers_of(plan, {&lists}); }
std::vector<Reader> distinct_readers(const PlanData& plan) { return readers_of(plan, {&plan.by_query, &plan.by_key}); }

}  // namespace tilewise::plan
