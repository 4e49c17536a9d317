// SPDX-License-Identifier: Apache-2.0
#define TILEWISE_TARGET portable
#define TILEWISE_TARGET_LEVEL 0
#include "tests/machine/cpu/simd_ops-inl.h"

namespace tilewise::machine::cpu::simd_test {
const Ops portable_ops = portable::kOps;
}
