// SPDX-License-Identifier: Apache-2.0
#define TILEWISE_TARGET avx512bf16
#define TILEWISE_TARGET_LEVEL 3
#include "tilewise/attend/cpu/decode-inl.h"
