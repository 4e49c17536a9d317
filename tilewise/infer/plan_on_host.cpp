// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/layer.h"
#ifdef TILEWISE_WITH_CUDA
#include "tilewise/attend/sm90/device_plan.h"
#endif

namespace tilewise::infer {

Plan plan_on_host(const Plan& plan, [[maybe_unused]] const Context& context) {
#ifdef TILEWISE_WITH_CUDA
  if (context.device.type == Device::Type::cuda) return copy_to_host(plan, context);
#endif
  return plan;
}

}  // namespace tilewise::infer
