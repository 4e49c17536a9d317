// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/exchange/bsr.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "tilewise/plan/complete.h"
#include "tilewise/plan/exchange/begin.h"
#include "tilewise/plan/groups.h"
#include "tilewise/plan/mask.h"
#include "tilewise/plan/mask_rule.h"
#include "tilewise/plan/pack.h"
#include "tilewise/plan/rows.h"

TILEWISE_BEGIN_PUBLIC

namespace {

using namespace tilewise::plan;

/// The block rows of one batch entry and head of a plan without orders and pools.
class BlockRows {
 public:
  BlockRows(const PlanData& data, int block_q, int block_k, bool has_mask, int64_t b, int head)
      : data_(data), block_q_(block_q), block_k_(block_k), has_mask_(has_mask), b_(b), head_(head), is_open_(is_full(data.mask, head)) {}

  void run(const Context& context) {
    const int64_t blocks = (data_.seqlen_k + block_k_ - 1) / block_k_;
    std::vector<int64_t> pairs(static_cast<size_t>(blocks), 0);
    for (int64_t first = 0; first < data_.seqlen_q; first += block_q_) {
      context.check_cancel();
      const int64_t last = std::min<int64_t>(first + block_q_, data_.seqlen_q);
      std::fill(pairs.begin(), pairs.end(), 0);
      for (int64_t query = first; query < last; ++query) {
        for_each_range(query, [&](int64_t start, int64_t stop) {
          for (int64_t j = start / block_k_; j * block_k_ < stop; ++j) {
            pairs[static_cast<size_t>(j)] += std::min<int64_t>(stop, (j + 1) * block_k_) - std::max(start, j * block_k_);
          }
        });
      }
      const size_t begin = indices.size();
      for (int64_t j = 0; j < blocks; ++j) {
        const int64_t read = pairs[static_cast<size_t>(j)];
        if (read == 0) continue;
        const int64_t keys = std::min<int64_t>(block_k_, data_.seqlen_k - j * block_k_);
        if (read != (last - first) * keys && !has_mask_) refuse(first, last, j, keys);
        indices.push_back(static_cast<int32_t>(j));
      }
      ends.push_back(static_cast<int64_t>(indices.size()));
      if (has_mask_) write_mask(first, last, begin);
    }
  }

  std::vector<int32_t> indices;
  std::vector<int64_t> ends;   // of each block row, in indices
  std::vector<uint8_t> masks;  // [indices, block_q, block_k]

 private:
  /// Calls body(start, stop) for the ranges of keys that the plan lets a query read; they are apart, not sorted.
  template <class Body>
  void for_each_range(int64_t query, const Body& body) const {
    const Lists& lists = data_.by_query;
    const int64_t row = row_of(query), slot = query - row_first(lists, row), shift = data_.seqlen_k - data_.seqlen_q;
    for (const RunList* list : {&lists.whole, &lists.masked, &lists.picked}) {
      const Runs runs = runs_of(*list, b_, head_, data_.heads_q, row);
      for (int i = 0; i < runs.count; ++i) {
        if (!reads(runs, i, slot)) continue;
        const int64_t start = runs.start[i], stop = run_stop(runs, i, list->grain, data_.seqlen_k);
        if (list != &lists.masked || is_open_) {
          body(start, stop);
        } else if (data_.mask.grids.empty()) {
          const VisibleKeys keys = visible_keys(data_.mask, head_, b_, query, shift, data_.seqlen_k);
          for (size_t part = 0; part < 2; ++part) {
            const int64_t low = std::max(start, keys.start[part]), high = std::min(stop, keys.stop[part]);
            if (low < high) body(low, high);
          }
        } else {
          for (int64_t key = start; key < stop; ++key) {
            if (allows(data_.mask, head_, b_, query, key, shift)) body(key, key + 1);
          }
        }
      }
    }
  }

  int64_t row_of(int64_t query) const {
    if (!data_.by_query.edge.has_value()) return query / data_.by_query.tile;
    const auto* edge = static_cast<const int32_t*>(data_.by_query.edge.raw());
    return std::upper_bound(edge, edge + data_.by_query.edge.dim(0), static_cast<int32_t>(query)) - edge - 1;
  }

  [[noreturn]] void refuse(int64_t first, int64_t last, int64_t j, int64_t keys) const {
    for (int64_t query = first; query < last; ++query) {
      int64_t read = 0;
      for_each_range(query, [&](int64_t start, int64_t stop) {
        read += std::max<int64_t>(0, std::min<int64_t>(stop, j * block_k_ + keys) - std::max(start, j * block_k_));
      });
      if (read == keys) continue;
      fail(Error::Kind::unsupported, "bsr_of_plan: query ", query, " of head ", head_, " reads ", read, " of the ", keys, " keys of block ", j,
           ", so blocks of ", block_q_, " x ", block_k_,
           " alone cannot say what the plan reads; take a smaller block, or write the blocks with a mask (has_mask)");
    }
    fail(Error::Kind::value, "bsr_of_plan: head ", head_, " reads a key of block ", j, " twice; validate() names the fault");
  }

  void write_mask(int64_t first, int64_t last, size_t begin) {
    const size_t size = static_cast<size_t>(block_q_) * static_cast<size_t>(block_k_);
    masks.resize(indices.size() * size, 0);
    for (int64_t query = first; query < last; ++query) {
      for_each_range(query, [&](int64_t start, int64_t stop) {
        for (int64_t key = start; key < stop; ++key) {
          const auto at = std::lower_bound(indices.begin() + static_cast<int64_t>(begin), indices.end(), static_cast<int32_t>(key / block_k_));
          masks[static_cast<size_t>(at - indices.begin()) * size + static_cast<size_t>((query - first) * block_k_ + key % block_k_)] = 1;
        }
      });
    }
  }

  const PlanData& data_;
  const int block_q_, block_k_;
  const bool has_mask_;
  const int64_t b_;
  const int head_;
  const bool is_open_;
};

void check_bsr(const PlanOfBsrParams& params) {
  const Bsr& bsr = params.bsr;
  const auto check_array = [](const char* name, const TensorView& view, Dtype dtype, int rank, const char* shape) {
    check(view.has_value() && view.rank() == rank, Error::Kind::shape, "plan_of_bsr: ", name, " is ", view.shape(), ", takes ", shape);
    check(view.dtype() == dtype, Error::Kind::dtype, "plan_of_bsr: ", name, " is ", view.dtype(), ", takes ", dtype);
    check(view.device().type == Device::Type::cpu, Error::Kind::device, "plan_of_bsr: ", name, " lies on ", view.device(),
          ", takes a tensor on the host");
  };
  check(bsr.block_q >= 1 && bsr.block_k >= 1, Error::Kind::value, "plan_of_bsr: block_q is ", bsr.block_q, " and block_k ", bsr.block_k,
        ", takes at least 1 each");
  check_array("indptr", bsr.indptr, Dtype::i32, 3, "[B|1, G|1, Tq + 1]");
  check_array("indices", bsr.indices, Dtype::i32, 1, "[nnz]");
  const int64_t rows = (bsr.seqlen_q + bsr.block_q - 1) / bsr.block_q, columns = (bsr.seqlen_k + bsr.block_k - 1) / bsr.block_k;
  const int64_t nnz = bsr.indices.dim(0);
  check((bsr.indptr.dim(0) == 1 || bsr.indptr.dim(0) == params.batch) && bsr.indptr.dim(1) >= 1 && params.heads_q % bsr.indptr.dim(1) == 0 &&
            bsr.indptr.dim(2) == rows + 1,
        Error::Kind::shape, "plan_of_bsr: indptr is ", bsr.indptr.shape(), ", takes [1 or ", params.batch, ", a divisor of ", params.heads_q, ", ",
        rows + 1, "] for ", bsr.seqlen_q, " queries in blocks of ", bsr.block_q);
  if (bsr.mask.has_value()) {
    check_array("mask", bsr.mask, Dtype::boolean, 3, "[nnz, block_q, block_k]");
    check(bsr.mask.dim(0) == nnz && bsr.mask.dim(1) == bsr.block_q && bsr.mask.dim(2) == bsr.block_k, Error::Kind::shape, "plan_of_bsr: mask is ",
          bsr.mask.shape(), ", takes [", nnz, ", ", bsr.block_q, ", ", bsr.block_k, "]");
  }
  for (int64_t b = 0; b < bsr.indptr.dim(0); ++b) {
    for (int64_t g = 0; g < bsr.indptr.dim(1); ++g) {
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t begin = bsr.indptr.at<int32_t>(b, g, row), end = bsr.indptr.at<int32_t>(b, g, row + 1);
        check(begin >= 0 && begin <= end && end <= nnz, Error::Kind::value, "plan_of_bsr: indptr of block row ", row, " is [", begin, ", ", end,
              "), takes an ascending range within the ", nnz, " indices");
        int64_t before = -1;
        for (int64_t i = begin; i < end; ++i) {
          const int64_t j = bsr.indices.at<int32_t>(i);
          check(j > before && j < columns, Error::Kind::value, "plan_of_bsr: indices[", i, "] of block row ", row, " is ", j, ", takes ", before + 1,
                " to ", columns - 1, "; they ascend within a row");
          before = j;
        }
      }
    }
  }
}

/// The rows of a plan that block rows make.
class RowsOfBlocks {
 public:
  RowsOfBlocks(const PlanData& data, const Bsr& bsr, int64_t b, int head) : data_(data), bsr_(bsr), b_(b), head_(head) {}

  PackedRow row(int64_t first, int64_t last) {
    cells_.clear();
    for (int64_t block = first / bsr_.block_q; block * bsr_.block_q < last; ++block) {
      const int64_t from = std::max(first, block * bsr_.block_q), to = std::min<int64_t>(last, (block + 1) * bsr_.block_q);
      const int64_t be = batch_index(bsr_.indptr, b_), g = group_index(bsr_.indptr, head_, data_.heads_q);
      for (int64_t i = bsr_.indptr.at<int32_t>(be, g, block); i < bsr_.indptr.at<int32_t>(be, g, block + 1); ++i) {
        add_block(first, from, to, block, i);
      }
    }
    std::sort(cells_.begin(), cells_.end(), [](const PackedRun& x, const PackedRun& y) { return x.start < y.start; });
    PackedRow made;
    const RowBits full = bits_between(0, last - first);
    for (size_t i = 0; i < cells_.size();) {
      PackedRun run = cells_[i++];
      for (; i < cells_.size() && cells_[i].start == run.start; ++i) {
        for (size_t word = 0; word < kMaxWords; ++word) run.bits[word] |= cells_[i].bits[word];
      }
      const bool is_whole = run.bits == full && sees_all(data_, b_, head_, first, last, run.start, run.stop);
      made.list(is_whole ? Kind::whole : Kind::masked).push_back(run);
    }
    return made;
  }

 private:
  /// The part of block i of block row `block` that queries [from, to) read, in a row that begins at `first`.
  void add_block(int64_t first, int64_t from, int64_t to, int64_t block, int64_t i) {
    const int64_t j = bsr_.indices.at<int32_t>(i), start = j * bsr_.block_k, stop = std::min<int64_t>(start + bsr_.block_k, data_.seqlen_k);
    if (!bsr_.mask.has_value()) {
      cells_.push_back({static_cast<int32_t>(start), static_cast<int32_t>(stop), bits_between(from - first, to - first)});
      return;
    }
    for (int64_t key = start; key < stop; ++key) {
      RowBits bits{};
      for (int64_t query = from; query < to; ++query) {
        if (bsr_.mask.at<uint8_t>(i, query - block * bsr_.block_q, key - start) == 0) continue;
        check(sees(data_, b_, head_, query, key), Error::Kind::value, "plan_of_bsr: bsr.mask lets query ", query, " of head ", head_, " read key ",
              key, ", which mask forbids");
        bits[static_cast<size_t>((query - first) / 64)] |= uint64_t{1} << ((query - first) % 64);
      }
      if (bits != RowBits{}) cells_.push_back({static_cast<int32_t>(key), static_cast<int32_t>(key + 1), bits});
    }
  }

  const PlanData& data_;
  const Bsr& bsr_;
  const int64_t b_;
  const int head_;
  std::vector<PackedRun> cells_;
};

}  // namespace

OwnedBsr bsr_of_plan(const BsrOfPlanParams& params, Context& context) {
  check(params.plan != nullptr, Error::Kind::value, "bsr_of_plan: the plan is null; make one with a method or load one");
  for (const auto& [order, name] : {std::pair{&params.plan->order_q, "order_q"}, std::pair{&params.plan->order_k, "order_k"}}) {
    check(!order->token.has_value(), Error::Kind::unsupported, "bsr_of_plan: the plan has ", name,
          ", so its runs are no blocks of tokens; to_bits() writes its pairs");
  }
  check(params.plan->pools.empty(), Error::Kind::unsupported,
        "bsr_of_plan: the plan has pools, whose keys no block of tokens holds; "
        "to_bits(plan, true) writes the tokens that they stand for");
  const Plan plan = params.plan->by_query.has_runs() ? params.plan : complete(params.plan, context);
  const PlanData& data = *plan;
  const int block_q = params.block_q == 0 ? data.by_query.tile : params.block_q, block_k = params.block_k == 0 ? data.by_query.tile : params.block_k;
  check(block_q >= 1 && block_k >= 1, Error::Kind::value, "bsr_of_plan: block_q is ", block_q, " and block_k ", block_k, ", takes at least 1 each");

  std::vector<TensorView> views;
  for (const RunList* list : {&data.by_query.whole, &data.by_query.masked, &data.by_query.picked}) {
    views.push_back(list->begin);
    views.push_back(list->count);
  }
  Groups groups = common_groups(views, data.heads_q);
  if (differs_by_head(data.mask)) groups.groups = data.heads_q;
  if (differs_by_batch(data.mask)) groups.batch = data.batch;
  std::vector<BlockRows> parts;
  for (int64_t item = 0; item < groups.total(); ++item) {
    parts.emplace_back(data, block_q, block_k, params.has_mask, item / groups.groups,
                       first_head(static_cast<int>(item % groups.groups), groups.groups, data.heads_q));
  }
  context.parallel_for(groups.total(), [&](int64_t item, int) { parts[static_cast<size_t>(item)].run(context); });

  int64_t nnz = 0;
  for (const BlockRows& part : parts) nnz += static_cast<int64_t>(part.indices.size());
  check(nnz <= INT32_MAX, Error::Kind::unsupported, "bsr_of_plan: the plan takes ", nnz, " blocks of ", block_q, " x ", block_k,
        ", indptr counts up to 2^31 - 1; take a larger block");
  const int64_t rows = (data.seqlen_q + block_q - 1) / block_q;
  OwnedBsr made;
  made.indptr = Tensor(context.memory, Dtype::i32, {groups.batch, groups.groups, rows + 1});
  made.indices = Tensor(context.memory, Dtype::i32, {nnz});
  if (params.has_mask) made.mask = Tensor(context.memory, Dtype::boolean, {nnz, block_q, block_k});
  auto* indptr = made.indptr.view.data<int32_t>();
  auto* indices = made.indices.view.data<int32_t>();
  auto* mask = static_cast<bool*>(made.mask.view.raw());
  int64_t at = 0;
  for (const BlockRows& part : parts) {
    *indptr++ = static_cast<int32_t>(at);
    for (const int64_t end : part.ends) *indptr++ = static_cast<int32_t>(at + end);
    indices = std::copy(part.indices.begin(), part.indices.end(), indices);
    for (const uint8_t bit : part.masks) *mask++ = bit != 0;
    at += static_cast<int64_t>(part.indices.size());
  }
  made.bsr = {data.seqlen_q, data.seqlen_k, block_q, block_k, made.indptr.view, made.indices.view, made.mask.view};
  return made;
}

Plan plan_of_bsr(const PlanOfBsrParams& params, Context& context) {
  const Bsr& bsr = params.bsr;
  const int tile = params.tile != 0 ? params.tile : bsr.block_q >= 16 && bsr.block_q <= 256 ? bsr.block_q : 128;
  PlanData data = begin_plan("plan_of_bsr", {bsr.seqlen_q, bsr.seqlen_k, params.batch, params.heads_q, tile}, params.mask, context.memory);
  check_bsr(params);
  const int64_t entries = std::max(bsr.indptr.dim(0), differs_by_batch(data.mask) ? params.batch : int64_t{1});
  const auto groups = differs_by_head(data.mask) ? params.heads_q : static_cast<int>(bsr.indptr.dim(1));
  const int64_t rows = num_rows(data.by_query, data.seqlen_q);
  const std::vector<int64_t> ends = part_ends(data, Direction::by_query);
  std::vector<Packer> parts(static_cast<size_t>(entries * groups), Packer(tile, 1, 1, rows, ends));
  context.parallel_for(entries * groups, [&](int64_t item, int) {
    RowsOfBlocks maker(data, bsr, item / groups, first_head(static_cast<int>(item % groups), groups, params.heads_q));
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t first = row_first(data.by_query, row), last = row_last(data.by_query, row, data.seqlen_q);
      PackedRow made = maker.row(first, last);
      parts[static_cast<size_t>(item)].add(row, last - first, made);
    }
  });
  Packer packer(tile, entries, groups, rows, ends);
  for (size_t item = 0; item < parts.size(); ++item) packer.append(static_cast<int64_t>(item) * rows, parts[item]);
  data.by_query = packer.finish({}, context.memory, data);
  return std::make_shared<const PlanData>(std::move(data));
}

TILEWISE_END_PUBLIC
