// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <vector>

#include "tilewise/study/compare.h"

namespace tilewise::app {

/// Reads --methods: each part is "all" or a list name[:option=value[,option=value...]][,name...]. A piece without ':' that holds '=' is one more
/// option of the method before it. "all" is every method but dense with its defaults. Errors: value (unknown method, option or value, empty list).
std::vector<MethodChoice> parse_method_list(const std::vector<std::string>& parts);

}  // namespace tilewise::app
