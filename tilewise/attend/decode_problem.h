// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "tilewise/attend/check.h"
#include "tilewise/attend/decode.h"
#include "tilewise/attend/store.h"

// A decode that has passed its checks, laid out as backends read it.
namespace tilewise::attend {

inline constexpr int kMostNewTokens = 8;

/// Neighbouring keys that a unit reads.
struct DecodeSegment {
  int32_t start, stop;  // tokens
  uint8_t queries;      // bit i: query i reads the segment
  bool is_tested;       // by the mask, in every row

  bool operator==(const DecodeSegment&) const = default;
};

/// Query heads of one K/V head, and new tokens, that share their lists: the keys are read once for all.
struct DecodeUnit {
  int64_t b;
  int head_kv;
  int head, heads;      // query heads [head, head + heads)
  int query, queries;   // new tokens [query, query + queries)
  int64_t first, last;  // segments of the problem
  int64_t keys;         // of these segments

  int rows() const { return heads * queries; }
};

/// What the mask of bands lets one row see: keys up to `last` that are below `sink` or not below `first`. Keys past the sequence are not seen.
struct DecodeBand {
  int32_t first, last, sink;

  bool sees(int32_t token) const { return token <= last && (token >= first || token < sink); }
};

struct DecodeProblem {
  DecodeParams params;  // its plan is there: dense_band has become one
  Sizes sizes;          // seqlen_k: that of the plan
  Store k, v;
  // On a GPU these are empty: kernels read lengths, lists and tables where they lie, and dense_band has become a plan without lists.
  std::vector<int32_t> lengths;
  std::vector<DecodeUnit> units;
  std::vector<DecodeSegment> segments;
  int64_t pairs_read = 0;  // before the mask, without keys that no row of a unit sees

  DecodeBand band(int64_t b, int head, int query) const;
};

/// Units have at most this many rows, so that what kernels keep for one stays small.
inline constexpr int kDecodeRows = 64;

/// Errors: those that attend_decode names, except what no backend takes.
/// A plan with a mask other than bands has no units or segments: no kernel takes it, the reference needs none.
DecodeProblem check_decode(const DecodeParams& params, const Context& context);

}  // namespace tilewise::attend
