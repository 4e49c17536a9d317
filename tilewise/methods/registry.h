// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "tilewise/methods/method.h"

TILEWISE_BEGIN_PUBLIC

/// Every method, in the order in which tables print them ("dense" first).
TILEWISE_API const std::vector<MethodInfo>& methods();

/// Errors: value, with the names that exist (and the closest one).
TILEWISE_API const MethodInfo& method_info(std::string_view name);

/// Makes a plan with a method by name. The one door that command line, recipes, Python and benches use.
/// Errors: value (unknown method or option, value outside its range); shape, dtype, device (tensors that do not fit together);
///         unsupported (the method does not take this problem: the message says why).
TILEWISE_API Planned plan_with(std::string_view name, const Problem& problem, const OptionValues& options, Context& context);

/// Throws what plan_with would throw about the name and the options, without a problem. Errors: value.
TILEWISE_API void check_options(std::string_view name, const OptionValues& options);

/// Reads "threshold=0.97,stride=16" with the method's option types and checks ranges; "" is no option. Errors: value.
TILEWISE_API OptionValues parse_options(std::string_view name, std::string_view text);
/// The other way round, in the method's own order, defaults left out. Errors: value, as check_options.
TILEWISE_API std::string format_options(std::string_view name, const OptionValues& options);

TILEWISE_END_PUBLIC
