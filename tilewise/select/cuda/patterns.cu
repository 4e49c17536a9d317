// SPDX-License-Identifier: Apache-2.0
#include "tilewise/machine/cuda/device_block.cuh"
#include "tilewise/plan/cuda/launch.h"
#include "tilewise/select/cuda/launch.h"

namespace tilewise::select::cuda {
namespace {

using machine::cuda::DeviceBlock;

extern __shared__ __align__(128) unsigned char shared_memory[];

template <int kDtype>
__global__ void __launch_bounds__(kLastThreads, 2) last_stats(const __grid_constant__ LastQueriesArgs args) {
  DeviceBlock block(shared_memory);
  last_stats_kernel<kDtype>(block, args);
}

__global__ void __launch_bounds__(kSumThreads) last_shift(const __grid_constant__ LastQueriesArgs args) {
  DeviceBlock block(shared_memory);
  last_shift_kernel(block, args);
}

template <int kDtype>
__global__ void __launch_bounds__(kLastThreads, 2) last_sums(const __grid_constant__ LastQueriesArgs args) {
  DeviceBlock block(shared_memory);
  last_sums_kernel<kDtype>(block, args);
}

__global__ void __launch_bounds__(kSumThreads) last_totals(const __grid_constant__ LastQueriesArgs args) {
  DeviceBlock block(shared_memory);
  last_totals_kernel(block, args);
}

__global__ void __launch_bounds__(kLineThreads) best_lines(const __grid_constant__ BestLinesArgs args) {
  DeviceBlock block(shared_memory);
  best_lines_kernel(block, args);
}

template <bool kWrites>
__global__ void __launch_bounds__(kLineRowThreads) line_rows(const __grid_constant__ LineRowsArgs args) {
  DeviceBlock block(shared_memory);
  line_rows_kernel<kWrites>(block, args);
}

__global__ void __launch_bounds__(kFlexThreads) flex(const __grid_constant__ FlexArgs args) {
  DeviceBlock block(shared_memory);
  flex_kernel(block, args);
}

__global__ void __launch_bounds__(kFlexThreads) flex_map(const __grid_constant__ FlexArgs args) {
  DeviceBlock block(shared_memory);
  flex_map_kernel(block, args);
}

/// Launches a kernel with shared memory that it may have to ask for.
template <class Args>
cudaError_t launch(void (*kernel)(Args), long blocks, int threads, unsigned long shared, const Args& args, cudaStream_t stream) {
  if (blocks == 0) return cudaSuccess;
  if (shared > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  kernel<<<static_cast<unsigned>(blocks), threads, shared, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t launch_last_queries(const LastQueriesLaunch& last, cudaStream_t stream) {
  const auto of_dtype = [&](auto* f32, auto* bf16, auto* f16) { return last.dtype == 0 ? f32 : last.dtype == 1 ? bf16 : f16; };
  auto* const stats = of_dtype(last_stats<0>, last_stats<1>, last_stats<2>);
  auto* const sums = of_dtype(last_sums<0>, last_sums<1>, last_sums<2>);
  if (const cudaError_t error = launch(stats, last.product_blocks, kLastThreads, kLastSharedBytes, last.args, stream); error != cudaSuccess)
    return error;
  if (const cudaError_t error = launch(last_shift, last.shift_blocks, kSumThreads, 0, last.args, stream); error != cudaSuccess) return error;
  if (const cudaError_t error = launch(sums, last.product_blocks, kLastThreads, kLastSharedBytes, last.args, stream); error != cudaSuccess)
    return error;
  return launch(last_totals, last.total_blocks, kSumThreads, 0, last.args, stream);
}

}  // namespace

cudaError_t launch_patterns(const PatternLaunch& all, cudaStream_t stream) {
  const unsigned long shared = line_rows_shared_bytes(all.rows.words);
  if (all.has_lines && all.best.seqlen_k > 0) {
    if (const cudaError_t error = launch_last_queries(all.last, stream); error != cudaSuccess) return error;
    const long heads = static_cast<long>(all.last.args.batch_heads);
    if (const cudaError_t error = launch(best_lines, 2 * heads, kLineThreads, best_lines_shared_bytes(), all.best, stream); error != cudaSuccess)
      return error;
  }
  if (all.has_tiles) {
    if (const cudaError_t error = launch_mean_pool(all.pool, stream); error != cudaSuccess) return error;
  }
  if (const cudaError_t error = launch_choose(all.plan, stream); error != cudaSuccess) return error;
  if (all.has_line_rows) {
    if (const cudaError_t error = launch(line_rows<false>, all.plan.blocks, kLineRowThreads, shared, all.rows, stream); error != cudaSuccess)
      return error;
  }
  if (const cudaError_t error = plan::cuda::launch_place_rows(all.plan.place, stream); error != cudaSuccess) return error;
  if (const cudaError_t error = launch_write_runs(all.plan, stream); error != cudaSuccess) return error;
  return all.has_line_rows ? launch(line_rows<true>, all.plan.blocks, kLineRowThreads, shared, all.rows, stream) : cudaSuccess;
}

cudaError_t launch_flex(const FlexLaunch& all, cudaStream_t stream) {
  const auto heads = static_cast<long>(all.last.args.batch_heads);
  if (const cudaError_t error = launch_last_queries(all.last, stream); error != cudaSuccess) return error;
  if (const cudaError_t error = launch_mean_pool(all.last_mean, stream); error != cudaSuccess) return error;
  if (const cudaError_t error = launch_mean_pool(all.map, stream); error != cudaSuccess) return error;
  if (const cudaError_t error = launch(flex, heads, kFlexThreads, flex_shared_bytes(all.args.tiles), all.args, stream); error != cudaSuccess)
    return error;
  if (const cudaError_t error = launch(flex_map, heads, kFlexThreads, flex_map_shared_bytes(), all.args, stream); error != cudaSuccess) return error;
  return launch_plan(all.plan, stream);
}

}  // namespace tilewise::select::cuda
