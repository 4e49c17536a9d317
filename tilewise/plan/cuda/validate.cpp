// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/cuda/validate.h"

#include "tilewise/machine/cuda/check.h"
#include "tilewise/plan/cuda/launch.h"

namespace tilewise::plan::cuda {

void validate_into(const Plan& plan, void* fault, const Context& context) {
  check(plan != nullptr, Error::Kind::value, "validate_into: the plan is null; make one with a method or load one");
  require_on_device("validate_into", *plan, context);
  const machine::cuda::DeviceScope scope(context.device.index);
  const auto stream = static_cast<cudaStream_t>(context.stream);
  machine::cuda::check_cuda(cudaMemsetAsync(fault, 0xff, kFaultBytes, stream), "validate_into");
  for (const bool is_by_query : {true, false}) {
    machine::cuda::check_cuda(launch_validate(validate_launch(*plan, is_by_query, fault), stream), "validate_into: the launch failed");
  }
}

std::optional<RowFault> fault_of(const Plan& plan, uint64_t word) {
  check(plan != nullptr, Error::Kind::value, "fault_of: the plan is null");
  return row_fault(*plan, word);
}

}  // namespace tilewise::plan::cuda
