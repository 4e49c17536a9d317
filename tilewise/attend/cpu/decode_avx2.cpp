// SPDX-License-Identifier: Apache-2.0
#define TILEWISE_TARGET avx2
#define TILEWISE_TARGET_LEVEL 1
#include "tilewise/attend/cpu/decode-inl.h"
