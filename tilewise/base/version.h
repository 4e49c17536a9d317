// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string_view>

#include "tilewise/base/api.h"

/// The version of the headers, for the preprocessor; version() is that of the library that was linked.
#define TILEWISE_VERSION_MAJOR 0
#define TILEWISE_VERSION_MINOR 1
#define TILEWISE_VERSION_PATCH 0

TILEWISE_BEGIN_PUBLIC

/// "0.1.0", of the library that is linked.
TILEWISE_API std::string_view version();

/// The commit that it was built from, 12 hexadecimal digits, with "-dirty" behind them where tracked files had been changed;
/// "unknown" for a source tree without git.
TILEWISE_API std::string_view commit();

TILEWISE_END_PUBLIC
