// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tilewise/base/error.h"
#include "tilewise/base/memory.h"

namespace tilewise::testing {

/// One wrong thing in one call.
struct BadCall {
  std::string call;  // entry: what is wrong
  Error::Kind kind;
  std::vector<std::string> says;  // parts of the message: the entry or file, and the argument or number that is wrong
  std::function<void()> run;
};

/// Runs every call and holds its error against the row. No two have one name, there are at least `least` of them, and of the public headers in `folders` of
/// tilewise/ every function and class that is not in `cannot_fail` has one.
void expect_bad_calls(const std::vector<std::pair<std::string, std::vector<BadCall>>>& groups, const std::vector<std::string>& folders,
                      const std::vector<std::string>& cannot_fail, size_t least);

inline Tensor zeros(Dtype dtype, const Shape& shape) {
  Tensor tensor(host_memory(), dtype, shape);
  tensor.fill_zero();
  return tensor;
}

std::vector<BadCall> bad_caches();
std::vector<BadCall> bad_operators();
std::vector<BadCall> bad_sets();
std::vector<BadCall> bad_files();

}  // namespace tilewise::testing
