// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>

#include "tilewise/base/context.h"
#include "tilewise/plan/plan.h"

// validate() of a plan that lies on a GPU, on request: kernels trust the plans that they read.
namespace tilewise::plan::cuda {

/// Bytes of the word that validate_into() writes.
constexpr size_t kFaultBytes = sizeof(uint64_t);

/// The first fault of a plan's rows, by direction, batch entry, head and row.
struct RowFault {
  bool is_by_key = false;
  int64_t b = 0;
  int head = 0;
  int64_t row = 0;
  int list = 0;           // 0: whole, 1: masked, 2: picked
  const char* what = "";  // what is wrong with it
};

/// Looks at every row of every head on context.stream and writes one word to `fault`, device memory of kFaultBytes aligned to 8, for fault_of(). Structure alone, as
/// validate(plan): slots of rows; of each run bounds, order, grain, `rows`, padding; that a row's lists are apart; that the kernel which wrote the lists met no
/// fault. Not looked at: orders, whether rows share a part of a list, whether both directions name the same pairs. Nothing waits; a graph may hold it.
/// Errors  value (null plan), unsupported (more than 7 pools), device, shape (an array that is not contiguous), cuda.
TILEWISE_API void validate_into(const Plan& plan, void* fault, const Context& context);

/// What the word says, once it has been copied to the host.
TILEWISE_API std::optional<RowFault> fault_of(const Plan& plan, uint64_t word);

}  // namespace tilewise::plan::cuda
