// SPDX-License-Identifier: Apache-2.0
// The kernel behind a C door, so that a Python process that holds the peers can launch it. Errors come back as cudaError_t.
#include "tilewise/attend/sm90/schedule.h"

using namespace tilewise::attend::sm90;

extern "C" int tilewise_attend_sm90_forward(const ForwardInput* input, int variant, cudaStream_t stream) {
  return attend_sm90_forward(*input, nullptr, variant, stream);
}

/// The order of work into `workspace` (2 * items + 2 ints), and input->order and input->counter.
extern "C" int tilewise_attend_sm90_schedule(ForwardInput* input, int* workspace, cudaStream_t stream) {
  return make_schedule(*input, nullptr, workspace, stream);
}
