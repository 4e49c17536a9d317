// SPDX-License-Identifier: Apache-2.0
#define TILEWISE_TARGET portable
#define TILEWISE_TARGET_LEVEL 0
#include "tilewise/attend/cpu/decode-inl.h"
