// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/exchange/bits.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "tilewise/plan/exchange/begin.h"
#include "tilewise/plan/mask.h"
#include "tilewise/plan/pack.h"
#include "tilewise/plan/rows.h"

TILEWISE_BEGIN_PUBLIC

namespace {

using namespace tilewise::plan;

/// One row of one batch entry and head: keys that its slots read alike are one run.
PackedRow row_of_bits(const PlanData& data, const TensorView& bits, int64_t b, int head, int64_t first, int64_t last) {
  PackedRow row;
  const RowBits full = bits_between(0, last - first);
  const int64_t be = batch_index(bits, b), g = group_index(bits, head, data.heads_q), shift = data.seqlen_k - data.seqlen_q;
  const bool is_open = is_full(data.mask, head);
  for (int64_t key = 0; key < data.seqlen_k; ++key) {
    RowBits read{}, seen{};
    for (int64_t slot = 0; slot < last - first; ++slot) {
      const uint64_t bit = uint64_t{1} << (slot % 64);
      const bool is_read = bits.at<uint8_t>(be, g, first + slot, key) != 0, is_seen = is_open || allows(data.mask, head, b, first + slot, key, shift);
      check(is_seen || !is_read, Error::Kind::value, "plan_of_bits: bits let query ", first + slot, " of head ", head, " read key ", key,
            ", which mask forbids; pass the mask under which they were made, or Mask::full()");
      if (is_read) read[static_cast<size_t>(slot / 64)] |= bit;
      if (is_seen) seen[static_cast<size_t>(slot / 64)] |= bit;
    }
    if (read == RowBits{}) continue;
    const auto at = static_cast<int32_t>(key);
    row.list(read == full ? Kind::whole : Kind::masked).push_back({at, at + 1, read == seen ? full : read});
  }
  return row;
}

}  // namespace

Plan plan_of_bits(const PlanOfBitsParams& params, Context& context) {
  const TensorView& bits = params.bits;
  check(bits.has_value() && bits.rank() == 4, Error::Kind::shape, "plan_of_bits: bits is ", bits.shape(), ", takes [B|1, Hq|1, Sq, Sk]");
  check(bits.dtype() == Dtype::boolean, Error::Kind::dtype, "plan_of_bits: bits is ", bits.dtype(), ", takes bool");
  check(bits.device().type == Device::Type::cpu, Error::Kind::device, "plan_of_bits: bits lies on ", bits.device(), ", takes a tensor on the host");
  const int64_t batch = params.batch == 0 ? bits.dim(0) : params.batch;
  const int64_t heads = params.heads_q == 0 ? bits.dim(1) : params.heads_q;
  check((bits.dim(0) == 1 || bits.dim(0) == batch) && (bits.dim(1) == 1 || bits.dim(1) == heads), Error::Kind::shape, "plan_of_bits: bits is ",
        bits.shape(), ", takes [1 or ", batch, ", 1 or ", heads, ", Sq, Sk] for batch ", batch, " and heads_q ", heads);
  PlanData data = begin_plan("plan_of_bits", {bits.dim(2), bits.dim(3), batch, heads, params.tile}, params.mask, context.memory);

  // Lists are shared as far as neither bits nor mask differ.
  const int64_t entries = std::max(bits.dim(0), differs_by_batch(data.mask) ? batch : int64_t{1});
  const auto groups = static_cast<int>(bits.dim(1) > 1 || differs_by_head(data.mask) ? heads : 1);
  const int64_t rows = num_rows(data.by_query, data.seqlen_q);
  const std::vector<int64_t> ends = part_ends(data, Direction::by_query);
  std::vector<Packer> parts(static_cast<size_t>(entries * groups), Packer(params.tile, 1, 1, rows, ends));
  context.parallel_for(entries * groups, [&](int64_t item, int) {
    for (int64_t row = 0; row < rows; ++row) {
      if (row % 16 == 0) context.check_cancel();
      const int64_t first = row_first(data.by_query, row), last = row_last(data.by_query, row, data.seqlen_q);
      PackedRow made = row_of_bits(data, bits, item / groups, static_cast<int>(item % groups), first, last);
      parts[static_cast<size_t>(item)].add(row, last - first, made);
    }
  });
  Packer packer(params.tile, entries, groups, rows, ends);
  for (size_t item = 0; item < parts.size(); ++item) packer.append(static_cast<int64_t>(item) * rows, parts[item]);
  data.by_query = packer.finish({}, context.memory, data);
  return std::make_shared<const PlanData>(std::move(data));
}

TILEWISE_END_PUBLIC
