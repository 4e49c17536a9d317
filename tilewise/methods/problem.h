// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string_view>

#include "tilewise/methods/method.h"
#include "tilewise/select/inputs.h"

namespace tilewise::method {

/// The tensors, the mask and the orders of a problem, checked as select::check_inputs does for a search on `device`; orders that change nothing are left out.
/// Errors: as there.
TILEWISE_API select::Inputs inputs_of(std::string_view method, const Problem& problem, Device device = {});

/// Whether the search runs on a GPU: the tensors and the context are on one, and that is built.
bool is_on_gpu(const Problem& problem, const Context& context);

/// Refuses what a method without neighbourhoods cannot take. Errors: unsupported.
void refuse_grids(std::string_view method, const Problem& problem);

}  // namespace tilewise::method
