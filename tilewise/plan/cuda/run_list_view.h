// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/machine/cuda/block.h"

// A plan's lists as kernels read them. Without the types of base/, some of whose names kernels use for their own.
namespace tilewise::plan::cuda {

/// Runs of keys that rows read, device pointers. Row (b, h, t) reads runs [begin, begin + count) of start / stop.
struct RunListView {
  const int64_t* begin = nullptr;  // [begin_batch, begin_heads, T]; null: no row has a run here
  const int32_t* count = nullptr;  // [count_batch, count_heads, T]
  const int32_t* start = nullptr;
  const int32_t* stop = nullptr;   // null: start + grain, cut at the end of the keys
  const uint64_t* rows = nullptr;  // [capacity, words]; null: every query of the row reads the run
  int begin_batch = 1, begin_heads = 1, count_batch = 1, count_heads = 1;  // 1 or B; a divisor of Hq
  int grain = 1, words = 0;
};

/// The runs of one row.
struct RowView {
  const int32_t* start = nullptr;
  const int32_t* stop = nullptr;
  const uint64_t* rows = nullptr;
  int64_t begin = 0;
  int count = 0;
};

TILEWISE_DEVICE inline RowView row_of(const RunListView& list, int b, int head, int heads_q, int64_t num_rows, int64_t row) {
  RowView view;
  if (list.begin == nullptr) return view;
  const auto at = [&](int batch, int heads) {
    return (int64_t{batch == 1 ? 0 : b} * heads + static_cast<int64_t>(head) * heads / heads_q) * num_rows + row;
  };
  view.begin = list.begin[at(list.begin_batch, list.begin_heads)];
  view.count = list.count[at(list.count_batch, list.count_heads)];
  view.start = list.start + view.begin;
  if (list.stop != nullptr) view.stop = list.stop + view.begin;
  if (list.rows != nullptr) view.rows = list.rows + view.begin * list.words;
  return view;
}

}  // namespace tilewise::plan::cuda
