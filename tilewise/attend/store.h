// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/attend/checker.h"
#include "tilewise/base/operand.h"

// One shape for every way to store keys or values: what decode reads.
namespace tilewise::attend {

/// An operand that has passed its checks.
struct Store {
  TensorView data;         // [entries, heads|1, rows, D]: entries are sequences, or the pages of a pool; INT4: [.., D / 2]
  TensorView scale, zero;  // where is_quantised; `zero` may be absent
  Quantised::Group group;  // tokens and channels that share a scale, both at least 1
  TensorView table;        // pages; absent: entries are sequences
  bool is_quantised = false, is_int4 = false;
  int64_t heads = 0;       // 0: no operand
  int64_t capacity = 0;    // tokens of a sequence
  int64_t channels = 0;

  bool has_value() const { return heads > 0; }
  int64_t page() const { return data.dim(2); }
};

/// Where a token's row lies: data[entry, head, row].
struct Place {
  int64_t entry, head, row;
};

/// `entry` is -1 where the token's page is not stored.
inline Place place_of(const Store& store, int64_t b, int64_t head, int64_t token) {
  if (!store.table.has_value()) return {b, store.heads == 1 ? 0 : head, token};
  const TensorView& table = store.table;
  const int64_t page = token / store.page();
  return {table.at<int32_t>(b, table.dim(1) == 1 ? 0 : head, page), store.data.dim(1) == 1 ? 0 : head, token - page * store.page()};
}

/// The entry of scale or zero for a place and a channel.
inline int64_t scale_offset(const Store& store, const TensorView& scale, const Place& place, int64_t channel) {
  return scale.offset(scale.dim(0) == 1 ? 0 : place.entry, scale.dim(1) == 1 ? 0 : place.head, place.row / store.group.tokens,
                      channel / store.group.channels);
}

/// The integer of a quantised element.
inline int code_at(const Store& store, const Place& place, int64_t channel) {
  if (!store.is_int4) return store.data.at<int8_t>(place.entry, place.head, place.row, channel);
  const int byte = store.data.at<uint8_t>(place.entry, place.head, place.row, channel / 2);
  return (channel % 2 == 0 ? byte & 15 : byte >> 4) - 8;
}

/// Checks everything of an operand that does not need the other arguments. `dtype`: what plain data must be.
/// Errors: shape, dtype, device, value.
Store check_store(const Checker& c, const char* name, const Operand& operand, Dtype dtype, int64_t batch);

}  // namespace tilewise::attend
