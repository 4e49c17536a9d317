// SPDX-License-Identifier: Apache-2.0
// The kernels behind a C door, so that a Python process that holds the peers can launch them. Errors come back as cudaError_t.
#include "tilewise/attend/sm90/decode_args.h"
#include "tilewise/attend/sm90/measure_args.h"
#include "tilewise/attend/sm90/schedule.h"

using namespace tilewise::attend::sm90;

extern "C" int tilewise_attend_sm90_forward(const ForwardInput* input, int variant, cudaStream_t stream) {
  return attend_sm90_forward(*input, nullptr, variant, stream);
}

/// The order of work into `workspace` (2 * items + 2 ints), and input->order and input->counter.
extern "C" int tilewise_attend_sm90_schedule(ForwardInput* input, int* workspace, cudaStream_t stream) {
  return make_schedule(*input, nullptr, workspace, stream);
}

/// What make_split() takes after the order of work, and input->split.
extern "C" int64_t tilewise_attend_sm90_split_bytes(const ForwardInput* input, int multiprocessors) {
  return static_cast<int64_t>(split_bytes(*input, multiprocessors));
}
extern "C" int tilewise_attend_sm90_split(ForwardInput* input, const int* workspace, void* space, int multiprocessors, cudaStream_t stream) {
  return make_split(*input, workspace, space, multiprocessors, stream);
}
/// For a check that the Python side lays ForwardInput out alike.
extern "C" int64_t tilewise_attend_sm90_forward_input_bytes() { return static_cast<int64_t>(sizeof(ForwardInput)); }

extern "C" int64_t tilewise_attend_sm90_decode_workspace(const DecodeInput* input) { return static_cast<int64_t>(decode_workspace(*input)); }
extern "C" int tilewise_attend_sm90_decode(const DecodeInput* input, cudaStream_t stream) { return attend_sm90_decode(*input, stream); }
extern "C" int tilewise_attend_sm90_measure(const MeasureInput* input, cudaStream_t stream) { return attend_sm90_measure(*input, stream); }
extern "C" int64_t tilewise_attend_sm90_measure_input_bytes() { return static_cast<int64_t>(sizeof(MeasureInput)); }
/// For a check that the Python side lays DecodeInput out alike.
extern "C" int64_t tilewise_attend_sm90_decode_input_bytes() { return static_cast<int64_t>(sizeof(DecodeInput)); }

namespace {
// 16 bytes a thread and step, eight steps in flight: what reading alone reaches.
__global__ void __launch_bounds__(512) read_kernel(const uint4* from, int64_t count, uint32_t* sink) {
  uint32_t sum = 0;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + 7 * step < count; i += 8 * step) {
    uint4 x[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) x[k] = __ldcs(from + i + k * step);
#pragma unroll
    for (int k = 0; k < 8; ++k) sum ^= x[k].x ^ x[k].y ^ x[k].z ^ x[k].w;
  }
  for (; i < count; i += step) sum ^= from[i].x;
  if (sum == 0x12345678u) *sink = sum;
}
}  // namespace

/// Reads `bytes` of device memory once.
extern "C" int tilewise_read(const void* from, int64_t bytes, void* sink, cudaStream_t stream) {
  read_kernel<<<132 * 4, 512, 0, stream>>>(static_cast<const uint4*>(from), bytes / 16, static_cast<uint32_t*>(sink));
  return cudaGetLastError();
}
