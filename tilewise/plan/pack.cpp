// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/pack.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace tilewise::plan {

RowBits bits_between(int64_t first, int64_t last) {
  RowBits bits{};
  for (int64_t word = first / 64; word * 64 < last && word < kMaxWords; ++word) {
    const int64_t low = std::max<int64_t>(first - word * 64, 0), high = std::min<int64_t>(last - word * 64, 64);
    bits[static_cast<size_t>(word)] = (high == 64 ? ~uint64_t{0} : (uint64_t{1} << high) - 1) & ~((uint64_t{1} << low) - 1);
  }
  return bits;
}

RowBits moved_bits(const Runs& runs, int i, int64_t from, int64_t length, int64_t to) {
  if (runs.rows == nullptr) return bits_between(to, to + length);
  RowBits bits{};
  for (int64_t slot = 0; slot < length; ++slot) {
    if (reads(runs, i, from + slot)) bits[static_cast<size_t>((to + slot) / 64)] |= uint64_t{1} << ((to + slot) % 64);
  }
  return bits;
}

std::vector<int64_t> part_ends(const PlanData& plan, Direction direction) {
  if (direction == Direction::by_key) return {slots_q(plan)};
  std::vector<int64_t> ends{slots_k(plan)};
  for (const int group : plan.pools) ends.push_back(ends.back() + (slots_k(plan) + group - 1) / group);
  return ends;
}

Packer::Packer(int tile, int64_t batch, int64_t groups, int64_t num_rows, std::vector<int64_t> ends)
    : tile_(tile), words_((tile + 63) / 64), batch_(batch), groups_(groups), num_rows_(num_rows), ends_(std::move(ends)) {
  for (Arrays& list : lists_) {
    list.begin.assign(static_cast<size_t>(batch * groups * num_rows), 0);
    list.count.assign(static_cast<size_t>(batch * groups * num_rows), 0);
  }
}

void Packer::add(int64_t index, int64_t slots, PackedRow& row, bool joins_touching) {
  for (const Kind kind : {Kind::whole, Kind::masked, Kind::picked}) add(kind, index, slots, row.list(kind), joins_touching);
}

void Packer::add(Kind kind, int64_t index, int64_t slots, std::vector<PackedRun>& runs, bool joins_touching) {
  const RowBits all = bits_between(0, slots);
  Arrays& list = lists_[static_cast<size_t>(kind)];
  const auto by_start = [](const PackedRun& a, const PackedRun& b) { return a.start < b.start; };
  if (!std::is_sorted(runs.begin(), runs.end(), by_start)) std::sort(runs.begin(), runs.end(), by_start);
  const size_t begin = list.start.size();
  list.begin[static_cast<size_t>(index)] = static_cast<int64_t>(begin);
  const auto append = [&](int32_t start, int32_t stop, const RowBits& bits) {
    if (bits != all) keep_rows(list);
    list.start.push_back(start);
    list.stop.push_back(stop);
    if (list.has_rows) list.rows.insert(list.rows.end(), bits.begin(), bits.begin() + words_);
  };
  const auto real_bits = [&](const PackedRun& run) {
    RowBits bits = run.bits;
    for (size_t word = 0; word < kMaxWords; ++word) bits[word] &= all[word];
    return bits;
  };
  for (size_t i = 0; i < runs.size();) {
    const RowBits bits = real_bits(runs[i]);
    const int32_t start = runs[i].start;
    int32_t stop = runs[i++].stop;
    if (kind == Kind::picked) {
      for (int32_t slot = start; slot < stop; ++slot) append(slot, slot + 1, bits);
      continue;
    }
    while (joins_touching && i < runs.size() && runs[i].start == stop && !std::binary_search(ends_.begin(), ends_.end(), stop) &&
           real_bits(runs[i]) == bits) {
      stop = runs[i++].stop;
    }
    append(start, stop, bits);
  }
  const size_t count = list.start.size() - begin;
  list.count[static_cast<size_t>(index)] = static_cast<int32_t>(count);
  // Stripes that 16 rows read, blocks longer than a row: equal lists are neighbours.
  if (list.last >= 0 && list.last_slots == slots && count > 0 && static_cast<size_t>(list.count[static_cast<size_t>(list.last)]) == count) {
    const auto before = static_cast<size_t>(list.begin[static_cast<size_t>(list.last)]), words = static_cast<size_t>(words_);
    const auto is_equal = [&](const auto& values, size_t each) {
      const auto* at = values.data();
      return std::equal(at + before * each, at + (before + count) * each, at + begin * each);
    };
    if (is_equal(list.start, 1) && is_equal(list.stop, 1) && (!list.has_rows || is_equal(list.rows, words))) {
      list.begin[static_cast<size_t>(index)] = static_cast<int64_t>(before);
      list.start.resize(begin);
      list.stop.resize(begin);
      if (list.has_rows) list.rows.resize(begin * words);
    }
  }
  list.last = index;
  list.last_slots = slots;
}

void Packer::keep_rows(Arrays& list) const {
  if (list.has_rows) return;
  list.has_rows = true;
  list.rows.assign(list.start.size() * static_cast<size_t>(words_), ~uint64_t{0});
}

void Packer::share(int64_t index, int64_t as_index) {
  for (Arrays& list : lists_) {
    list.begin[static_cast<size_t>(index)] = list.begin[static_cast<size_t>(as_index)];
    list.count[static_cast<size_t>(index)] = list.count[static_cast<size_t>(as_index)];
  }
}

void Packer::append(int64_t index, const Packer& rows) {
  for (size_t kind = 0; kind < 3; ++kind) {
    Arrays& list = lists_[kind];
    const Arrays& from = rows.lists_[kind];
    const auto base = static_cast<int64_t>(list.start.size());
    for (size_t row = 0; row < from.begin.size(); ++row) {
      list.begin[static_cast<size_t>(index) + row] = base + from.begin[row];
      list.count[static_cast<size_t>(index) + row] = from.count[row];
    }
    if (from.has_rows) keep_rows(list);
    list.start.insert(list.start.end(), from.start.begin(), from.start.end());
    list.stop.insert(list.stop.end(), from.stop.begin(), from.stop.end());
    if (from.has_rows) {
      list.rows.insert(list.rows.end(), from.rows.begin(), from.rows.end());
    } else if (list.has_rows) {
      list.rows.resize(list.start.size() * static_cast<size_t>(words_), ~uint64_t{0});
    }
    list.last = -1;
  }
}

Lists Packer::finish(const std::vector<int32_t>& edge, const std::shared_ptr<Memory>& memory, PlanData& plan) const {
  Lists lists;
  lists.tile = tile_;
  if (!edge.empty()) lists.edge = own(edge.data(), {static_cast<int64_t>(edge.size())}, memory, plan);
  const std::array<RunList*, 3> out{&lists.whole, &lists.masked, &lists.picked};
  const bool is_empty = lists_[0].start.empty() && lists_[1].start.empty() && lists_[2].start.empty();
  for (size_t kind = 0; kind < 3; ++kind) {
    const Arrays& list = lists_[kind];
    // A direction without any run still says so: its `whole` list has counts of 0.
    if (list.start.empty() && !(is_empty && kind == 0)) continue;
    RunList& to = *out[kind];
    to.begin = own(list.begin.data(), {batch_, groups_, num_rows_}, memory, plan);
    to.count = own(list.count.data(), {batch_, groups_, num_rows_}, memory, plan);
    const int64_t capacity = static_cast<int64_t>(list.start.size());
    to.start = own(list.start.data(), {capacity}, memory, plan);
    if (list.has_rows) to.rows = own(list.rows.data(), {capacity, words_}, memory, plan);
    if (kind == static_cast<size_t>(Kind::picked)) continue;
    int grain = 0;
    for (size_t i = 0; i < list.start.size(); ++i) {
      if (!std::binary_search(ends_.begin(), ends_.end(), list.stop[i])) grain = std::gcd(grain, list.stop[i] - list.start[i]);
    }
    // Only runs that reach an end: their lengths say nothing, except when all are alike.
    if (grain == 0) grain = list.start.empty() ? 1 : std::max(1, list.stop[0] - list.start[0]);
    to.grain = grain;
    bool is_implied = true;
    for (size_t i = 0; i < list.start.size() && is_implied; ++i) {
      const int64_t end = *std::upper_bound(ends_.begin(), ends_.end(), static_cast<int64_t>(list.start[i]));
      is_implied = list.stop[i] == std::min<int64_t>(end, static_cast<int64_t>(list.start[i]) + grain);
    }
    if (!is_implied) to.stop = own(list.stop.data(), {capacity}, memory, plan);
  }
  return lists;
}

PlanData share(const Plan& plan) {
  PlanData data;
  data.seqlen_q = plan->seqlen_q;
  data.seqlen_k = plan->seqlen_k;
  data.dense_reads = plan->dense_reads;
  data.dense_reads_of_head = plan->dense_reads_of_head;
  data.batch = plan->batch;
  data.heads_q = plan->heads_q;
  data.by_query = plan->by_query;
  data.by_key = plan->by_key;
  data.is_by_key = plan->is_by_key;
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

}  // namespace tilewise::plan
