// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "tilewise/methods/method.h"

// How a method declares its options. Its struct has one list that everything else is read from: flags, range errors, help, reports, --tune.
//
//   struct Options {
//     int tile = 64;
//     Rule rule = Rule::sum;
//     static void each_field(auto& self, auto&& field) {
//       field("tile", self.tile, range(16, 256), grid(64, 128), "tokens per tile, both axes");
//       field("rule", self.rule, one_of("sum", "max"), no_grid(), "how rows of a tile add up");
//     }
//   };
//
// A field is a bool (yes_no), an int or int64_t, a float (range), or an enum whose values 0, 1, ... are named by one_of.
// Not tilewise::methods, which is the public function that lists them.
namespace tilewise::method {

template <class T>
struct Range {
  T low, high;  // both belong to it
};
template <class T>
constexpr Range<T> range(T low, T high) {
  return {low, high};
}

struct YesNo {};
constexpr YesNo yes_no() { return {}; }

template <size_t N>
struct Choice {
  std::array<std::string_view, N> names;
};
template <class... Names>
constexpr Choice<sizeof...(Names)> one_of(Names... names) {
  return {{std::string_view(names)...}};
}

/// What --tune tries; empty: the option is not tuned.
template <class T, size_t N>
struct Grid {
  std::array<T, N> values;
};
template <class T, class... Rest>
constexpr Grid<T, 1 + sizeof...(Rest)> grid(T first, Rest... rest) {
  return {{first, static_cast<T>(rest)...}};
}
constexpr Grid<int, 0> no_grid() { return {}; }

/// The double that prints as the float does: .9f becomes 0.9, not 0.89999997615814209.
TILEWISE_API double widen(float value);
/// "0.97", "16", "true", "max": as parse_options reads it.
TILEWISE_API std::string to_text(const OptionValue& value);
/// Number of single-letter edits between two names.
TILEWISE_API size_t edit_distance(std::string_view a, std::string_view b);
/// "did you mean threshold? " where a name is close, else "".
TILEWISE_API std::string suggestion(std::string_view got, const std::vector<std::string>& names);
/// "a, b, c".
TILEWISE_API std::string join(const std::vector<std::string>& names);

[[noreturn]] TILEWISE_API void fail_option(std::string_view method, std::string_view option, const std::string& got, const std::string& takes,
                                           std::string_view help);

/// The value as an integer or a number, where it is one; nothing where the type does not fit.
TILEWISE_API std::optional<int64_t> as_integer(const OptionValue& value);
TILEWISE_API std::optional<double> as_number(const OptionValue& value);

namespace detail {

template <class T>
std::string range_text(const Range<T>& limits) {
  if constexpr (std::is_floating_point_v<T>) {
    return to_text(widen(static_cast<float>(limits.low))) + " to " + to_text(widen(static_cast<float>(limits.high)));
  } else {
    return to_text(static_cast<int64_t>(limits.low)) + " to " + to_text(static_cast<int64_t>(limits.high));
  }
}
inline std::string range_text(YesNo) { return "true or false"; }
template <size_t N>
std::string range_text(const Choice<N>& choice) {
  return join(std::vector<std::string>(choice.names.begin(), choice.names.end()));
}

template <class T, class Limits>
OptionValue to_value(const T& field, const Limits& limits) {
  if constexpr (std::is_same_v<T, bool>)
    return field;
  else if constexpr (std::is_enum_v<T>)
    return std::string(limits.names[static_cast<size_t>(field)]);
  else if constexpr (std::is_integral_v<T>)
    return static_cast<int64_t>(field);
  else
    return widen(field);
}

/// Writes `value` into `field`, or throws what is wrong with it.
template <class T, class Limits>
void assign(std::string_view method, std::string_view name, T& field, const Limits& limits, std::string_view help, const OptionValue& value) {
  const auto refuse = [&] { fail_option(method, name, to_text(value), range_text(limits), help); };
  if constexpr (std::is_same_v<T, bool>) {
    if (!std::holds_alternative<bool>(value)) refuse();
    field = std::get<bool>(value);
  } else if constexpr (std::is_enum_v<T>) {
    if (!std::holds_alternative<std::string>(value)) refuse();
    for (size_t i = 0; i < limits.names.size(); ++i) {
      if (limits.names[i] == std::get<std::string>(value)) {
        field = static_cast<T>(i);
        return;
      }
    }
    refuse();
  } else if constexpr (std::is_integral_v<T>) {
    const std::optional<int64_t> number = as_integer(value);
    if (!number || *number < static_cast<int64_t>(limits.low) || *number > static_cast<int64_t>(limits.high)) refuse();
    field = static_cast<T>(*number);
  } else {
    static_assert(std::is_same_v<T, float>, "an option is a bool, an integer, a float or an enum");
    const std::optional<double> number = as_number(value);
    const float narrow = number ? static_cast<float>(*number) : 0.0f;
    // The comparison is made in float, so the limit itself is inside; a NaN fails both.
    if (!number || !(narrow >= static_cast<float>(limits.low) && narrow <= static_cast<float>(limits.high))) refuse();
    field = narrow;
  }
}

}  // namespace detail

/// What help, reports and --tune say about a struct's fields, in its own order.
template <class Options>
std::vector<OptionInfo> describe() {
  std::vector<OptionInfo> infos;
  Options defaults;
  Options::each_field(defaults, [&](std::string_view name, auto& field, const auto& limits, const auto& tried, std::string_view help) {
    OptionInfo info{std::string(name), std::string(help), detail::to_value(field, limits), detail::range_text(limits), {}};
    for (const auto& value : tried.values) {
      auto copy = field;
      copy = static_cast<std::remove_cvref_t<decltype(field)>>(value);
      info.grid.push_back(detail::to_value(copy, limits));
    }
    infos.push_back(std::move(info));
  });
  return infos;
}

/// Options by name into the struct; what is not named keeps its default.
/// Errors: value (a name that the struct does not have, with the closest; a value of the wrong type or outside its range).
template <class Options>
Options read_options(std::string_view method, const OptionValues& values) {
  Options options;
  std::vector<std::string> names;
  size_t found = 0;
  Options::each_field(options, [&](std::string_view name, auto& field, const auto& limits, const auto&, std::string_view help) {
    names.emplace_back(name);
    const auto it = values.find(name);
    if (it == values.end()) return;
    ++found;
    detail::assign(method, name, field, limits, help, it->second);
  });
  if (found == values.size()) return options;
  for (const auto& [name, value] : values) {
    bool is_known = false;
    for (const std::string& known : names) is_known = is_known || known == name;
    if (!is_known) {
      fail(Error::Kind::value, method, ": there is no option ", name, "; ", suggestion(name, names), "it takes ", join(names));
    }
  }
  return options;
}

/// Checks a struct that was filled in C++, field by field, as read_options would. Errors: value.
template <class Options>
void check_ranges(std::string_view method, const Options& options) {
  Options copy = options;
  Options::each_field(copy, [&](std::string_view name, auto& field, const auto& limits, const auto&, std::string_view help) {
    using Field = std::remove_cvref_t<decltype(field)>;
    if constexpr (std::is_enum_v<Field>) {
      if (static_cast<size_t>(field) >= limits.names.size()) {
        fail_option(method, name, std::to_string(static_cast<int64_t>(field)), detail::range_text(limits), help);
      }
    } else {
      detail::assign(method, name, field, limits, help, detail::to_value(field, limits));
    }
  });
}

}  // namespace tilewise::method
