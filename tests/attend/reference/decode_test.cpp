// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/reference/decode.h"

#include <gtest/gtest.h>

#include "tests/attend/decode_testing.h"

namespace tilewise::attend {
namespace {

TEST(ReferenceDecode, IsTheDefinition) {
  for (uint64_t seed = 0; seed < 150; ++seed) {
    testing::Rng rng(seed);
    const testing::DecodeCase c = testing::make_case(rng, testing::random_decode(rng, false));
    Context context;
    const Ran ran = reference::decode(check_decode(c.params(), context), context);
    EXPECT_EQ(ran.backend, "reference");
    testing::expect_answer(c, 1e-12, "seed " + std::to_string(seed) + ": " + describe(c.options));
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace tilewise::attend
