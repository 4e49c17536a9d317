// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/sm90/decode_parts.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace tilewise::attend::sm90 {
namespace {

TEST(AttendSm90DecodeParts, DivisorDividesAllThatIntsHold) {
  std::mt19937_64 rng(1);
  for (int divisor : {1, 2, 3, 5, 7, 31, 32, 33, 64, 100, 192, 1000, 65535, 65536, 1 << 20, (1 << 30) - 1, 1 << 30}) {
    const Divisor by(divisor);
    for (int x : {0, 1, divisor - 1, divisor, INT32_MAX - 1, INT32_MAX}) EXPECT_EQ(by.quotient(x), x / divisor) << x << " / " << divisor;
    for (int i = 0; i < 1000; ++i) {
      const int x = static_cast<int>(rng() >> 33);
      ASSERT_EQ(by.quotient(x), x / divisor) << x << " / " << divisor;
    }
  }
}

TEST(AttendSm90DecodeParts, PartsHoldEveryBoxOnce) {
  for (int shift : {4, 5, 6}) {
    for (int boxes = 0; boxes < 20000; boxes += boxes < 3000 ? 1 : 97) {
      const DecodeParts parts = decode_parts(boxes, shift);
      ASSERT_GE(parts.count, 1);
      ASSERT_LE(parts.count, kDecodeMostParts);
      ASSERT_GE(int64_t{parts.count} * parts.boxes, boxes);
      ASSERT_TRUE(boxes == 0 || int64_t{parts.count - 1} * parts.boxes < boxes) << "no part of a list is empty";
      ASSERT_EQ(parts.boxes % (kDecodeStage >> shift), 0) << "a part is whole stages";
    }
  }
}

// The bits of a sequence must not depend on which kernel counts it.
TEST(AttendSm90DecodeParts, LightKernelsCutAsTheOthers) {
  for (int boxes = 0; boxes < (1 << 25); boxes += boxes < 100'000 ? 1 : 9973) {
    const DecodeParts parts = decode_parts(boxes, 6), light = decode_light_parts(boxes);
    ASSERT_EQ(light.count, parts.count) << boxes;
    ASSERT_EQ(light.boxes, parts.boxes) << boxes;
  }
}

TEST(AttendSm90DecodeParts, BlocksOfAClusterMergeEachChannelOnce) {
  for (int rows = 1; rows <= 8; ++rows) {
    std::vector<int> merged(32 * static_cast<size_t>(rows), 0);
    for (int rank = 0; rank < kDecodeClusterBlocks; ++rank) {
      const DecodeClusterShare share = decode_cluster_share(rows, 128, rank);
      ASSERT_LE(share.quads, 32) << "a lane a quad";
      if (share.row >= rows) continue;
      for (int quad = share.first_quad; quad < share.first_quad + share.quads; ++quad)
        ++merged[32 * static_cast<size_t>(share.row) + static_cast<size_t>(quad)];
    }
    EXPECT_EQ(merged, std::vector<int>(32 * static_cast<size_t>(rows), 1)) << rows;
  }
}

TEST(AttendSm90DecodeParts, BoxesOfARunHoldItsKeysOnceAndStayWithinAPage) {
  std::mt19937_64 rng(2);
  for (int i = 0; i < 5000; ++i) {
    const int start = static_cast<int>(rng() % 1000), stop = start + static_cast<int>(rng() % 500), page = 64 * (1 + static_cast<int>(rng() % 4));
    const DecodeRun run = {start, stop};
    int next = start;
    for (int box = 0; box < run.boxes(); ++box) {
      const int token = run.token(box), low = run.low(token), high = run.high(token);
      ASSERT_LT(low, high);
      ASSERT_LE(high, kDecodeStage);
      ASSERT_EQ(token + low, next);
      ASSERT_EQ((token + low) / page, (token + high - 1) / page);
      ASSERT_EQ(token % page / kDecodeStage, token / kDecodeStage % (page / kDecodeStage)) << "as the other kernels number them";
      next = token + high;
    }
    ASSERT_EQ(next, stop < start ? start : stop);
  }
  EXPECT_EQ((DecodeRun{5, 5}).boxes(), 0);
  EXPECT_EQ((DecodeRun{9, 3}).boxes(), 0);
}

}  // namespace
}  // namespace tilewise::attend::sm90
