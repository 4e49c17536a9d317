// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace tilewise::app {

const char* version();  // "0.1.0"
const char* commit();   // "a9a3f19c0d1e", "a9a3f19c0d1e-dirty" or "unknown"

}  // namespace tilewise::app
