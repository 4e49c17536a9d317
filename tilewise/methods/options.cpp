// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/options.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <numeric>

namespace tilewise::method {
namespace {

template <class T>
std::string shortest(T value) {
  std::array<char, 64> text{};
  const auto [end, code] = std::to_chars(text.data(), text.data() + text.size(), value);
  return std::string(text.data(), code == std::errc() ? end : text.data());
}

}  // namespace

double widen(float value) {
  if (!std::isfinite(value)) return static_cast<double>(value);
  const std::string text = shortest(value);
  double wide = 0;
  std::from_chars(text.data(), text.data() + text.size(), wide);
  return wide;
}

std::string to_text(const OptionValue& value) {
  return std::visit(
      [](const auto& v) -> std::string {
        using T = std::remove_cvref_t<decltype(v)>;
        if constexpr (std::is_same_v<T, bool>)
          return v ? "true" : "false";
        else if constexpr (std::is_same_v<T, std::string>)
          return v;
        else
          return shortest(v);
      },
      value);
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substitute = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitute});
    }
  }
  return row[b.size()];
}

std::string suggestion(std::string_view got, const std::vector<std::string>& names) {
  const std::string* best = nullptr;
  size_t least = std::numeric_limits<size_t>::max();
  for (const std::string& name : names) {
    const size_t distance = edit_distance(got, name);
    if (distance < least) {
      least = distance;
      best = &name;
    }
  }
  // Beyond a third of the letters the closest name is an accident.
  if (best == nullptr || least > std::max<size_t>(2, best->size() / 3) || least >= best->size()) return "";
  return "did you mean " + *best + "? ";
}

std::string join(const std::vector<std::string>& names) {
  if (names.empty()) return "none";
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

void fail_option(std::string_view method, std::string_view option, const std::string& got, const std::string& takes, std::string_view help) {
  fail(Error::Kind::value, method, ": option ", option, " is ", got.empty() ? "empty" : got, "; it takes ", takes, " (", help, ")");
}

std::optional<int64_t> as_integer(const OptionValue& value) {
  if (const auto* whole = std::get_if<int64_t>(&value)) return *whole;
  // JSON writers may spell 64 as 64.0. 2^53: beyond it a double no longer names one integer.
  if (const auto* real = std::get_if<double>(&value); real != nullptr && std::abs(*real) <= 9007199254740992.0 && std::nearbyint(*real) == *real) {
    return static_cast<int64_t>(*real);
  }
  return std::nullopt;
}

std::optional<double> as_number(const OptionValue& value) {
  if (const auto* real = std::get_if<double>(&value)) return *real;
  if (const auto* whole = std::get_if<int64_t>(&value)) return static_cast<double>(*whole);
  return std::nullopt;
}

}  // namespace tilewise::method
