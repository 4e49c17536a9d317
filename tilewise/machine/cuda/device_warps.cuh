// SPDX-License-Identifier: Apache-2.0
// The warps that run on a GPU from compute capability 8.0 on (see warps.h).
#pragma once

#include <cstdint>

#include "tilewise/machine/cuda/device_block.cuh"
#include "tilewise/machine/cuda/mma.h"
#include "tilewise/machine/cuda/warps.h"

namespace tilewise::machine::cuda {

class DeviceWarps : public DeviceBlock {
 public:
  using DeviceBlock::DeviceBlock;

  template <class T, int kCount>
  class Registers {
   public:
    explicit __device__ Registers(const DeviceWarps&) {}
    __device__ T& operator()(int, int i) { return numbers_[i]; }
    __device__ const T& operator()(int, int i) const { return numbers_[i]; }
    static constexpr int count() { return kCount; }

   private:
    T numbers_[kCount];
  };

  template <class Step>
  __device__ void lanes(Step&& step) {
    step(static_cast<int>(threadIdx.x));
  }
  __device__ void sync() { __syncthreads(); }

  template <int kCount, class Fold>
  __device__ void quad(Registers<float, kCount>& numbers, const Fold& fold) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      float& x = numbers(0, i);
      x = fold(x, __shfl_xor_sync(0xFFFFFFFFu, x, 1));
      x = fold(x, __shfl_xor_sync(0xFFFFFFFFu, x, 2));
    }
  }

  template <bool kIsTransposed, class Address>
  __device__ void load_matrices(Registers<uint32_t, 4>& out, const Address& address) {
    const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(address(static_cast<int>(threadIdx.x))));
    uint32_t &a = out(0, 0), &b = out(0, 1), &c = out(0, 2), &d = out(0, 3);
    if constexpr (kIsTransposed) {
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                   : "r"(from)
                   : "memory");
    } else {
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "r"(from) : "memory");
    }
  }

  template <class Element, int kAcc, int kA, int kB>
  __device__ void multiply(Registers<float, kAcc>& acc, int at, const Registers<uint32_t, kA>& a, int a_at, const Registers<uint32_t, kB>& b,
                           int b_at) {
    mma_16x8x16<Element::kHalf>(
        0, [&](int thread) -> float(&)[4] { return *reinterpret_cast<float(*)[4]>(&acc(thread, at)); },
        [&](int thread) { return MmaA{{a(thread, a_at), a(thread, a_at + 1), a(thread, a_at + 2), a(thread, a_at + 3)}}; },
        [&](int thread) { return MmaB{{b(thread, b_at), b(thread, b_at + 1)}}; });
  }

  __device__ void copy16(void* to, const void* from, bool is_there) { begin_copy_16(to, from, is_there); }
  __device__ void close_copies() { commit_copies(); }
  template <int kUnderWay>
  __device__ void await_copies() {
    wait_copies<kUnderWay>();
  }
};

}  // namespace tilewise::machine::cuda
