// SPDX-License-Identifier: Apache-2.0
#include "tilewise/machine/cpu/target.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "tilewise/base/error.h"
#include "tilewise/machine/cpu/context.h"
#include "tilewise/machine/cpu/peak.h"

namespace tilewise::machine::cpu {
namespace {

struct Environment {
  explicit Environment(const char* value) {
    if (const char* const text = std::getenv("TILEWISE_TARGET")) before = text;
    value == nullptr ? unsetenv("TILEWISE_TARGET") : setenv("TILEWISE_TARGET", value, 1);
  }
  ~Environment() { before.empty() ? unsetenv("TILEWISE_TARGET") : setenv("TILEWISE_TARGET", before.c_str(), 1); }
  std::string before;
};

TEST(Target, HighestIsTheDefault) {
  const Environment unset(nullptr);
  EXPECT_EQ(current_target(), available_targets().back());
  EXPECT_EQ(available_targets().front(), Target::portable);
  const Environment empty("");
  EXPECT_EQ(current_target(), available_targets().back());
}

TEST(Target, EnvironmentForcesOne) {
  for (const Target target : available_targets()) {
    const Environment forced(std::string(name(target)).c_str());
    EXPECT_EQ(current_target(), target);
  }
}

TEST(Target, UnknownNameIsAnError) {
  const Environment forced("avx3");
  try {
    current_target();
    FAIL() << "taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::value);
    EXPECT_NE(std::string(error.what()).find("\"avx3\""), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("avx512bf16"), std::string::npos);
  }
  EXPECT_THROW(cpu_context(), Error);
}

TEST(Target, EveryNameIsEitherAvailableOrRefused) {
  for (const Target target : {Target::portable, Target::avx2, Target::avx512, Target::avx512bf16}) {
    const Environment forced(std::string(name(target)).c_str());
    if (target <= available_targets().back()) {
      EXPECT_EQ(current_target(), target);
      continue;
    }
    try {
      current_target();
      FAIL() << name(target) << " is not available, and was taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), Error::Kind::unsupported);
    }
  }
}

#if defined(__x86_64__)
TEST(Target, AgreesWithTheCompilersOwnDetection) {
  const Target highest = available_targets().back();
  EXPECT_EQ(highest >= Target::avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
  EXPECT_EQ(highest >= Target::avx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"));
}
#endif

TEST(Peak, LoopsRunOnEveryTarget) {
  Context context = cpu_context(1);
  EXPECT_GT(measure_clock_ghz(), 0.1);
  for (const Target target : available_targets()) {
    const Peak peak = measure_peak(target, Instruction::fma_f32, 0.01, context);
    EXPECT_GT(peak.gflops, 0.1);
    EXPECT_GE(peak.accumulators, 6);
    EXPECT_LE(peak.accumulators, 16);
    EXPECT_GT(peak.expected, 0);
  }
  EXPECT_FALSE(has_instruction(Target::avx2, Instruction::dot_bf16));
  EXPECT_THROW(measure_peak(Target::portable, Instruction::dot_bf16, 0.01, context), Error);
}

}  // namespace
}  // namespace tilewise::machine::cpu
