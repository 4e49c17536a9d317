// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <sstream>
#include <string>

// How the checks of a plan stop at the first fault; find_fault() catches it.
namespace tilewise::plan {

struct Fault {
  std::string text;
};

template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) [[likely]]
    return;
  std::ostringstream text;
  (text << ... << parts);
  throw Fault{text.str()};
}

}  // namespace tilewise::plan
