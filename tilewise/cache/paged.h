// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "tilewise/base/context.h"
#include "tilewise/base/memory.h"
#include "tilewise/base/operand.h"

TILEWISE_BEGIN_PUBLIC

/// How keys, or values, are kept.
struct PagedStore {
  Dtype dtype = Dtype::f32;  // f32, bf16 or f16: as numbers; i8: as INT8 codes; u8: as INT4 codes, two a byte
  /// Of codes: what shares a scale within a page (Quantised::Group; 0 tokens: the page, 0 channels: all).
  Quantised::Group group = {0, 0};
  bool has_zero = false;  // of codes: asymmetric, with a zero beside each scale
  /// Of symmetric codes: one scale per layer, from calibration, for every page; codes saturate. Empty: each group has the smallest scale that holds
  /// it.
  std::vector<float> scales = {};
};

struct PagedCacheOptions {
  int num_layers = 1, heads_kv = 1;
  int head_dim = 0, head_dim_v = 0;  // D and Dv; Dv 0: D
  int64_t num_pages = 0;  // of the pool, which all sequences, layers and heads share
  int page_size = 64;  // tokens of a page, 1 to 256
  int statistics_tokens = 16;  // of a sub-page of Paged::statistics; divides page_size; 0: none are kept
  PagedStore k = {}, v = {};
};

/// The pages of some sequences, one behind another as a batch: what attend_decode and methods read. Valid until the cache is reserved, truncated,
/// evicted from, forked or dropped; it sees what is written meanwhile.
struct PagedBatch {
  std::vector<Paged> k, v;  // of each layer, tables [B, Hkv, pages]; k with its statistics
  Tensor lengths;  // [B] i32
  Tensor tables;  // [layers, B, Hkv, pages] i32: the memory of all tables
};

/// K and V (K after rotary) of any number of sequences in pages of one pool. A page holds `page_size` tokens of one K/V head of one layer, K and V; a
/// page that several sequences share (fork) is copied before one of them writes to it.
///
/// A pass over n new tokens: reserve(sequence, n); write() of each layer; attend_decode over batch({sequence}, n); advance(sequence, n). A pass that
/// fails on the way leaves the cache as it was: the next write begins at the length again.
///
/// Codes   A group is coded with the smallest scale that holds the tokens that are in it, as prepare's quantise would code them together: a group
///         that fills up token by token is coded anew from the unquantised numbers, which each sequence keeps of its newest page. So bits do not
///         depend on how tokens came in pieces. Only where a full page is cut (truncate, or an advance by less than was written) those numbers are
///         gone: the cache goes on from what the codes stand for. Between a write and its advance the page that was begun already is coded with the
///         new tokens in it.
/// Statistics  as Paged::statistics: of the keys as they are kept where these are numbers, of the numbers before quantising where they are codes;
///             sums in the order of tokens, in f32. They hold just the tokens that are there (a write's from the write on), whatever was there
///             before.
/// Threads  one caller at a time, but writes of different layers or sequences may run at once. Bits do not depend on threads, nor on which page holds
///          what.
/// Source  PagedAttention, arXiv 2309.06180; page statistics: Quest, arXiv 2406.10774, and LServe, arXiv 2502.14866.
class TILEWISE_API PagedKvCache {
 public:
  /// Takes the memory of the whole pool. Errors: value (a size or an option out of range), dtype (of a store), memory.
  PagedKvCache(const PagedCacheOptions& options, const std::shared_ptr<Memory>& memory);
  PagedKvCache(PagedKvCache&&) noexcept;
  PagedKvCache& operator=(PagedKvCache&&) noexcept;
  ~PagedKvCache();

  const PagedCacheOptions& options() const;
  int64_t free_pages() const;
  int64_t num_sequences() const;

  // Sequences are known by a number that is not used twice. Errors of all that take one: value, where there is no such sequence.

  /// A new sequence without a token.
  int64_t add();
  /// A new sequence with the tokens of this one; they share pages, and no page is taken. What is written behind the length of `sequence` is
  /// forgotten, and where that is within a page both must reserve before they write.
  int64_t fork(int64_t sequence);
  /// Forgets a sequence. Pages that no other one shares are free.
  void drop(int64_t sequence);

  int64_t length(int64_t sequence) const;
  /// Places [length, reserved) may be written.
  int64_t reserved(int64_t sequence) const;
  /// Pages that reserve() would take.
  int64_t pages_needed(int64_t sequence, int64_t tokens) const;
  /// Takes the pages for `tokens` more than length, and copies of shared pages among them: all or nothing. Errors: value (below 0, 2^31 tokens or
  /// more), memory (not enough free pages, or of the host); then nothing has changed.
  void reserve(int64_t sequence, int64_t tokens);
  /// Copies k [1, Hkv, n, D] and v [1, Hkv, n, Dv] to places [first, first + n) of a layer. `first` is where the layer's last write ended, or the
  /// length to begin anew. The last axis is contiguous; dtypes are f32, what the store keeps, or for codes any float.
  /// Errors  value (layer, first, a place that is not reserved), shape, dtype, device, cancelled.
  void write(int64_t sequence, int layer, int64_t first, const TensorView& k, const TensorView& v, Context& context);
  /// Counts `tokens` more, which every layer has written. Errors: value.
  void advance(int64_t sequence, int64_t tokens);
  /// Forgets all tokens from `length` on, and what was reserved. Errors: value (longer than it is; a cut through an evicted page), memory (where a
  /// page that is cut is shared and no page is free for its copy); then nothing has changed.
  void truncate(int64_t sequence, int64_t length);
  /// Gives back the pages of one head of one layer that lie wholly within tokens [first, stop): tables say -1 there, and a plan must not read them.
  /// So heads that see no more than sinks and a window hold no more (LServe's streaming heads). Errors: value (layer, head, tokens that are not
  /// there).
  void evict(int64_t sequence, int layer, int head, int64_t first, int64_t stop);

  /// The operands of attention over `sequences`, with `ahead` tokens behind each length counted in: those of a pass that is under way.
  /// Errors: value (no sequence, ahead below 0 or not reserved), memory.
  PagedBatch batch(std::span<const int64_t> sequences, int64_t ahead, const std::shared_ptr<Memory>& memory) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

TILEWISE_END_PUBLIC
