// SPDX-License-Identifier: Apache-2.0
// Entries of the backward's order of work, as host and device read them.
#pragma once
#include <cstdint>

namespace tilewise::attend::sm90 {

inline constexpr int kKeyTile = 128;
/// Queries of a step.
constexpr int backward_tile_q(int64_t head_dim) { return head_dim <= 64 ? 128 : 64; }

/// Words of the order's status: whether the room was too little, in which case there is no item, and the steps that there are.
enum StepsStatus : int { kPatternsOutgrown = 0, kStepsOutgrown = 1, kSteps = 2, kStatusWords = 3 };

/// 128 keys of a head of k. Its steps are those of each head of q in turn.
struct BackwardItem {
  int32_t batch, head_kv, key_tile, steps;
  int64_t first_step;
  uint64_t live[2];  // keys that some query reads; those past the end of k count as read
};

/// A tile of queries that meets an item, in 64 bits.
struct BackwardStep {
  static constexpr int kTileBits = 20, kRankBits = 16, kMemberBits = 6, kPatternBits = 22;
  static constexpr uint32_t kEvery = (1u << kPatternBits) - 1;  // pattern: every pair counts
  uint32_t tile, rank;  // rank: how many items add to the dq of the tile before
  uint32_t member;      // head of q in its group
  uint32_t pattern;

  constexpr uint64_t pack() const {
    return tile | uint64_t{rank} << kTileBits | uint64_t{member} << (kTileBits + kRankBits) |
           uint64_t{pattern} << (kTileBits + kRankBits + kMemberBits);
  }
  static constexpr BackwardStep unpack(uint64_t bits) {
    const auto field = [&bits](int width) {
      const auto value = static_cast<uint32_t>(bits & ((uint64_t{1} << width) - 1));
      bits >>= width;
      return value;
    };
    BackwardStep step{};
    step.tile = field(kTileBits);
    step.rank = field(kRankBits);
    step.member = field(kMemberBits);
    step.pattern = field(kPatternBits);
    return step;
  }
};

}  // namespace tilewise::attend::sm90
