// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <string>

#include "tilewise/base/memory.h"
#include "tilewise/plan/plan.h"

TILEWISE_BEGIN_PUBLIC

/// Writes the plan as one safetensors file (docs/formats/plan.md), beside its target and then renamed. Arrays are written as they lie, shared lists once.
/// Errors: value (null plan), io, unsupported (arrays on a device).
TILEWISE_API void save_plan(const Plan& plan, const std::string& path);

/// Reads such a file and validates it: nothing in it is trusted. The arrays are copied into `memory`.
/// Errors: io (not a safetensors file, not a plan, another version, an array that is missing, unknown or of another dtype or length, contents that fail
/// validate() or do not match the file's hash), memory.
TILEWISE_API Plan load_plan(const std::string& path, const std::shared_ptr<Memory>& memory = host_memory());

TILEWISE_END_PUBLIC
