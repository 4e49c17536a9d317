// SPDX-License-Identifier: Apache-2.0
#include "tilewise/cache/contiguous.h"

#include "tilewise/base/error.h"
#include "tilewise/cache/rows.h"

TILEWISE_BEGIN_PUBLIC

KvCache::KvCache(int num_layers, int heads_kv, int64_t capacity, int head_dim, const std::shared_ptr<Memory>& memory, Dtype dtype, Device device)
    : heads_kv_(heads_kv), head_dim_(head_dim), capacity_(capacity) {
  check(num_layers >= 1 && heads_kv >= 1 && head_dim >= 1 && capacity >= 0, Error::Kind::value,
        "KvCache: layers, heads and head_dim must be at least 1 and the capacity at least 0, got ", num_layers, ", ", heads_kv, ", ", head_dim, ", ",
        capacity);
  check(dtype == Dtype::f32 || dtype == Dtype::bf16 || dtype == Dtype::f16, Error::Kind::dtype, "KvCache: keeps f32, bf16 or f16, got ", dtype);
  for (int layer = 0; layer < num_layers; ++layer) {
    for (std::vector<Tensor>* tensors : {&k_, &v_}) {
      TensorView& view = tensors->emplace_back(memory, dtype, Shape{1, heads_kv, capacity, head_dim}).view;
      view = TensorView(view.raw(), view.dtype(), view.shape(), device);
    }
  }
}

TensorView KvCache::part(const std::vector<Tensor>& tensors, int layer, int64_t tokens) const {
  check(layer >= 0 && layer < num_layers(), Error::Kind::value, "KvCache: layer ", layer, " is not in [0, ", num_layers(), ")");
  check(tokens >= 0 && tokens <= capacity_, Error::Kind::value, "KvCache: ", tokens, " tokens asked for, the capacity is ", capacity_);
  return tensors[static_cast<size_t>(layer)].view.slice(2, 0, tokens);
}

void KvCache::write(int layer, int64_t first, const TensorView& k, const TensorView& v) {
  check(k.rank() == 4 && k.dim(0) == 1 && k.dim(1) == heads_kv_ && k.dim(3) == head_dim_ && v.shape() == k.shape(), Error::Kind::shape,
        "KvCache::write: k and v must be [1, ", heads_kv_, ", n, ", head_dim_, "], got ", k.shape(), " and ", v.shape());
  check(k.dtype() == v.dtype() && (k.dtype() == Dtype::f32 || k.dtype() == dtype()), Error::Kind::dtype,
        "KvCache::write: k and v must both be f32 or the cache's ", dtype(), ", got ", k.dtype(), " and ", v.dtype());
  for (const Device where : {device(), k.device(), v.device()}) {
    check(where.type == Device::Type::cpu, Error::Kind::device, "KvCache::write: copies on the CPU, got a cache or tensors on ", where,
          "; write to k() and v() there");
  }
  check(k.stride(3) == 1 && v.stride(3) == 1, Error::Kind::shape, "KvCache::write: the last axis of k and v must be contiguous");
  const int64_t tokens = k.dim(2);
  check(first >= length_, Error::Kind::value, "KvCache::write: place ", first, " is filled up to ", length_, "; truncate first");
  check(tokens <= capacity_ && first <= capacity_ - tokens, Error::Kind::value, "KvCache::write: tokens [", first, ", ", first + tokens,
        ") are over the capacity ", capacity_);
  const TensorView to_k = part(k_, layer, capacity_), to_v = part(v_, layer, capacity_);
  for (int h = 0; h < heads_kv_; ++h) {
    for (int64_t t = 0; t < tokens; ++t) {
      cache::copy_row(k, h, t, to_k, h, first + t);
      cache::copy_row(v, h, t, to_v, h, first + t);
    }
  }
}

void KvCache::advance(int64_t tokens) {
  check(tokens >= 0 && tokens <= capacity_ - length_, Error::Kind::value, "KvCache::advance: ", length_, " + ", tokens, " tokens, the capacity is ",
        capacity_);
  length_ += tokens;
}

void KvCache::truncate(int64_t length) {
  check(length >= 0 && length <= length_, Error::Kind::value, "KvCache::truncate: to ", length, " tokens, the cache holds ", length_);
  length_ = length;
}

TILEWISE_END_PUBLIC
