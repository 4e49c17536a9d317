// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>

#include "tilewise/base/context.h"
#include "tilewise/study/comparison.h"

namespace tilewise::app {

/// This build on this machine, now; `command` is what was asked, as text.
Environment environment_of(const Context& context, std::string command);

}  // namespace tilewise::app
