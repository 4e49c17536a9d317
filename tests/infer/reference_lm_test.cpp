// SPDX-License-Identifier: Apache-2.0
#include "check_values.h"
#include "tilewise/machine/cpu/target.h"

namespace tilewise {
namespace {

TEST(ReferenceLm, MeetsItsCheckValuesAt4096) {
  expect_check_value({"postgresql-wal.txt", 4096, 1.09000, {7.976f, 11.918f, -2.386f, -0.510f}, 32});
  expect_check_value({"python-http-client.txt", 4096, 0.76273, {4.349f, 1.194f, 1.708f, 16.217f}, 116});
}

TEST(ReferenceLm, RunsInBf16NearItsCheckValues) {
  if (machine::cpu::available_targets().back() < machine::cpu::Target::avx512) GTEST_SKIP() << "oneDNN computes in bf16 from AVX-512 on";
  expect_check_value({"postgresql-wal.txt", 4096, 1.09000, {7.976f, 11.918f, -2.386f, -0.510f}, 32}, Dtype::bf16);
  expect_check_value({"python-http-client.txt", 4096, 0.76273, {4.349f, 1.194f, 1.708f, 16.217f}, 116}, Dtype::bf16);
}

}  // namespace
}  // namespace tilewise
