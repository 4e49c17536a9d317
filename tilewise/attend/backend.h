// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "tilewise/attend/decode_problem.h"
#include "tilewise/attend/params.h"

namespace tilewise::attend {

/// A set of kernels. A null function: this backend does not have it. `refusal` says why a problem that passed check.h is not taken; nullopt: it is.
struct Backend {
  std::string_view name;
  std::optional<std::string> (*forward_refusal)(const AttendParams&) = nullptr;
  Ran (*forward)(const AttendParams&, Context&) = nullptr;
  std::optional<std::string> (*backward_refusal)(const AttendBackwardParams&) = nullptr;
  Ran (*backward)(const AttendBackwardParams&, Context&) = nullptr;
  std::optional<std::string> (*decode_refusal)(const DecodeProblem&) = nullptr;
  Ran (*decode)(const DecodeProblem&, Context&) = nullptr;
  std::optional<std::string> (*measure_refusal)(const MeasureParams&) = nullptr;
  Ran (*measure)(const MeasureParams&, Context&) = nullptr;
  bool is_forced_only = false;  // runs only when TILEWISE_BACKEND names it: the reference is hundreds of times slower, so nobody gets it unasked
};

/// All backends of this build, in the order in which they are tried.
TILEWISE_API std::span<const Backend> backends();

/// What TILEWISE_BACKEND names; null when it is unset, empty or "auto". Read at every call. Errors: value (a name that this build lacks).
TILEWISE_API const Backend* forced_backend();

}  // namespace tilewise::attend
