// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "tests/attend/attend_testing.h"
#include "tests/attend/random_case.h"
#include "tests/machine/cuda/host_warps.h"
#include "tilewise/machine/cuda/numbers.h"

// What the tests of attend/cuda on the CPU share: kernels by dtype and head_dim, workspaces, cases that reach every kernel.
namespace tilewise::attend::testing {

using tilewise::testing::HostWarps;
using tilewise::testing::launch_on_host;

/// f.operator()<Element, HeadDim>() of the kernel that takes this.
template <class F>
void with_kernel(Dtype dtype, int64_t head_dim, F&& f) {
  const auto with = [&]<class E>() {
    if (head_dim <= 64) return f.template operator()<E, 64>();
    if (head_dim <= 128) return f.template operator()<E, 128>();
    f.template operator()<E, 256>();
  };
  switch (dtype) {
    case Dtype::bf16: return with.template operator()<machine::cuda::Bf16>();
    case Dtype::f16: return with.template operator()<machine::cuda::F16>();
    default: with.template operator()<machine::cuda::F32>();
  }
}

/// Memory of NaN that ends where a page begins that nobody may touch.
class Workspace {
 public:
  explicit Workspace(size_t bytes) : bytes_(bytes) { std::fill(bytes_.span().begin(), bytes_.span().end(), static_cast<unsigned char>(0xff)); }
  unsigned char* data() const { return bytes_.span().data(); }

 private:
  GuardedBytes bytes_;
};

inline Dtype dtype_of(uint64_t seed) { return std::array{Dtype::bf16, Dtype::f16, Dtype::f32}[seed % 3]; }

/// Problems that between them are taken by the kernel of each dtype and head_dim.
inline std::vector<ProblemOptions> options_of_every_kernel() {
  std::vector<ProblemOptions> all;
  for (const int64_t head_dim : {64, 128, 256}) {
    for (const Dtype dtype : {Dtype::bf16, Dtype::f16, Dtype::f32}) {
      ProblemOptions o;
      o.plan = {.seqlen_q = 150, .seqlen_k = 180, .heads_q = 4, .heads_kv = 2, .tile = 128, .groups = 4, .longest_run = 90, .has_picked = true};
      o.dtype = dtype;
      o.head_dim = head_dim;
      all.push_back(o);
    }
  }
  return all;
}

}  // namespace tilewise::attend::testing
