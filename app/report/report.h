// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <string_view>

#include "tilewise/study/comparison.h"

namespace tilewise::app {

/// One HTML file that needs no network: style, script and the comparison's JSON are in it.
std::string make_report(const Comparison& comparison);

/// Text for HTML content and attributes.
std::string escape_html(std::string_view text);
/// JSON that may stand inside <script>: still the same JSON, without any <, > or &, U+2028 or U+2029.
std::string escape_script_json(std::string_view json);

}  // namespace tilewise::app
