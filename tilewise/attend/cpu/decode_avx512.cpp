// SPDX-License-Identifier: Apache-2.0
#define TILEWISE_TARGET avx512
#define TILEWISE_TARGET_LEVEL 2
#include "tilewise/attend/cpu/decode-inl.h"
