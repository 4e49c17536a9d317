// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/collector.h"

#include <algorithm>
#include <utility>

namespace tilewise::plan {

void set_bits(std::span<uint64_t> words, int64_t first, int64_t last) {
  for (int64_t word = first / 64; word * 64 < last; ++word) {
    const int64_t from = std::max<int64_t>(first - word * 64, 0), to = std::min<int64_t>(last - word * 64, 64);
    const uint64_t below_to = to == 64 ? ~uint64_t{0} : (uint64_t{1} << to) - 1;
    words[static_cast<size_t>(word)] |= below_to & (~uint64_t{0} << from);
  }
}

std::vector<uint64_t> full_words(int64_t slots, int words) {
  std::vector<uint64_t> full(static_cast<size_t>(words), 0);
  set_bits(full, 0, slots);
  return full;
}

RunCollector::RunCollector(int64_t num_rows, int words) : words_(words) {
  for (List& list : lists_) list.last.assign(static_cast<size_t>(num_rows), -1);
}

bool RunCollector::are_equal(int64_t bits, std::span<const uint64_t> other) const {
  if (bits < 0 || other.empty()) return bits < 0 && other.empty();
  return std::equal(other.begin(), other.end(), bits_.begin() + bits * words_);
}

void RunCollector::add(int64_t row, Kind kind, int64_t start, int64_t stop, std::span<const uint64_t> bits, bool may_join) {
  List& list = lists_[static_cast<size_t>(kind)];
  int64_t& last = list.last[static_cast<size_t>(row)];
  if (kind != Kind::picked && may_join && last >= 0) {
    Entry& before = list.entries[static_cast<size_t>(last)];
    if (before.stop == start && are_equal(before.bits, bits)) {
      before.stop = static_cast<int32_t>(stop);
      return;
    }
  }
  int64_t index = -1;
  if (!bits.empty()) {
    index = static_cast<int64_t>(bits_.size()) / words_;
    bits_.insert(bits_.end(), bits.begin(), bits.end());
  }
  const int64_t end = kind == Kind::picked ? stop : start + 1;
  for (int64_t slot = start; slot < end; ++slot) {  // picked runs are single slots
    last = static_cast<int64_t>(list.entries.size());
    list.entries.push_back({row, static_cast<int32_t>(slot), static_cast<int32_t>(kind == Kind::picked ? slot + 1 : stop), index});
  }
}

Lists pack(std::span<const RunCollector> groups, int64_t batch, int tile, const std::vector<int32_t>& edge, const std::shared_ptr<Memory>& memory,
           PlanData& plan) {
  Lists lists;
  lists.tile = tile;
  if (!edge.empty()) {
    lists.edge = keep(plan, Tensor(memory, Dtype::i32, {static_cast<int64_t>(edge.size())}));
    std::copy(edge.begin(), edge.end(), lists.edge.data<int32_t>());
  }
  if (groups.empty()) return lists;
  const auto num_rows = static_cast<int64_t>(groups[0].lists_[0].last.size());
  const auto num_groups = static_cast<int64_t>(groups.size()) / batch;
  RunList* const targets[3] = {&lists.whole, &lists.masked, &lists.picked};
  for (size_t kind = 0; kind < 3; ++kind) {
    int64_t capacity = 0;
    bool has_rows = false;
    for (const RunCollector& group : groups) {
      capacity += static_cast<int64_t>(group.lists_[kind].entries.size());
      for (const RunCollector::Entry& entry : group.lists_[kind].entries) has_rows = has_rows || entry.bits >= 0;
    }
    if (capacity == 0) continue;
    RunList& list = *targets[kind];
    const auto words = static_cast<size_t>(groups[0].words_);
    list.begin = keep(plan, Tensor(memory, Dtype::i64, {batch, num_groups, num_rows}));
    list.count = keep(plan, Tensor(memory, Dtype::i32, {batch, num_groups, num_rows}));
    list.start = keep(plan, Tensor(memory, Dtype::i32, {capacity}));
    if (kind != 2) list.stop = keep(plan, Tensor(memory, Dtype::i32, {capacity}));
    if (has_rows) list.rows = keep(plan, Tensor(memory, Dtype::u64, {capacity, static_cast<int64_t>(words)}));
    auto* begin = list.begin.data<int64_t>();
    auto* count = list.count.data<int32_t>();
    auto* start = list.start.data<int32_t>();
    auto* stop = kind == 2 ? nullptr : list.stop.data<int32_t>();
    auto* rows = has_rows ? list.rows.data<uint64_t>() : nullptr;
    int64_t base = 0;
    for (const RunCollector& group : groups) {
      // A counting sort by row; entries of a row are in order already.
      const auto& entries = group.lists_[kind].entries;
      std::fill(count, count + num_rows, 0);
      for (const RunCollector::Entry& entry : entries) ++count[entry.row];
      for (int64_t row = 0; row < num_rows; ++row) {
        begin[row] = base;
        base += count[row];
        count[row] = 0;
      }
      for (const RunCollector::Entry& entry : entries) {
        const int64_t at = begin[entry.row] + count[entry.row]++;
        start[at] = entry.start;
        if (stop != nullptr) stop[at] = entry.stop;
        for (size_t w = 0; rows != nullptr && w < words; ++w) {
          rows[static_cast<size_t>(at) * words + w] = entry.bits < 0 ? ~uint64_t{0} : group.bits_[static_cast<size_t>(entry.bits) * words + w];
        }
      }
      begin += num_rows;
      count += num_rows;
    }
  }
  return lists;
}

PlanData share(const Plan& plan) {
  PlanData data;
  data.seqlen_q = plan->seqlen_q;
  data.seqlen_k = plan->seqlen_k;
  data.dense_reads = plan->dense_reads;
  data.batch = plan->batch;
  data.heads_q = plan->heads_q;
  data.by_query = plan->by_query;
  data.by_key = plan->by_key;
  data.order_q = plan->order_q;
  data.order_k = plan->order_k;
  data.pools = plan->pools;
  data.mask = plan->mask;
  data.shared = {plan};
  return data;
}

TensorView keep(PlanData& plan, Tensor tensor) {
  const TensorView view = tensor.view;
  plan.memory.push_back(std::move(tensor.buffer));
  return view;
}

Groups common_groups(std::span<const TensorView> views, int heads) {
  Groups common;
  for (const TensorView& view : views) {
    if (!view.has_value()) continue;
    common.batch = std::max(common.batch, view.dim(0));
    const int groups = static_cast<int>(view.dim(1));
    if (common.groups % groups == 0) continue;
    common.groups = groups % common.groups == 0 ? groups : heads;
  }
  return common;
}

}  // namespace tilewise::plan
