// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <type_traits>

#include "tilewise/attend/sm90/decode_cluster.cuh"
#include "tilewise/attend/sm90/decode_consume.cuh"
#include "tilewise/attend/sm90/decode_light.cuh"
#include "tilewise/attend/sm90/decode_produce.cuh"

namespace tilewise::attend::sm90 {
namespace {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1) attend_sm90_decode_kernel(const __grid_constant__ DecodeArgs args) {
  extern __shared__ uint8_t raw[];
  auto& shared = *reinterpret_cast<DecodeShared<C>*>(raw + (-machine::sm90::smem_address(raw) & 1023u));
  if (threadIdx.x == 0) {
    machine::sm90::prefetch_tensormap(&args.k.map);
    if (args.has_v) machine::sm90::prefetch_tensormap(&args.v.map);
    for (int stage = 0; stage < C::kStages; ++stage) {
      machine::sm90::mbarrier_init(&shared.ring.full[stage], C::kHasKeyScales ? 33 : 1);  // the lanes' copies of scales arrive, too
      machine::sm90::mbarrier_init(&shared.ring.empty[stage], C::kConsumers);
    }
    machine::sm90::fence_mbarrier_init();
  }
  __syncthreads();
  machine::sm90::griddepcontrol_wait();
  if constexpr (C::kIsLight) {
    if (args.light.has_early_merge) machine::sm90::griddepcontrol_launch_dependents();
  }
  if constexpr (C::kIsCluster) {
    int unit = 0, parts = 0;
    const bool is_consumer = threadIdx.x / 32 < C::kConsumers;
    if (is_consumer) {
      DecodeConsumer<C> consumer(args, shared);
      consumer.run();
      unit = consumer.unit_of_cluster;
      parts = consumer.parts_of_cluster;
    } else {
      DecodeLightProducer<C>(args, shared).run();
    }
    __syncwarp();
    machine::sm90::griddepcontrol_launch_dependents();
    machine::sm90::barrier_cluster();  // every block has its parts
    if (is_consumer) merge_in_cluster<C>(args, shared, unit, parts);
    __syncwarp();
    machine::sm90::barrier_cluster();  // and its shared memory until all have read it
    return;
  }
  if (threadIdx.x / 32 >= C::kConsumers) {
    if constexpr (C::kIsLight) {
      DecodeLightProducer<C>(args, shared).run();
    } else {
      DecodeProducer<C>(args, shared).run();
    }
  } else {
    DecodeConsumer<C>(args, shared).run();
  }
  // Not earlier: the merge would crowd on the multiprocessors that happen to be idle.
  machine::sm90::griddepcontrol_launch_dependents();
}

// A thread block a row: its parts in order, eight at a time.
__global__ void __launch_bounds__(256) attend_sm90_decode_merge_kernel(const __grid_constant__ DecodeMergeArgs args) {
  constexpr int kWarps = 8, kOfLane = kDecodeMostParts / 32, kOfWarp = kDecodeMostParts / kWarps;
  __shared__ float4 sums[kWarps][32];
  machine::sm90::griddepcontrol_launch_dependents();
  machine::sm90::griddepcontrol_wait();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int unit = blockIdx.x / args.units.rows, row = blockIdx.x % args.units.rows;
  const DecodeUnit at(args.units, unit);
  const int head = at.head + row / args.units.seqlen_q, query = row % args.units.seqlen_q;
  const int2 queries = at.queries(args.units);
  if (query < queries.x || query >= queries.y) return;
  const int parts = min(args.parts[unit], args.units.most_parts);
  const int64_t first = int64_t{unit} * args.units.most_parts * args.units.rows + row;
  float2 stats[kOfLane];
#pragma unroll
  for (int i = 0; i < kOfLane; ++i) {
    const int part = i * 32 + lane;
    stats[i] = part < parts ? args.stats[first + int64_t{part} * args.units.rows] : float2{-INFINITY, 0};
  }
  const float sink = args.sink_logit ? args.sink_logit[head] * kLog2E : -INFINITY;
  const int quads = args.out ? args.head_dim / 4 : 1;  // of channels
  for (int quad = lane; quad - lane < quads; quad += 32) {
    float4 part_sums[kOfWarp] = {};
    if (args.out) {
#pragma unroll
      for (int i = 0; i < kOfWarp; ++i) {
        const int part = i * kWarps + warp;
        if (part < parts && quad < quads) {
          part_sums[i] = reinterpret_cast<const float4*>(args.sums + (first + int64_t{part} * args.units.rows) * args.head_dim)[quad];
        }
      }
    }
    float most = sink;
#pragma unroll
    for (int i = 0; i < kOfLane; ++i) most = fmaxf(most, stats[i].x);
    for (int other = 16; other > 0; other /= 2) most = fmaxf(most, __shfl_xor_sync(kDecodeLanes, most, other));
    const auto weight = [most](float from) { return from == most ? 1.0f : machine::sm90::ex2_approx(from - most); };
    float weights[kOfLane], total = 0;
#pragma unroll
    for (int i = 0; i < kOfLane; ++i) {
      weights[i] = weight(stats[i].x);
      total += weights[i] * stats[i].y;
    }
    for (int other = 16; other > 0; other /= 2) total += __shfl_xor_sync(kDecodeLanes, total, other);
    if (args.sink_logit) total += weight(sink);
    const float inverse = total == 0 ? 0 : 1 / total;
    if (args.out) {
      float4 sum = {};
#pragma unroll
      for (int i = 0; i < kOfWarp; ++i) {
        const int part = i * kWarps + warp;
        const float mine = __shfl_sync(kDecodeLanes, weights[part / 32], part % 32);
        if (part >= parts) continue;
        sum.x += mine * part_sums[i].x;
        sum.y += mine * part_sums[i].y;
        sum.z += mine * part_sums[i].z;
        sum.w += mine * part_sums[i].w;
      }
      sums[warp][lane] = sum;
      __syncthreads();
      if (warp == 0) {
        for (int other = 1; other < kWarps; ++other) {
          const float4 more = sums[other][lane];
          sum.x += more.x;
          sum.y += more.y;
          sum.z += more.z;
          sum.w += more.w;
        }
        const int64_t place = at.batch * args.out_stride[0] + head * args.out_stride[1] + query * args.out_stride[2];
        const float values[4] = {sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int channel = quad * 4 + i;
          if (channel >= args.head_dim_v) continue;
          if (args.is_bf16) {
            static_cast<bf16*>(args.out)[place + channel] = __float2bfloat16_rn(values[i]);
          } else {
            static_cast<f16*>(args.out)[place + channel] = __float2half_rn(values[i]);
          }
        }
      }
      __syncthreads();
    }
    if (args.lse && threadIdx.x == 0 && quad == lane) {
      args.lse[at.batch * args.lse_stride[0] + head * args.lse_stride[1] + query * args.lse_stride[2]] = (most + log2f(total)) * kLn2;
    }
  }
}

// A band wider than any tensor is cut to what 64-bit token arithmetic can add up.
Band cut(const Band& band) {
  const auto cut_side = [](int64_t x) { return std::clamp(x, -(int64_t{1} << 40), int64_t{1} << 40); };
  return {cut_side(band.left), cut_side(band.right), cut_side(band.sink)};
}

int gcd(int a, int b) { return b == 0 ? a : gcd(b, a % b); }

DecodeUnits units_of(const DecodeInput& input) {
  // A unit's heads share every list.
  int heads = input.heads_q / input.heads_kv;
  for (const RunListView* list : {&input.masked, &input.whole, &input.picked}) {
    if (list->begin) heads = gcd(gcd(heads, input.heads_q / list->begin_heads), input.heads_q / list->count_heads);
  }
  constexpr int kMostRows = 64;
  while (heads * input.seqlen_q > kMostRows) {
    int next = heads - 1;
    while (heads % next != 0) --next;
    heads = next;
  }
  DecodeUnits units{};
  units.batch = input.batch;
  units.heads_q = input.heads_q;
  units.heads_kv = input.heads_kv;
  units.heads = heads;
  units.seqlen_q = input.seqlen_q;
  units.num_rows = input.edge ? input.num_rows : 1;
  units.count = input.batch * (input.heads_q / heads) * units.num_rows;
  units.rows = heads * input.seqlen_q;
  units.edge = input.edge;
  return units;
}

// Large boxes cost fewer copies, small ones waste less of a short run or page.
DecodeBoxes boxes_of(const DecodeInput& input) {
  int grain = kDecodeStage;
  for (const RunListView* list : {&input.masked, &input.whole}) {
    if (list->begin) grain = std::min(grain, list->grain);
  }
  if (input.picked.begin) grain = 1;
  DecodeBoxes boxes{};
  const int page = input.page > 0 ? input.page : 1 << 30;
  boxes.box_shift = 4;
  while (1 << boxes.box_shift < kDecodeStage && 2 << boxes.box_shift <= std::min(grain, page)) ++boxes.box_shift;
  boxes.box = 1 << boxes.box_shift;
  boxes.page = Divisor(page);
  boxes.boxes_per_page = Divisor((page + boxes.box - 1) / boxes.box);
  return boxes;
}

int most_parts(const DecodeInput& input, const DecodeBoxes& boxes) {
  // Of a plan each key may be a box of its own, a band has two ragged ends at most in each of its two runs.
  const int64_t pages = input.page > 0 ? (input.capacity + input.page - 1) / input.page : 1;
  const int64_t of_dense = input.page > 0 ? pages * boxes.boxes_per_page.divisor : (input.capacity + boxes.box - 1) / boxes.box;
  const int64_t most = input.is_dense ? of_dense + 2 : input.capacity;
  return decode_parts(static_cast<int>(std::min<int64_t>(most, INT32_MAX / 2)), boxes.box_shift).count == 1
             ? 1
             : static_cast<int>(std::min<int64_t>(kDecodeMostParts, (most * boxes.box + kDecodeLeastKeys - 1) / kDecodeLeastKeys));
}

int padded_head_dim(const DecodeInput& input) {
  const int64_t channels = std::max(input.k.channels, input.v.data ? input.v.channels : 0);
  return channels <= 64 ? 64 : channels <= 128 ? 128 : 256;
}

struct Workspace {
  int64_t stats, parts, bytes;  // offsets, the sums come first
};
Workspace workspace_of(const DecodeInput& input) {
  const DecodeUnits units = units_of(input);
  const int64_t rows = int64_t{units.count} * most_parts(input, boxes_of(input)) * units.rows;
  Workspace w{};
  w.stats = input.v.data ? rows * padded_head_dim(input) * static_cast<int64_t>(sizeof(float)) : 0;
  w.parts = w.stats + rows * static_cast<int64_t>(sizeof(float2));
  w.bytes = w.parts + units.count * static_cast<int64_t>(sizeof(int32_t));
  return w;
}

bool make_side(DecodeArgs::Side& side, const DecodeStore& store, const DecodeInput& input, int box, int padded) {
  const bool is_plain = store.storage == DecodeStorage::plain;
  const int bits = is_plain ? 16 : store.storage == DecodeStorage::int8 ? 8 : 4;
  const int64_t kernel_bytes = padded * bits / 8, row_bytes = store.channels * bits / 8, width = std::min<int64_t>(kernel_bytes, 128);
  const int64_t element = is_plain ? 2 : 1;
  side.scale = store.scale;
  side.zero = store.zero;
  side.table = store.table;
  side.table_stride_batch = store.table_stride_batch;
  side.table_stride_head = store.table_stride_head;
  side.entries = static_cast<int>(store.entries);
  side.group_tokens = Divisor(store.group_tokens);
  side.head_step = store.heads == 1 ? 0 : 1;
  if (store.heads == 1) side.scale.stride_head = side.zero.stride_head = 0;
  side.is_flat = row_bytes != kernel_bytes;
  const auto encode = machine::sm90::encode_tiled();
  if (!encode) return false;
  // An axis of length 1 may carry any stride; the engine wants a plausible one.
  const int64_t rows = std::max<int64_t>(store.rows, 1);
  const int64_t stride_row = rows > 1 ? store.stride_row : (row_bytes + 15) / 16 * 16;
  const int64_t stride_head = store.heads > 1 ? store.stride_head : stride_row * rows;
  const int64_t stride_entry = store.entries > 1 ? store.stride_entry : stride_head * store.heads;
  const auto u = [](int64_t x) { return static_cast<cuuint64_t>(x); };
  const cuuint64_t sizes[5] = {u((side.is_flat ? row_bytes : width) / element), u(rows), u(side.is_flat ? 1 : kernel_bytes / width), u(store.heads),
                               u(std::max<int64_t>(store.entries, 1))};
  const cuuint64_t strides[4] = {u(stride_row), 128, u(stride_head), u(stride_entry)};
  const cuuint32_t boxes[5] = {static_cast<cuuint32_t>(width / element), static_cast<cuuint32_t>(box),
                               static_cast<cuuint32_t>(side.is_flat ? 1 : kernel_bytes / width), 1, 1};
  const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  const auto type = !is_plain ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : input.is_bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const auto swizzle = width == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : width == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_32B;
  return encode(&side.map, type, 5, store.data, sizes, strides, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// Thread blocks that share a unit. One sequence: as many as there are multiprocessors for, with no share empty that a short list would leave. Several,
// whose lengths may differ: shares small enough to even out; a power of two, since the numbers of parts are such as a rule.
int strands_of(const DecodeUnits& units, int multiprocessors) {
  if (units.batch == 1) return std::clamp(multiprocessors / units.count, 1, units.most_parts);
  int strands = 1;
  while (2 * strands * units.count <= 8 * multiprocessors && 2 * strands <= units.most_parts) strands *= 2;
  return strands;
}

// All blocks with equally many shares, rather than all multiprocessors with a block: a few less keep the memory busy all the same.
int blocks_of(const DecodeUnits& units, int strands, int multiprocessors) {
  const int64_t items = int64_t{units.count} * strands, rounds = (items + multiprocessors - 1) / multiprocessors;
  return static_cast<int>((items + rounds - 1) / rounds);
}

cudaError_t launch(const void* kernel, int blocks, int threads, size_t smem, bool is_dependent, void** parameters, cudaStream_t stream) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = smem;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = is_dependent ? 1 : 0;
  return cudaLaunchKernelExC(&config, kernel, parameters);
}

template <class C>
cudaError_t run(DecodeArgs& args, const DecodeInput& input, int blocks, cudaStream_t stream) {
  if (!make_side(args.k, input.k, input, args.boxes.box, C::kHeadDim)) return cudaErrorInvalidValue;
  if (args.has_v && !make_side(args.v, input.v, input, args.boxes.box, C::kHeadDim)) return cudaErrorInvalidValue;
  const auto kernel = reinterpret_cast<const void*>(attend_sm90_decode_kernel<C>);
  constexpr size_t kSmem = sizeof(DecodeShared<C>) + 1024;
  static_assert(kSmem <= 232448, "shared memory of a multiprocessor");
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSmem);
  if (error != cudaSuccess) return error;
  void* parameters[] = {&args};
  return launch(kernel, blocks, C::kThreads, kSmem, (input.dependent & 1) != 0, parameters, stream);
}

template <int HeadDim, class T>
cudaError_t run_storage(DecodeArgs& args, const DecodeInput& input, int blocks, cudaStream_t stream) {
  switch (input.k.storage) {
    case DecodeStorage::plain: return run<DecodeConfig<HeadDim, T, DecodeStorage::plain>>(args, input, blocks, stream);
    case DecodeStorage::int8: return run<DecodeConfig<HeadDim, T, DecodeStorage::int8>>(args, input, blocks, stream);
    case DecodeStorage::int4: return run<DecodeConfig<HeadDim, T, DecodeStorage::int4>>(args, input, blocks, stream);
  }
  return cudaErrorInvalidValue;
}

cudaLaunchConfig_t cluster_config(int blocks, int threads, size_t smem, cudaLaunchAttribute* attributes, cudaStream_t stream) {
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = kDecodeClusterBlocks;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = smem;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 1;
  return config;
}

/// A unit a cluster. `is_taken` false: the card does not hold so many clusters at once, and nothing was launched.
template <class C>
cudaError_t run_clusters(DecodeArgs& args, const DecodeInput& input, bool& is_taken, cudaStream_t stream) {
  is_taken = false;
  const auto kernel = reinterpret_cast<const void*>(attend_sm90_decode_kernel<C>);
  constexpr size_t kSmem = sizeof(DecodeShared<C>) + 1024;
  static_assert(kSmem <= 232448, "shared memory of a multiprocessor");
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSmem);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2]{};
  cudaLaunchConfig_t config = cluster_config(args.units.count * kDecodeClusterBlocks, C::kThreads, kSmem, attributes, stream);
  static std::atomic<int> known{-1};  // clusters that a Hopper card holds; it is asked once, since asking takes longer than the call
  int most = known;
  if (most < 0) {
    error = cudaOccupancyMaxActiveClusters(&most, kernel, &config);
    if (error != cudaSuccess) return error;
    known = most;
  }
  if (most < args.units.count) return cudaSuccess;
  is_taken = true;
  if (!make_side(args.k, input.k, input, args.boxes.box, C::kHeadDim)) return cudaErrorInvalidValue;
  if (!make_side(args.v, input.v, input, args.boxes.box, C::kHeadDim)) return cudaErrorInvalidValue;
  config.numAttrs = (input.dependent & 1) != 0 ? 2 : 1;
  args.strands = kDecodeClusterBlocks;
  void* parameters[] = {&args};
  return cudaLaunchKernelExC(&config, kernel, parameters);
}

bool wants_clusters(const DecodeInput& input, const DecodeUnits& units) {
  return (input.variant & kDecodeCluster) != 0 && decode_is_light(input) && units.batch == 1 && units.count >= 6 && units.count <= 8 &&
         input.k.channels == 128 && input.is_bf16;
}

cudaError_t run_clusters(DecodeArgs& args, const DecodeInput& input, bool& is_taken, cudaStream_t stream) {
  switch (input.k.storage) {
    case DecodeStorage::plain: return run_clusters<DecodeConfig<128, bf16, DecodeStorage::plain, DecodeKind::cluster>>(args, input, is_taken, stream);
    case DecodeStorage::int8: return run_clusters<DecodeConfig<128, bf16, DecodeStorage::int8, DecodeKind::cluster>>(args, input, is_taken, stream);
    case DecodeStorage::int4: return run_clusters<DecodeConfig<128, bf16, DecodeStorage::int4, DecodeKind::cluster>>(args, input, is_taken, stream);
  }
  return cudaErrorInvalidValue;
}

template <int HeadDim, class T>
cudaError_t run_light(DecodeArgs& args, const DecodeInput& input, int blocks, cudaStream_t stream) {
  switch (input.k.storage) {
    case DecodeStorage::plain: return run<DecodeConfig<HeadDim, T, DecodeStorage::plain, DecodeKind::light>>(args, input, blocks, stream);
    case DecodeStorage::int8: return run<DecodeConfig<HeadDim, T, DecodeStorage::int8, DecodeKind::light>>(args, input, blocks, stream);
    case DecodeStorage::int4: return run<DecodeConfig<HeadDim, T, DecodeStorage::int4, DecodeKind::light>>(args, input, blocks, stream);
  }
  return cudaErrorInvalidValue;
}

template <int HeadDim>
cudaError_t run_dtype(DecodeArgs& args, const DecodeInput& input, int blocks, cudaStream_t stream) {
  if constexpr (HeadDim <= 128) {
    if ((input.variant & kDecodeLight) != 0 && decode_is_light(input)) {
      return input.is_bf16 ? run_light<HeadDim, bf16>(args, input, blocks, stream) : run_light<HeadDim, f16>(args, input, blocks, stream);
    }
  }
  return input.is_bf16 ? run_storage<HeadDim, bf16>(args, input, blocks, stream) : run_storage<HeadDim, f16>(args, input, blocks, stream);
}

}  // namespace

bool decode_is_light(const DecodeInput& input) {
  const DecodeUnits units = units_of(input);
  if (input.seqlen_q != 1 || units.num_rows != 1 || units.rows > 8 || input.softcap != 0 || !input.v.data || boxes_of(input).box != kDecodeStage)
    return false;
  if (input.edge || input.picked.begin || input.masked.rows || input.whole.rows) return false;
  if (input.page % kDecodeStage != 0 || input.k.channels != input.v.channels || (input.k.channels != 64 && input.k.channels != 128)) return false;
  for (int head = 0; head < input.heads_q; ++head) {
    const Band& band = input.bands[head < GeneralArgs::kHeads ? input.head_class[head] : 0];
    if (band.left < input.capacity || band.right < 0) return false;
  }
  if (input.k.storage == DecodeStorage::plain) return true;
  for (const DecodeStore* store : {&input.k, &input.v}) {
    if (store->zero.data || (store->scale.stride_group != 0 && store->group_tokens % kDecodeStage != 0)) return false;
  }
  return reinterpret_cast<uintptr_t>(input.q) % 16 == 0 && input.q_stride[0] % 8 == 0 && input.q_stride[1] % 8 == 0;
}

size_t decode_workspace(const DecodeInput& input) { return static_cast<size_t>(workspace_of(input).bytes); }

const char* decode_refusal(const DecodeInput& input) {
  if (input.v.data && input.v.storage != input.k.storage) return "k and v are stored in different ways, which is not built; store both alike";
  if (std::max(input.k.channels, input.v.channels) > 256) return "head_dim is above 256";
  if (input.k.channels % 2 != 0) return "head_dim is odd; fill it up with a zero";
  for (const DecodeStore* store : {&input.k, &input.v}) {
    if (!store->data) continue;
    const int64_t strides[3] = {store->entries > 1 ? store->stride_entry : 16, store->heads > 1 ? store->stride_head : 16,
                                store->rows > 1 ? store->stride_row : 16};
    for (const int64_t stride : strides) {
      if (stride <= 0 || stride % 16 != 0) return "a stride of k or v is no multiple of 16 bytes above 0; copy it with D padded";
    }
    if (reinterpret_cast<uintptr_t>(store->data) % 16 != 0) return "k or v lies at an address that is not a multiple of 16 bytes; copy it";
  }
  if (reinterpret_cast<uintptr_t>(input.q) % 4 != 0 || input.q_stride[0] % 2 != 0 || input.q_stride[1] % 2 != 0 || input.q_stride[2] % 2 != 0) {
    return "q has an odd stride or address; copy it";
  }
  return nullptr;
}

cudaError_t attend_sm90_decode(const DecodeInput& input, cudaStream_t stream) {
  if (decode_refusal(input)) return cudaErrorInvalidValue;
  int device = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const Workspace w = workspace_of(input);
  DecodeArgs args{};
  args.boxes = boxes_of(input);
  args.units = units_of(input);
  args.units.most_parts = most_parts(input, args.boxes);
  args.q = input.q;
  std::copy(input.q_stride, input.q_stride + 3, args.q_stride);
  args.head_dim = static_cast<int>(input.k.channels);
  args.has_v = input.v.data != nullptr;
  args.capacity = input.capacity;
  args.lengths = input.lengths;
  args.lists[0] = input.masked;
  args.lists[1] = input.whole;
  args.lists[2] = input.picked;
  args.is_dense = input.is_dense;
  for (int c = 0; c < GeneralArgs::kClasses; ++c) args.bands[c] = cut(input.bands[c]);
  std::copy(input.head_class, input.head_class + GeneralArgs::kHeads, args.head_class);
  args.scale_log2 = input.softcap == 0 ? input.softmax_scale * kLog2E : kLog2E;
  args.softcap = input.softcap;
  args.softcap_scale = input.softcap == 0 ? 0 : input.softmax_scale / input.softcap;
  args.light = {Divisor(args.units.heads_q / args.units.heads), Divisor(input.heads_q / input.heads_kv), Divisor(input.heads_q),
                (input.variant & kDecodeEarlyMerge) != 0};
  args.strands = strands_of(args.units, multiprocessors);
  char* const workspace = static_cast<char*>(input.workspace);
  args.sums = reinterpret_cast<float*>(workspace);
  args.stats = reinterpret_cast<float2*>(workspace + w.stats);
  args.parts = reinterpret_cast<int32_t*>(workspace + w.parts);
  const int head_dim = padded_head_dim(input);
  DecodeMergeArgs merge{};
  merge.units = args.units;
  merge.sums = args.sums;
  merge.stats = args.stats;
  merge.parts = args.parts;
  merge.head_dim = head_dim;
  merge.head_dim_v = static_cast<int>(input.v.channels);
  merge.is_bf16 = input.is_bf16;
  merge.out = input.out;
  merge.lse = input.lse;
  std::copy(input.out_stride, input.out_stride + 3, merge.out_stride);
  std::copy(input.lse_stride, input.lse_stride + 3, merge.lse_stride);
  merge.sink_logit = input.sink_logit;
  if (wants_clusters(input, args.units)) {
    args.merge = merge;
    bool is_taken = false;
    error = run_clusters(args, input, is_taken, stream);
    if (error != cudaSuccess || is_taken) return error;
  }
  const int blocks = blocks_of(args.units, args.strands, multiprocessors);
  error = head_dim == 64    ? run_dtype<64>(args, input, blocks, stream)
          : head_dim == 128 ? run_dtype<128>(args, input, blocks, stream)
                            : run_dtype<256>(args, input, blocks, stream);
  if (error != cudaSuccess) return error;
  void* parameters[] = {&merge};
  return launch(reinterpret_cast<const void*>(attend_sm90_decode_merge_kernel), args.units.count * args.units.rows, 256, 0,
                (input.dependent & 2) != 0, parameters, stream);
}

}  // namespace tilewise::attend::sm90
