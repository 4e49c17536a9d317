// SPDX-License-Identifier: Apache-2.0
// The block of threads that runs on a GPU (see block.h).
#pragma once

#include <cuda_runtime.h>

#include "tilewise/machine/cuda/block.h"

namespace tilewise::machine::cuda {

class DeviceBlock {
 public:
  explicit __device__ DeviceBlock(unsigned char* shared) : shared_(shared) {}

  __device__ int threads() const { return static_cast<int>(blockDim.x); }
  __device__ long index() const { return blockIdx.x; }
  __device__ unsigned char* shared() const { return shared_; }

  template <class Step>
  __device__ void each(Step&& step) {
    step(static_cast<int>(threadIdx.x));
    __syncthreads();
  }
  template <class Step>
  __device__ bool any(Step&& step) {
    return __syncthreads_or(step(static_cast<int>(threadIdx.x)) ? 1 : 0) != 0;
  }
  template <class T>
  struct Registers {
    explicit __device__ Registers(const DeviceBlock&) {}
    __device__ T& operator[](int) { return own; }
    T own;
  };
  template <class Step>
  __device__ void warps(Step&& step) {
    step(static_cast<int>(threadIdx.x) / 32);
  }
  template <class Step>
  __device__ void lanes(int, Step&& step) {
    step(static_cast<int>(threadIdx.x));
  }
  template <class At, class Fold>
  __device__ void fold_lanes(int, int lanes, const At& at, const Fold& fold) {
    const int thread = static_cast<int>(threadIdx.x);
    for (int step = 1; step < lanes; step *= 2) at(thread) = fold(at(thread), __shfl_xor_sync(0xFFFFFFFFu, at(thread), step));
  }
  template <class T>
  __device__ T get(const T& word) {
    const T value = word;
    __syncthreads();
    return value;
  }
  __device__ void match(const int* keys, Match* out) {
    const unsigned alike = __match_any_sync(0xFFFFFFFFu, keys[threadIdx.x]);
    out[threadIdx.x] = {__popc(alike & ((1u << (threadIdx.x % 32)) - 1)), __popc(alike)};
    __syncthreads();
  }
  template <class T>
  __device__ T add(T* to, T value) {
    return atomicAdd(to, value);
  }
  template <class T>
  __device__ void min(T* to, T value) {
    atomicMin(to, value);
  }
  template <class T>
  __device__ void max(T* to, T value) {
    atomicMax(to, value);
  }
  template <class T>
  __device__ void unite(T* to, T bits) {
    atomicOr(to, bits);
  }
  template <class T>
  __device__ T claim(T* word, T value) {
    return atomicCAS(word, T{0}, value);
  }
  template <class T>
  __device__ void copy(T* to, const T* from) {
    static_assert(sizeof(T) == 8);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))), "l"(from) : "memory");
  }
  __device__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

 private:
  unsigned char* shared_;
};

}  // namespace tilewise::machine::cuda
