// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "tilewise/base/memory.h"

TILEWISE_BEGIN_PUBLIC

/// K and V (K after rotary) of every layer for the tokens read so far: per layer [Hkv, capacity, D], one token of all layers at a time.
/// A layer's tokens are written behind `length()` first; `advance` makes them part of the cache once every layer has them, so a pass
/// that fails on the way leaves the cache as it was.
class TILEWISE_API KvCache {
 public:
  /// Keeps f32, bf16 or f16, where `memory` lies: its views are on `device`. Errors: value (a size below 1, capacity below 0), dtype (another one), memory.
  KvCache(int num_layers, int heads_kv, int64_t capacity, int head_dim, const std::shared_ptr<Memory>& memory, Dtype dtype = Dtype::f32,
          Device device = {});

  int num_layers() const { return static_cast<int>(k_.size()); }
  int heads_kv() const { return heads_kv_; }
  int head_dim() const { return head_dim_; }
  int64_t capacity() const { return capacity_; }
  int64_t length() const { return length_; }
  Dtype dtype() const { return k_[0].view.dtype(); }
  Device device() const { return k_[0].view.device(); }

  /// [1, Hkv, tokens, D]: the first `tokens` places of a layer, of which length() are filled. Errors: value (layer or tokens out of range).
  TensorView k(int layer, int64_t tokens) const { return part(k_, layer, tokens); }
  TensorView v(int layer, int64_t tokens) const { return part(v_, layer, tokens); }
  /// Copies k and v [1, Hkv, n, D], last axis contiguous, f32 (rounded to what the cache keeps) or in the cache's dtype, to places [first, first + n)
  /// of a layer, behind length(). Calls for different places may run at once. A model on a GPU writes there itself, through k() and v().
  /// Errors: value (over the capacity, or over what is filled), shape, dtype, device (the cache or a tensor is not on the CPU).
  void write(int layer, int64_t first, const TensorView& k, const TensorView& v);
  /// Counts `tokens` more as filled. Errors: value.
  void advance(int64_t tokens);
  /// Forgets all tokens from `length` on. Errors: value (longer than it is).
  void truncate(int64_t length);

 private:
  TensorView part(const std::vector<Tensor>& tensors, int layer, int64_t tokens) const;

  int heads_kv_, head_dim_;
  int64_t capacity_, length_ = 0;
  std::vector<Tensor> k_, v_;  // one [1, Hkv, capacity, D] per layer
};

TILEWISE_END_PUBLIC
