// SPDX-License-Identifier: Apache-2.0
// parse_recipe over any text: an Error of kind io or value, or a recipe that comes back from its own text.
#include "tilewise/infer/recipe.h"

#include "tests/fuzz/memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tilewise;
  Recipe recipe;
  try {
    recipe = parse_recipe({reinterpret_cast<const char*>(data), size}, "recipe.json");
  } catch (const Error& error) {
    fuzz::require(error.kind() == Error::Kind::io || error.kind() == Error::Kind::value);
    return 0;
  }
  for (int layer = 0; layer < recipe.num_layers; ++layer) {
    for (int head = 0; head < recipe.heads_q; ++head) fuzz::require(!recipe.of(layer, head).method.empty());
  }
  fuzz::require(parse_recipe(format_recipe(recipe), "recipe.json") == recipe);
  return 0;
}
