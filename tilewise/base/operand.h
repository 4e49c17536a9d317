// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <variant>

#include "tilewise/base/tensor.h"

// How keys and values are stored. Like TensorView these own nothing.
TILEWISE_BEGIN_PUBLIC

/// Integers that stand for (code - zero) * scale. Codes are signed: i8 in [-128, 127], or INT4 in [-8, 7]: two a byte (u8) along the last axis, the
/// even channel in the low half, each plus 8. (Where others count codes from 0, code and zero are theirs less 128, or less 8.)
struct Quantised {
  /// What shares a scale: `tokens` neighbouring tokens of a head, `channels` neighbouring channels; 0: all of them.
  struct Group {
    int tokens = 1, channels = 0;
    bool operator==(const Group&) const = default;
  };

  TensorView data = {};  // [B, H, S, D] i8, or [B, H, S, D / 2] u8 with an even D
  TensorView scale = {};  // [B|1, H|1, ceil(S / tokens), ceil(D / channels)] f32, last axis contiguous
  TensorView zero = {};  // like scale, or absent: 0
  Group group = {};

  bool has_value() const { return data.has_value(); }
  bool is_int4() const { return data.dtype() == Dtype::u8; }
  /// D. `data` has four axes.
  int64_t channels() const { return data.dim(3) * (is_int4() ? 2 : 1); }
};

/// What is known of the keys of each page before they were quantised: of `tokens` neighbouring tokens of it (a sub-page, of which the last may be
/// ragged) the smallest, largest and summed value of every channel. Of a sub-page without a token nothing is known.
struct PageStatistics {
  TensorView min = {}, max = {}, sum = {};  // [pages of the pool, ceil(page / tokens), D] f32, D contiguous
  int tokens = 0;

  bool has_value() const { return tokens > 0; }
};

/// Tokens in pages that lie anywhere in a pool. Token t of head h is row t % page of the page table[b, h, t / page]. A pool of single heads (axis 1
/// of size 1) gives every head pages of its own; a table with one head says where a token's row lies for all heads of a page. Hkv is the larger of
/// the two.
struct Paged {
  std::variant<TensorView, Quantised> pool =
      {};  // [pages of the pool, Hkv|1, page, D], D contiguous; groups of tokens count from the first token of a page
  TensorView table = {};  // [B, Hkv|1, pages of a sequence] i32; -1: not stored, never to be read
  PageStatistics statistics = {};  // of keys, for methods that choose pages by them; attention does not read it
};

/// Keys or values of attention: a plain tensor [B, H, S, D], the same quantised, or pages.
using Operand = std::variant<TensorView, Quantised, Paged>;

TILEWISE_END_PUBLIC
