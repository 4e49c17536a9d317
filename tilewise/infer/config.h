// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>

#include "tilewise/infer/model.h"

namespace tilewise::infer {

/// Reads DIR/config.json and checks every field that the model is built from. Errors: io (missing, not JSON, a field that is absent, of another
/// type or out of range), unsupported (an architecture or a feature that this library does not run, by name).
ModelConfig read_config(const std::string& directory);

/// The same of a text; `path` is for messages.
ModelConfig parse_config(const std::string& text, const std::string& path);

}  // namespace tilewise::infer
