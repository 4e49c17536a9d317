// SPDX-License-Identifier: Apache-2.0
#pragma once
// Not for users of the library: it brings nlohmann's JSON with it.
#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tilewise/base/error.h"
#include "tilewise/methods/method.h"

namespace tilewise::infer {

using Json = nlohmann::ordered_json;

/// A value as messages show it: not longer than 80 bytes, ASCII.
inline std::string shown(const Json& value) {
  const std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

/// Parses with the refusal of a key that comes twice: one of the two would be lost without a word.
inline Json parse_strict(std::string_view text, const std::string& where) {
  std::vector<std::set<std::string>> seen;
  std::string twice;
  const auto watch = [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) seen.emplace_back();
    if (event == Json::parse_event_t::object_end) seen.pop_back();
    if (event == Json::parse_event_t::key && !seen.back().insert(parsed.get<std::string>()).second && twice.empty())
      twice = parsed.get<std::string>();
    return true;
  };
  Json result;
  try {
    result = Json::parse(text, watch);
  } catch (const Json::exception& error) {
    fail(Error::Kind::io, where, " is not JSON: ", std::string_view(error.what()).substr(0, 300));  // it quotes what it read last
  }
  check(twice.empty(), Error::Kind::io, where, ": key \"", twice, "\" comes twice");
  return result;
}

/// An object whose fields are asked for by name and type. finish() refuses what was not asked for: it would be silently without effect.
class Object {
 public:
  Object(const Json& json, std::string where) : json_(json), where_(std::move(where)) {
    check(json.is_object(), Error::Kind::io, where_, " is ", shown(json), "; takes an object");
  }
  const Json* find(const char* name) {
    asked_.insert(name);
    const auto found = json_.find(name);
    return found == json_.end() ? nullptr : &*found;
  }
  const Json& get(const char* name) {
    const Json* found = find(name);
    check(found != nullptr, Error::Kind::io, where_, ": ", name, " is missing");
    return *found;
  }
  int64_t whole(const char* name, int64_t low, int64_t high) { return whole_of(get(name), where_ + ": " + name, low, high); }
  int integer(const char* name, int low, int high) { return static_cast<int>(whole(name, low, high)); }
  static int64_t whole_of(const Json& value, const std::string& what, int64_t low, int64_t high) {
    check(value.is_number_integer(), Error::Kind::io, what, " is ", shown(value), "; takes a whole number");
    const bool is_inside = value.is_number_unsigned() ? value.get<uint64_t>() >= static_cast<uint64_t>(std::max<int64_t>(low, 0)) &&
                                                            value.get<uint64_t>() <= static_cast<uint64_t>(high)
                                                      : value.get<int64_t>() >= low && value.get<int64_t>() <= high;
    check(is_inside, Error::Kind::value, what, " is ", shown(value), "; takes ", low, " to ", high);
    return value.get<int64_t>();
  }
  std::string string(const char* name) {
    const Json& value = get(name);
    check(value.is_string(), Error::Kind::io, where_, ": ", name, " is ", shown(value), "; takes a string");
    return value.get<std::string>();
  }
  const Json& array(const char* name) {
    const Json& value = get(name);
    check(value.is_array(), Error::Kind::io, where_, ": ", name, " is ", shown(value), "; takes a list");
    return value;
  }
  void finish() const {
    for (const auto& [key, value] : json_.items()) check(asked_.contains(key), Error::Kind::io, where_, ": unknown key \"", key, "\"");
  }
  const std::string& where() const { return where_; }

 private:
  const Json& json_;
  std::string where_;
  std::set<std::string, std::less<>> asked_;
};

/// An option's value. Errors: io (null, a list, an object), value (a whole number above 2^63 - 1).
inline OptionValue option_of(const Json& value, const std::string& what) {
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number_integer()) {
    check(!value.is_number_unsigned() || value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX), Error::Kind::value, what, " is ", shown(value),
          ", above 2^63 - 1");
    return value.get<int64_t>();
  }
  if (value.is_number()) return value.get<double>();
  check(value.is_string(), Error::Kind::io, what, " is ", shown(value), "; takes a number, a string, true or false");
  return value.get<std::string>();
}

}  // namespace tilewise::infer
