// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>

#include "tilewise/base/error.h"

namespace tilewise {

/// The kind of error that call() ends with; "none": it does not.
template <class Call>
std::string kind_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return std::string(name(error.kind()));
  }
  return "none";
}

}  // namespace tilewise
