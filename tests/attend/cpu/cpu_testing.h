// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdlib>
#include <string>

#include "tilewise/machine/cpu/target.h"

namespace tilewise::attend::testing {

/// Forces a target while it lives.
class ForcedTarget {
 public:
  explicit ForcedTarget(machine::cpu::Target target) {
    if (const char* const before = std::getenv("TILEWISE_TARGET")) before_ = before;
    setenv("TILEWISE_TARGET", std::string(machine::cpu::name(target)).c_str(), 1);
  }
  ForcedTarget(const ForcedTarget&) = delete;
  ForcedTarget& operator=(const ForcedTarget&) = delete;
  ~ForcedTarget() {
    if (before_.empty()) {
      unsetenv("TILEWISE_TARGET");
    } else {
      setenv("TILEWISE_TARGET", before_.c_str(), 1);
    }
  }

 private:
  std::string before_;
};

}  // namespace tilewise::attend::testing
