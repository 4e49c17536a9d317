// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string_view>

#include "tilewise/methods/method.h"
#include "tilewise/select/inputs.h"

namespace tilewise::method {

/// The tensors and the mask of a problem, checked as select::check_inputs does. Errors: as there.
select::Inputs inputs_of(std::string_view method, const Problem& problem);

/// Refuses what a method without orders or neighbourhoods cannot take. Errors: unsupported.
void refuse_orders(std::string_view method, const Problem& problem);
void refuse_grids(std::string_view method, const Problem& problem);

}  // namespace tilewise::method
