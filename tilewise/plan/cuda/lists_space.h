// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>

#include "tilewise/plan/plan.h"

// Where the lists that a kernel writes lie: sizes are known on the host, counts live on the device.
namespace tilewise::plan::cuda {

/// Parts of one piece of memory, taken one after another, each aligned as its type is; with a null base it only counts.
class MemoryParts {
 public:
  explicit MemoryParts(void* base) : base_(static_cast<std::byte*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    bytes_ = (bytes_ + alignof(T) - 1) / alignof(T) * alignof(T);
    T* const part = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += static_cast<size_t>(count) * sizeof(T);
    return part;
  }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* base_;
  size_t bytes_ = 0;
};

/// The whole and masked runs of one direction, and where there are some its picked ones.
struct ListsSpace {
  int tile = 128;
  int64_t batch = 1, groups = 1, rows = 0;
  int64_t whole = 0, masked = 0, picked = 0;  // runs that there is room for
  bool has_picked = false;
  bool has_rows = false;          // masked runs have `rows`
  bool has_edge = false;
};

/// The lists in the memory that `parts` gives out; nothing is written.
inline Lists place_lists(const ListsSpace& space, MemoryParts& parts, Device device) {
  Lists lists;
  lists.tile = space.tile;
  const auto view = [&]<class T>(T* data, const Shape& shape) { return TensorView(data, kDtypeOf<T>, shape, device); };
  const int64_t words = (space.tile + 63) / 64;
  // The widest first: then nothing is lost between them.
  if (space.has_rows) lists.masked.rows = view(parts.take<uint64_t>(space.masked * words), {space.masked, words});
  RunList* const all[] = {&lists.whole, &lists.masked, &lists.picked};
  const int64_t capacities[] = {space.whole, space.masked, space.picked};
  const int count = space.has_picked ? 3 : 2;
  for (int i = 0; i < count; ++i)
    all[i]->begin = view(parts.take<int64_t>(space.batch * space.groups * space.rows), {space.batch, space.groups, space.rows});
  for (int i = 0; i < count; ++i) {
    all[i]->count = view(parts.take<int32_t>(space.batch * space.groups * space.rows), {space.batch, space.groups, space.rows});
    all[i]->start = view(parts.take<int32_t>(capacities[i]), {capacities[i]});
    if (i < 2) all[i]->stop = view(parts.take<int32_t>(capacities[i]), {capacities[i]});  // picked runs are single slots
  }
  lists.status = view(parts.take<int32_t>(2), {2});
  if (space.has_edge) lists.edge = view(parts.take<int32_t>(space.rows + 1), {space.rows + 1});
  return lists;
}

inline size_t bytes_of(const ListsSpace& space) {
  MemoryParts parts(nullptr);
  place_lists(space, parts, {});
  return parts.bytes();
}

}  // namespace tilewise::plan::cuda
