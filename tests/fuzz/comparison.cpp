// SPDX-License-Identifier: Apache-2.0
// parse_comparison over any text: an Error of kind io or value, or a comparison that comes back from its own document.
#include "tilewise/study/comparison.h"
#include "tests/fuzz/memory_file.h"
#include "tilewise/base/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tilewise;
  Comparison comparison;
  try {
    comparison = parse_comparison({reinterpret_cast<const char*>(data), size}, "out.json");
  } catch (const Error& error) {
    fuzz::require(error.kind() == Error::Kind::io || error.kind() == Error::Kind::value);
    return 0;
  }
  const std::string text = to_json(comparison);
  fuzz::require(to_json(parse_comparison(text, "out.json")) == text);
  return 0;
}
