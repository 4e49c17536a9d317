// SPDX-License-Identifier: Apache-2.0
#include "tilewise/cache/rows.h"

#include <cstring>

namespace tilewise::cache {
namespace {

template <class From, class To>
void convert(const void* from, int64_t size, void* to) {
  for (int64_t i = 0; i < size; ++i) static_cast<To*>(to)[i] = To(static_cast<float>(static_cast<const From*>(from)[i]));
}

std::byte* row_of(const TensorView& view, int64_t head, int64_t token) {
  return static_cast<std::byte*>(view.raw()) + view.offset(0, head, token) * static_cast<int64_t>(size_of(view.dtype()));
}

}  // namespace

void copy_row(const TensorView& from, int64_t from_head, int64_t from_token, const TensorView& to, int64_t to_head, int64_t to_token) {
  const std::byte* const source = row_of(from, from_head, from_token);
  std::byte* const target = row_of(to, to_head, to_token);
  const int64_t size = to.dim(3);
  if (from.dtype() == to.dtype()) {
    std::memcpy(target, source, static_cast<size_t>(size) * size_of(to.dtype()));
  } else if (from.dtype() == Dtype::bf16) {
    convert<bf16, float>(source, size, target);
  } else if (from.dtype() == Dtype::f16) {
    convert<f16, float>(source, size, target);
  } else if (to.dtype() == Dtype::bf16) {
    convert<float, bf16>(source, size, target);
  } else {
    convert<float, f16>(source, size, target);
  }
}

}  // namespace tilewise::cache
