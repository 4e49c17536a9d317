// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/attend/cuda/workspace.h"

namespace tilewise::attend::sm90 {

using cuda::device_buffer;

}  // namespace tilewise::attend::sm90
