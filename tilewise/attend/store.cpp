// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/store.h"

#include <algorithm>
#include <string>

namespace tilewise::attend {
namespace {

using Kind = Error::Kind;

constexpr const char* kLayout = "[B, Hkv, capacity, D]";
constexpr const char* kLayoutPool = "[pages of the pool, Hkv or 1, page, D]";

int64_t groups(int64_t size, int group) { return (size + group - 1) / group; }

void check_scales(const Checker& c, const std::string& name, const TensorView& scale, const Store& store) {
  c.is_there(name.c_str(), scale, "[entries or 1, heads or 1, groups of tokens, groups of channels] f32");
  c.has_dtype(name.c_str(), scale, Dtype::f32, "always");
  c.has_rank(name.c_str(), scale, 4, "[entries or 1, heads or 1, groups of tokens, groups of channels]");
  const int64_t tokens = groups(store.data.dim(2), store.group.tokens), channels = groups(store.channels, store.group.channels);
  c.require((scale.dim(0) == 1 || scale.dim(0) == store.data.dim(0)) && (scale.dim(1) == 1 || scale.dim(1) == store.data.dim(1)) &&
                scale.dim(2) == tokens && scale.dim(3) == channels,
            Kind::shape, name, " has shape ", scale.shape(), ", takes [1 or ", store.data.dim(0), ", 1 or ", store.data.dim(1), ", ", tokens, ", ",
            channels, "]: groups of ", store.group.tokens, " tokens and ", store.group.channels, " channels of ", store.data.shape());
  c.is_usable(name.c_str(), scale);
}

// What tensors and pools have in common.
void check_data(const Checker& c, const std::string& name, const TensorView& data, const char* layout, Dtype dtype, Store& store) {
  c.is_there(name.c_str(), data, layout);
  c.has_rank(name.c_str(), data, 4, layout);
  c.has_dtype(name.c_str(), data, dtype, "as q, or give it as Quantised");
  c.require(data.dim(3) >= 1, Kind::shape, name, " has 0 channels: ", data.shape(), "; takes 1 or more");
  c.require(data.dim(1) >= 1, Kind::shape, name, " has no head: ", data.shape(), "; takes 1 or more");
  c.is_usable(name.c_str(), data);
  store.data = data;
  store.channels = data.dim(3);
}

void check_quantised(const Checker& c, const std::string& name, const Quantised& q, const char* layout, Store& store) {
  const std::string data = name + ".data";
  c.is_there(data.c_str(), q.data, layout);
  c.require(q.data.dtype() == Dtype::i8 || q.data.dtype() == Dtype::u8, Kind::dtype, data, " is ", q.data.dtype(),
            ", takes i8, or u8 of two INT4 codes each");
  check_data(c, data, q.data, layout, q.data.dtype(), store);
  store.is_quantised = true;
  store.is_int4 = q.is_int4();
  store.channels = q.channels();
  c.require(q.group.tokens >= 0 && q.group.channels >= 0, Kind::value, name, ".group is ", q.group.tokens, " tokens, ", q.group.channels,
            " channels, takes 1 or more of each, or 0 for all");
  store.group.tokens = q.group.tokens == 0 ? static_cast<int>(std::max<int64_t>(1, q.data.dim(2))) : q.group.tokens;
  store.group.channels = q.group.channels == 0 ? static_cast<int>(store.channels) : q.group.channels;
  store.scale = q.scale;
  store.zero = q.zero;
  check_scales(c, name + ".scale", q.scale, store);
  if (q.zero.has_value()) check_scales(c, name + ".zero", q.zero, store);
}

void check_table(const Checker& c, const std::string& name, const Paged& paged, int64_t batch, Store& store) {
  const std::string table = name + ".table";
  c.is_there(table.c_str(), paged.table, "[B, Hkv or 1, pages] i32");
  c.has_rank(table.c_str(), paged.table, 3, "[B, Hkv or 1, pages]");
  c.has_dtype(table.c_str(), paged.table, Dtype::i32, "always");
  c.is_usable(table.c_str(), paged.table);
  c.require(paged.table.dim(0) == batch, Kind::shape, table, " has shape ", paged.table.shape(), ", takes B ", batch, " in its first axis, as q");
  const int64_t of_pool = store.data.dim(1), of_table = paged.table.dim(1);
  c.require(of_table >= 1 && (of_pool == 1 || of_table == 1 || of_pool == of_table), Kind::shape, table, " has ", of_table, " heads and the pool ",
            of_pool, "; takes 1 of either, or as many");
  c.require(store.page() >= 1, Kind::shape, name, ".pool has pages of ", store.page(), " tokens: ", store.data.shape(), "; takes 1 or more");
  store.table = paged.table;
  store.heads = std::max(of_pool, of_table);
  store.capacity = paged.table.dim(2) * store.page();
}

}  // namespace

Store check_store(const Checker& c, const char* name, const Operand& operand, Dtype dtype, int64_t batch) {
  Store store;
  if (const Paged* const paged = std::get_if<Paged>(&operand)) {
    const std::string pool = std::string(name) + ".pool";
    if (const Quantised* const quantised = std::get_if<Quantised>(&paged->pool)) {
      check_quantised(c, pool, *quantised, kLayoutPool, store);
    } else {
      check_data(c, pool, std::get<TensorView>(paged->pool), kLayoutPool, dtype, store);
    }
    check_table(c, name, *paged, batch, store);
    return store;
  }
  if (const Quantised* const quantised = std::get_if<Quantised>(&operand)) {
    check_quantised(c, name, *quantised, kLayout, store);
  } else {
    check_data(c, name, std::get<TensorView>(operand), kLayout, dtype, store);
  }
  c.require(store.data.dim(0) == batch, Kind::shape, "q and ", name, " differ in batch: q has ", batch, ", ", name, " ", store.data.shape(),
            "; give both the same B");
  store.heads = store.data.dim(1);
  store.capacity = store.data.dim(2);
  return store;
}

}  // namespace tilewise::attend
