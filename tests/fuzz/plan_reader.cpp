// SPDX-License-Identifier: Apache-2.0
// load_plan over any bytes: an Error of kind io, or a plan that is safe to use and comes back from a file as it is.
#include "tests/fuzz/use_plan.h"
#include "tilewise/plan/file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tilewise;
  const fuzz::MemoryFile file(data, size);
  Plan plan;
  try {
    plan = load_plan(file.path());
  } catch (const Error& error) {
    fuzz::require(error.kind() == Error::Kind::io || error.kind() == Error::Kind::memory);
    return 0;
  }
  fuzz::use_plan(plan);
  return 0;
}
