// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string_view>
#include <vector>

#include "tilewise/methods/method.h"

TILEWISE_BEGIN_PUBLIC

/// Every method, in the order in which tables print them ("dense" first).
TILEWISE_API const std::vector<MethodInfo>& methods();

/// Errors: value, with the names that exist (and the closest one).
TILEWISE_API const MethodInfo& method_info(std::string_view name);

/// Makes a plan with a method by name. The one door that command line, recipes, Python and benches use.
/// Errors: value (unknown method or option, value outside its range); unsupported (the method does not take this problem: the message says why).
TILEWISE_API Planned plan_with(std::string_view name, const Problem& problem, const OptionValues& options, Context& context);

/// Reads "threshold=0.97,stride=16" with the method's option types. Errors: value.
TILEWISE_API OptionValues parse_options(std::string_view name, std::string_view text);
/// The other way round, in the method's own order, defaults left out.
TILEWISE_API std::string format_options(std::string_view name, const OptionValues& options);

TILEWISE_END_PUBLIC
