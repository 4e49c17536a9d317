// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cpu/decode.h"

#include <gtest/gtest.h>

#include "tests/attend/cpu/cpu_testing.h"
#include "tests/attend/decode_testing.h"
#include "tilewise/machine/cpu/thread_pool.h"

namespace tilewise::attend {
namespace {

using machine::cpu::Target;
using testing::DecodeCase;

class CpuDecode : public ::testing::TestWithParam<Target> {};
INSTANTIATE_TEST_SUITE_P(Targets, CpuDecode, ::testing::ValuesIn(machine::cpu::available_targets().begin(), machine::cpu::available_targets().end()),
                         [](const auto& tested) { return std::string(machine::cpu::name(tested.param)); });

// Twice the rounding of f32 sums, or of the dot instruction's.
constexpr double kEpsilon = 0x1p-22;

TEST_P(CpuDecode, IsTheDefinition) {
  const testing::ForcedTarget forced(GetParam());
  for (uint64_t seed = 0; seed < 300; ++seed) {
    testing::Rng rng(seed);
    const DecodeCase c = testing::make_case(rng, testing::random_decode(rng, false));
    Context context;
    const Ran ran = cpu::decode(check_decode(c.params(), context), context);
    EXPECT_EQ(ran.target, machine::cpu::name(GetParam()));
    testing::expect_answer(c, kEpsilon, "seed " + std::to_string(seed) + ": " + describe(c.options));
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace tilewise::attend
