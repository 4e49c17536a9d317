// SPDX-License-Identifier: Apache-2.0
#include "check_values.h"

namespace tilewise {
namespace {

TEST(ReferenceLm, MeetsItsCheckValuesAt16384) {
  expect_check_value({"postgresql-wal.txt", 16384, 0.99407, {11.180f, 9.917f, -2.147f, -1.249f}, 10});
  expect_check_value({"python-http-client.txt", 16384, 0.81245, {8.856f, 11.256f, -0.645f, 0.805f}, 32});
}

}  // namespace
}  // namespace tilewise
