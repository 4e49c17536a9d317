// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "tilewise/plan/rows.h"

// How plans that kernels made are held against the host's, on the CPU and on a GPU.
namespace tilewise::testing {

struct FlatRun {
  int64_t start = 0, stop = 0;
  std::array<uint64_t, 4> bits{};  // of the row's slots, no others
  bool operator==(const FlatRun&) const = default;
};

/// The runs of one row of one list.
inline std::vector<FlatRun> flat_runs(const PlanData& plan, const Lists& lists, const RunList& list, bool is_by_key, int64_t b, int head,
                                      int64_t row) {
  const int64_t slots = is_by_key ? plan::slots_k_with_pools(plan) : plan::slots_q(plan);
  const int64_t length = plan::row_last(lists, row, slots) - plan::row_first(lists, row);
  const plan::Runs runs = plan::runs_of(list, b, head, plan.heads_q, row);
  std::vector<FlatRun> flat(static_cast<size_t>(runs.count));
  for (int i = 0; i < runs.count; ++i) {
    const int64_t end = is_by_key ? plan::slots_q(plan) : plan::part_end(plan, runs.start[i]);
    FlatRun& run = flat[static_cast<size_t>(i)];
    run.start = runs.start[i];
    run.stop = plan::run_stop(runs, i, list.grain, end);
    for (int64_t slot = 0; slot < length; ++slot) {
      if (plan::reads(runs, i, slot)) run.bits[static_cast<size_t>(slot / 64)] |= uint64_t{1} << (slot % 64);
    }
  }
  return flat;
}

/// Where two plans differ in one direction, run for run; empty: nowhere. Whether rows share a list is not looked at.
inline std::string difference(const PlanData& got, const PlanData& want, bool is_by_key) {
  const Lists &a = is_by_key ? got.by_key : got.by_query, &b = is_by_key ? want.by_key : want.by_query;
  const int64_t slots = is_by_key ? plan::slots_k_with_pools(want) : plan::slots_q(want);
  std::ostringstream text;
  if (a.tile != b.tile || plan::num_rows(a, slots) != plan::num_rows(b, slots)) {
    text << "tile " << a.tile << " and " << b.tile << ", rows " << plan::num_rows(a, slots) << " and " << plan::num_rows(b, slots);
    return text.str();
  }
  const std::array<const RunList*, 3> lists_a{&a.whole, &a.masked, &a.picked}, lists_b{&b.whole, &b.masked, &b.picked};
  for (int64_t batch = 0; batch < want.batch; ++batch) {
    for (int head = 0; head < want.heads_q; ++head) {
      for (int64_t row = 0; row < plan::num_rows(b, slots); ++row) {
        if (plan::row_first(a, row) != plan::row_first(b, row) || plan::row_last(a, row, slots) != plan::row_last(b, row, slots)) {
          text << "row " << row << " begins or ends elsewhere";
          return text.str();
        }
        for (size_t list = 0; list < 3; ++list) {
          const auto runs_a = flat_runs(got, a, *lists_a[list], is_by_key, batch, head, row);
          const auto runs_b = flat_runs(want, b, *lists_b[list], is_by_key, batch, head, row);
          if (runs_a == runs_b) continue;
          text << "list " << list << " row " << row << " of head " << head << ", batch " << batch << ":";
          for (const auto* runs : {&runs_a, &runs_b}) {
            text << (runs == &runs_a ? " got" : " want");
            for (const FlatRun& run : *runs) text << " [" << run.start << ", " << run.stop << ") " << std::hex << run.bits[0] << std::dec;
          }
          return text.str();
        }
      }
    }
  }
  return {};
}

/// Runs that the lists of a direction hold, shared ones counted for every row that reads them.
inline std::array<int64_t, 2> runs_in(const PlanData& plan, const Lists& lists) {
  std::array<int64_t, 2> total{};
  for (size_t list = 0; list < 2; ++list) {
    const RunList& of = list == 0 ? lists.whole : lists.masked;
    if (!of.has_runs()) continue;
    // count may be of fewer entries than begin; a host plan's are equal.
    for (int64_t b = 0; b < of.count.dim(0); ++b) {
      for (int64_t g = 0; g < of.count.dim(1); ++g) {
        for (int64_t row = 0; row < of.count.dim(2); ++row) total[list] += of.count.at<int32_t>(b, g, row);
      }
    }
  }
  static_cast<void>(plan);
  return total;
}

/// Memory of exactly so many bytes between guards.
class Guarded {
 public:
  explicit Guarded(size_t bytes) : bytes_(bytes), words_(new uint64_t[kGuard * 2 + (bytes + 7) / 8]) {
    std::memset(words_.get(), 0xa5, (kGuard * 2 + (bytes + 7) / 8) * 8);
  }
  void* data() const { return words_.get() + kGuard; }
  size_t bytes() const { return bytes_; }
  bool is_intact() const {
    const auto* const all = reinterpret_cast<const unsigned char*>(words_.get());
    const size_t end = (kGuard * 2 + (bytes_ + 7) / 8) * 8;
    for (size_t i = 0; i < end; ++i) {
      if (i >= kGuard * 8 && i < kGuard * 8 + bytes_) continue;
      if (all[i] != 0xa5) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 64;
  size_t bytes_;
  std::unique_ptr<uint64_t[]> words_;
};

}  // namespace tilewise::testing
