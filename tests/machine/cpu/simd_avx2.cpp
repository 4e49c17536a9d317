// SPDX-License-Identifier: Apache-2.0
#define TILEWISE_TARGET avx2
#define TILEWISE_TARGET_LEVEL 1
#include "tests/machine/cpu/simd_ops-inl.h"

namespace tilewise::machine::cpu::simd_test {
const Ops avx2_ops = avx2::kOps;
}
