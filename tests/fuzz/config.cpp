// SPDX-License-Identifier: Apache-2.0
// parse_config over any text: an Error of kind io or unsupported, or sizes that a model can be built from.
#include "tilewise/infer/config.h"

#include "tests/fuzz/memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tilewise;
  try {
    const ModelConfig config = infer::parse_config({reinterpret_cast<const char*>(data), size}, "config.json");
    fuzz::require(config.num_layers >= 1 && config.hidden_size >= 1 && config.intermediate_size >= 1 && config.vocab_size >= 1);
    fuzz::require(config.heads_kv >= 1 && config.heads_q % config.heads_kv == 0 && config.head_dim >= 1 && config.max_positions >= 1);
  } catch (const Error& error) {
    fuzz::require(error.kind() == Error::Kind::io || error.kind() == Error::Kind::unsupported);
  }
  return 0;
}
