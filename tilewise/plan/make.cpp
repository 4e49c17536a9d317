// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/make.h"

#include <algorithm>
#include <array>

#include "tilewise/plan/builder.h"
#include "tilewise/plan/mask.h"
#include "tilewise/plan/rows.h"

TILEWISE_BEGIN_PUBLIC
namespace {

struct DenseRow {
  RowRuns runs;
  int64_t keys = 0;  // that the runs hold
};

// What queries of tokens [first, last] (as they count under bands) see together and each.
DenseRow dense_row(const Mask::Band& band, int64_t first, int64_t last, int64_t seqlen_k, int tile) {
  const auto clamp = [&](int64_t token) { return std::clamp<int64_t>(token, 0, seqlen_k); };
  const auto low = [&](int64_t token) { return band.left == Mask::kAll ? 0 : clamp(token - band.left); };
  const auto high = [&](int64_t token) { return band.right == Mask::kAll ? seqlen_k : clamp(token + band.right + 1); };
  const int64_t sink_any = std::min(clamp(band.sink), high(last)), sink_all = std::min(clamp(band.sink), high(first));
  std::array<int64_t, 7> cuts{0, sink_any, sink_all, low(first), low(last), high(first), high(last)};
  std::sort(cuts.begin(), cuts.end());

  DenseRow row;
  const auto append = [](std::vector<Run>& runs, int64_t start, int64_t stop) {
    if (start >= stop) return;
    if (!runs.empty() && runs.back().stop == start)
      runs.back().stop = static_cast<int32_t>(stop);
    else
      runs.push_back({static_cast<int32_t>(start), static_cast<int32_t>(stop), {}});
  };
  std::vector<Run> whole;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    const int64_t start = cuts[i], stop = cuts[i + 1];
    if (start == stop) continue;
    const bool is_all = start < sink_all || (start >= low(last) && start < high(first));
    const bool is_any = start < sink_any || (start >= low(first) && start < high(last));
    if (is_all)
      append(whole, start, stop);
    else if (is_any)
      append(row.runs.masked, start, stop);
    row.keys += is_any ? stop - start : 0;
  }
  for (const Run& run : whole) {
    const int64_t start = std::min<int64_t>((run.start + tile - 1) / tile * tile, run.stop);
    const int64_t stop = run.stop == seqlen_k ? seqlen_k : std::max<int64_t>(start, run.stop / tile * tile);
    append(row.runs.whole, start, stop);
    if (run.start < start) row.runs.masked.push_back({run.start, static_cast<int32_t>(start), {}});
    if (stop < run.stop) row.runs.masked.push_back({static_cast<int32_t>(stop), run.stop, {}});
  }
  return row;
}

}  // namespace

Plan make_plan(PlanData&& data) { return std::make_shared<const PlanData>(std::move(data)); }

Plan dense_plan(const DensePlanParams& params, const std::shared_ptr<Memory>& memory) {
  check(params.seqlen_q >= 0 && params.seqlen_k >= 0 && params.seqlen_q <= INT32_MAX && params.seqlen_k <= INT32_MAX, Error::Kind::value,
        "dense_plan: seqlen_q ", params.seqlen_q, " and seqlen_k ", params.seqlen_k, ", takes 0 to 2^31 - 1");
  check(params.tile >= 16 && params.tile <= 256, Error::Kind::value, "dense_plan: tile is ", params.tile, ", takes 16 to 256");
  check(params.batch >= 1 && params.heads_q >= 1, Error::Kind::value, "dense_plan: batch ", params.batch, " and heads_q ", params.heads_q,
        ", takes at least 1 each");
  check(!params.mask.bands.empty(), Error::Kind::unsupported, "dense_plan: takes a mask of bands; spans and grids are planned by a method");
  if (const auto fault = plan::mask_fault(params.mask, params.batch, params.heads_q, params.seqlen_q, params.seqlen_k)) {
    fail(Error::Kind::value, "dense_plan: ", *fault);
  }
  PlanData data;
  data.seqlen_q = params.seqlen_q;
  data.seqlen_k = params.seqlen_k;
  data.batch = params.batch;
  data.heads_q = params.heads_q;
  data.mask = params.mask;

  const int64_t shift = params.seqlen_k - params.seqlen_q;
  const int64_t rows = (params.seqlen_q + params.tile - 1) / params.tile;
  std::vector<int> first_head_of(16, -1);  // of each class
  bool is_one_class = true;
  for (int head = 0; head < params.heads_q; ++head)
    is_one_class = is_one_class && plan::head_class(data.mask, head) == plan::head_class(data.mask, 0);
  const int groups = is_one_class ? 1 : params.heads_q;
  ListsBuilder builder(params.tile, 1, groups, rows);
  std::vector<int64_t> reads_of(16, 0);
  for (int head = 0; head < params.heads_q; ++head) {
    const size_t index = static_cast<size_t>(plan::head_class(data.mask, head));
    for (int64_t row = 0; row < rows && first_head_of[index] < 0; ++row) {
      const int64_t first = row * params.tile, last = std::min<int64_t>(first + params.tile, params.seqlen_q);
      DenseRow runs = dense_row(data.mask.bands[index], first + shift, last - 1 + shift, params.seqlen_k, params.tile);
      reads_of[index] += runs.keys * (last - first);
      builder.set(0, is_one_class ? 0 : head, row, std::move(runs.runs));
    }
    data.dense_reads += reads_of[index] * params.batch;
    if (first_head_of[index] < 0) {
      first_head_of[index] = head;
    } else if (!is_one_class) {
      for (int64_t row = 0; row < rows; ++row) builder.share(0, head, row, 0, first_head_of[index], row);
    }
  }
  data.by_query = builder.build(memory, data);
  return make_plan(std::move(data));
}

TILEWISE_END_PUBLIC
