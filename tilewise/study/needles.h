// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "tilewise/base/api.h"

TILEWISE_BEGIN_PUBLIC

/// A text with one note in it, and the question that asks for it.
struct NeedlePrompt {
  int64_t length = 0;  // bytes of `prompt`
  double depth = 0;    // where the note stands, as a share of the haystack
  std::string prompt, answer;
};

/// The prompts of `length` bytes of DIR/needles.json, cut from DIR/documents. Errors: io (missing or damaged file, a prompt that does not come out
/// as long as it says), value (no prompt of that length: names the lengths that there are).
TILEWISE_API std::vector<NeedlePrompt> load_needles(const std::string& directory, int64_t length);

TILEWISE_END_PUBLIC
