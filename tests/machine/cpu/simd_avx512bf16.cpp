// SPDX-License-Identifier: Apache-2.0
#define TILEWISE_TARGET avx512bf16
#define TILEWISE_TARGET_LEVEL 3
#include "tests/machine/cpu/simd_ops-inl.h"

namespace tilewise::machine::cpu::simd_test {
const Ops avx512bf16_ops = avx512bf16::kOps;
}
