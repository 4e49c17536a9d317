// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "tilewise/base/api.h"

TILEWISE_BEGIN_PUBLIC

/// The one exception of the library. `what()` names the function, what it got, what it takes, and a way on.
class TILEWISE_API Error : public std::runtime_error {
 public:
  enum class Kind { shape, dtype, device, value, unsupported, memory, io, cuda, cancelled };

  Error(Kind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  Kind kind() const noexcept { return kind_; }

 private:
  Kind kind_;
};

/// "shape", "dtype", ...: the spelling that messages and the Python door use.
TILEWISE_API std::string_view name(Error::Kind kind);

/// Throws Error(kind) with the parts written one after another.
template <class... Parts>
[[noreturn]] void fail(Error::Kind kind, const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(kind, text.str());
}

/// Throws unless `holds`. Parts are formatted only then, so pass values, not strings made for the occasion.
template <class... Parts>
void check(bool holds, Error::Kind kind, const Parts&... parts) {
  if (!holds) [[unlikely]]
    fail(kind, parts...);
}

TILEWISE_END_PUBLIC
