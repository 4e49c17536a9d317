// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tests/machine/cuda/host_block.h"
#include "tilewise/select/cuda/last_queries_args.h"

namespace tilewise::testing {

template <int kDtype>
void run_last_queries_as(const select::cuda::LastQueriesLaunch& launch, unsigned seed) {
  using namespace select::cuda;
  launch_on_host(launch.product_blocks, kLastThreads, kLastSharedBytes, seed, [&](auto& block) { last_stats_kernel<kDtype>(block, launch.args); });
  launch_on_host(launch.shift_blocks, kSumThreads, 0, seed, [&](auto& block) { last_shift_kernel(block, launch.args); });
  launch_on_host(launch.product_blocks, kLastThreads, kLastSharedBytes, seed, [&](auto& block) { last_sums_kernel<kDtype>(block, launch.args); });
  launch_on_host(launch.total_blocks, kSumThreads, 0, seed, [&](auto& block) { last_totals_kernel(block, launch.args); });
}

/// The kernels of last_query_sums() on the CPU, in their order.
inline void run_last_queries(const select::cuda::LastQueriesLaunch& launch, unsigned seed) {
  if (launch.dtype == 0) run_last_queries_as<0>(launch, seed);
  if (launch.dtype == 1) run_last_queries_as<1>(launch, seed);
  if (launch.dtype == 2) run_last_queries_as<2>(launch, seed);
}

}  // namespace tilewise::testing
