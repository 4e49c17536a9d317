// SPDX-License-Identifier: Apache-2.0
#define TILEWISE_TARGET avx512
#define TILEWISE_TARGET_LEVEL 2
#include "tests/machine/cpu/simd_ops-inl.h"

namespace tilewise::machine::cpu::simd_test {
const Ops avx512_ops = avx512::kOps;
}
