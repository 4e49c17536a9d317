// SPDX-License-Identifier: Apache-2.0
// The kernel behind a C door, so that a Python process that holds the peers can launch it. Errors come back as cudaError_t.
#include "tilewise/attend/sm90/forward_args.h"

extern "C" int tilewise_attend_sm90_forward(const tilewise::attend::sm90::ForwardInput* input, int variant, cudaStream_t stream) {
  return attend_sm90_forward(*input, variant, stream);
}
