// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Marks what a shared library exports; everything else is hidden.
#if defined(_WIN32)
#define TILEWISE_API
#else
#define TILEWISE_API __attribute__((visibility("default")))
#endif

/// Public types and entry points live in `tilewise`, inside this inline namespace, so two versions can be linked side by side.
#define TILEWISE_BEGIN_PUBLIC \
  namespace tilewise { \
  inline namespace v0 {
#define TILEWISE_END_PUBLIC \
  } \
  }
