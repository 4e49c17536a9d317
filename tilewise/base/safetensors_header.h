// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tilewise/base/safetensors.h"

namespace tilewise {

/// What the JSON of a safetensors header says, before anything is held against the file.
struct SafetensorsHeader {
  SafetensorsMetadata metadata;
  std::vector<SafetensorsEntry> entries;  // in the order of the text; names are distinct
};

/// Parses exactly the JSON that a safetensors header may hold: one object of {"dtype", "shape", "data_offsets"} objects and one `__metadata__`
/// object of strings. Strict: RFC 8259, valid UTF-8, no key twice, no other key, counts are plain digits; spaces may follow, nothing else.
/// Errors: io, "at byte N of the header: ...", after `where`.
SafetensorsHeader parse_safetensors_header(std::string_view text, const std::string& where);

/// `text` as a JSON string, with its quotes.
std::string json_quote(std::string_view text);

}  // namespace tilewise
