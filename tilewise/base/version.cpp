// SPDX-License-Identifier: Apache-2.0
// The only unit that sees the commit, so that a new commit compiles this file anew and a compiler cache keeps all others.
#include "tilewise/base/version.h"

#include "tilewise_commit.h"  // written into the build folder by cmake/commit.cmake

TILEWISE_BEGIN_PUBLIC

static_assert(TILEWISE_VERSION_MAJOR == TILEWISE_PROJECT_MAJOR && TILEWISE_VERSION_MINOR == TILEWISE_PROJECT_MINOR &&
                  TILEWISE_VERSION_PATCH == TILEWISE_PROJECT_PATCH,
              "tilewise/base/version.h and project(VERSION) in CMakeLists.txt name different versions");

std::string_view version() { return TILEWISE_PROJECT_VERSION; }

std::string_view commit() { return TILEWISE_COMMIT; }

TILEWISE_END_PUBLIC
