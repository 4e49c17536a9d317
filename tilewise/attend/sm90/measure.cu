// SPDX-License-Identifier: Apache-2.0
// The largest logit of every tile of a plan. A thread block owns up to 128 queries of a row: a producer warp cuts the row's runs at the borders of cells
// and copies their keys into a ring of stages, two consumer warpgroups own 64 queries each. While one takes maxima (about 170 cycles a stage) the other
// one's product (512 at 128 channels) fills the matrix units. Maxima are exact and have no order, so cells are raised by atomics and the bits are the same each time.
#include <algorithm>
#include <limits>

#include "tilewise/attend/sm90/consume.cuh"
#include "tilewise/attend/sm90/measure_args.h"
#include "tilewise/attend/sm90/measure_pieces.h"

namespace tilewise::attend::sm90 {
namespace {

template <int HeadDim, class T>
struct MeasureConfig {
  using Element = T;
  static constexpr int kHeadDim = HeadDim;
  static constexpr int kBlocks = HeadDim / 64;  // column blocks of 128 bytes
  static constexpr int kTileQ = 128, kTileK = 128;
  static constexpr int kStages = HeadDim == 256 ? 2 : 5;
  static constexpr int kConsumers = 2;
  static constexpr int kThreads = 128 * (1 + kConsumers);
  static constexpr int kConsumerRegisters = 232, kProducerRegisters = 40;
  static constexpr int kTileBytes = kTileK * HeadDim * 2;
};

struct MeasureStage {
  StageInfo info;
  int cell;
};
/// first < 0: no more.
struct MeasureItem {
  int batch, head, first, count;
};

template <class C>
struct alignas(1024) MeasureShared {
  uint8_t q[C::kConsumers][C::kBlocks][64 * 128];
  uint8_t k[C::kStages][C::kTileBytes];
  Ring<1> q_ring;
  Ring<C::kStages> k_ring;
  MeasureItem item;
  MeasureStage stage[C::kStages];
};

/// The warp that walks the plan.
template <class C>
class MeasureProducer {
 public:
  __device__ MeasureProducer(const MeasureArgs& args, MeasureShared<C>& shared) : args_(args), shared_(shared), lane_(threadIdx.x % 32) {}

  __device__ void run() {
    const int blocks = static_cast<int>(gridDim.x), mine = static_cast<int>(blockIdx.x);
    for (int round = 0; round * int64_t{blocks} < args_.items; ++round) {  // from alternating ends, for rows that grow
      const int64_t number = round * int64_t{blocks} + (round % 2 == 0 ? mine : blocks - 1 - mine);
      if (number < args_.items) walk(static_cast<int>(number));
    }
    q_place_.wait_empty(shared_.q_ring);
    if (lane_ == 0) {
      shared_.item = {0, 0, -1, 0};
      mbarrier_arrive(&shared_.q_ring.full[0]);
    }
  }

 private:
  __device__ void walk(int number) {
    const int part = number % args_.items_per_row, at = number / args_.items_per_row, row = at % args_.rows, of_batch = at / args_.rows;
    const int head = of_batch % args_.heads_q, batch = of_batch / args_.heads_q;
    const int first = row * args_.tile + part * C::kTileQ;
    const int count = min(min(args_.tile - part * C::kTileQ, C::kTileQ), args_.seqlen_q - first);
    if (count <= 0) return;
    item_ = {batch, head, first, count};
    head_k_ = head / args_.heads_per_group;
    has_item_ = has_piece_ = false;
    const int64_t token = int64_t{first} + args_.seqlen_k - args_.seqlen_q;
    walk_list(args_.masked, row, true, token);
    walk_list(args_.whole, row, false, token);
    if (has_piece_) send(false);
  }

  __device__ void walk_list(const plan::cuda::RunListView& list, int row, bool is_masked, int64_t token) {
    const plan::cuda::RowView runs = plan::cuda::row_of(list, item_.batch, item_.head, args_.heads_q, args_.rows, row);
#pragma unroll 1
    for (int from = 0; from < runs.count; from += 32) {
      const int i = from + lane_;
      int start = 0, stop = 0;
      if (i < runs.count) {
        start = runs.start[i];
        stop = min(runs.stop ? runs.stop[i] : start + list.grain, args_.seqlen_k);
      }
      const int count = min(32, runs.count - from);
#pragma unroll 1
      for (int r = 0; r < count; ++r) {
        const int last = __shfl_sync(kAllLanes, stop, r);
#pragma unroll 1
        for (int key = __shfl_sync(kAllLanes, start, r); key < last;) {
          const MeasurePiece piece = first_piece(key, last, args_.tile_k, C::kTileK);
          const PieceSeen seen = is_masked ? seen_of(piece, args_.band, token, token + item_.count - 1) : PieceSeen::all;
          key += piece.fill;
          if (seen == PieceSeen::none) continue;
          if (has_piece_) send(true);
          piece_ = piece;
          is_tested_ = seen == PieceSeen::some ? 2 : piece.fill < C::kTileK;
          has_piece_ = true;
        }
      }
    }
  }

  // The piece at hand, once it is known whether the row has another.
  __device__ void send(bool has_next) {
    if (!has_item_) send_item();
    k_place_.wait_empty(shared_.k_ring);
    if (lane_ == 0) {
      shared_.stage[k_place_.stage] = {{piece_.key, piece_.fill, has_next, is_tested_}, piece_.cell};
      uint64_t* const full = &shared_.k_ring.full[k_place_.stage];
      mbarrier_arrive_expect_tx(full, C::kTileBytes);
      // A whole box each time: scores against keys behind the piece are thrown away, whatever those keys hold.
      cp_async_bulk_tensor_load(smem_address(shared_.k[k_place_.stage]), &args_.k, {0, piece_.key, 0, head_k_, item_.batch}, smem_address(full));
    }
    __syncwarp();
    k_place_.advance();
  }

  __device__ void send_item() {
    q_place_.wait_empty(shared_.q_ring);
    if (lane_ == 0) {
      shared_.item = item_;
      uint64_t* const full = &shared_.q_ring.full[0];
      mbarrier_arrive_expect_tx(full, sizeof(shared_.q));
#pragma unroll
      for (int group = 0; group < C::kConsumers; ++group) {
        cp_async_bulk_tensor_load(smem_address(shared_.q[group][0]), &args_.q, {0, item_.first + group * 64, 0, item_.head, item_.batch},
                                  smem_address(full));
      }
    }
    __syncwarp();
    q_place_.advance();
    has_item_ = true;
  }

  const MeasureArgs& args_;
  MeasureShared<C>& shared_;
  const int lane_;
  RingPlace<1> q_place_;
  RingPlace<C::kStages> k_place_;
  MeasureItem item_;
  MeasurePiece piece_;
  int head_k_ = 0;
  int is_tested_ = 0;
  bool has_item_ = false, has_piece_ = false;
};

/// NaN where one of them is.
__device__ inline float max_with_nan(float a, float b) {
  float most;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(a), "f"(b));
  return most;
}

template <class C>
class MeasureConsumer {
 public:
  __device__ MeasureConsumer(const MeasureArgs& args, MeasureShared<C>& shared, int group) : args_(args), shared_(shared), group_(group) {}

  __device__ void run() {
    uint32_t q[C::kHeadDim / 16][4];
    float scores[C::kTileK / 2];
    while (true) {
      q_place_.wait_full(shared_.q_ring);
      item_ = shared_.item;
      if (item_.first < 0) break;
      cells_ = args_.max.data + item_.batch * args_.max.stride[0] + item_.head * args_.max.stride[1] +
               (item_.first + group_ * 64) / args_.tile_q * args_.max.stride[2];
      load_q_registers<C>(q, shared_.q[group_]);
      __syncwarp();
      if (threadIdx.x % 32 == 0) q_place_.release(shared_.q_ring);
      q_place_.advance();
      MeasureStage stage;
      do {
        k_place_.wait_full(shared_.k_ring);
        wgmma_qk<C>(scores, q, shared_.k[k_place_.stage]);
        stage = shared_.stage[k_place_.stage];
        wgmma_wait_group<0>(scores);
        if (threadIdx.x % 32 == 0) k_place_.release(shared_.k_ring);
        k_place_.advance();
        raise_cell(scores, stage);
      } while (stage.info.has_next);
    }
  }

 private:
  __device__ void raise_cell(float (&scores)[C::kTileK / 2], const MeasureStage& stage) const {
    const int thread = thread_index_again(), row = (thread - 128) / 32 * 16 + thread % 32 / 4;  // of the item, the thread's second is 8 after it
    if (stage.info.is_tested) mask_by_band<C::kTileK>(scores, stage.info, args_.band, int64_t{item_.first} + row + args_.seqlen_k - args_.seqlen_q);
    float tops[4] = {scores[0], scores[1], scores[2], scores[3]};  // two chains a row, for latency
#pragma unroll
    for (int i = 4; i < C::kTileK / 2; ++i) tops[i % 4] = max_with_nan(tops[i % 4], scores[i]);
    const float first = row < item_.count ? max_with_nan(tops[0], tops[1]) : -INFINITY;
    const float second = row + 8 < item_.count ? max_with_nan(tops[2], tops[3]) : -INFINITY;
    const int32_t most = __reduce_max_sync(kAllLanes, ordered_bits(__float_as_int(max_with_nan(first, second))));
    if (thread % 32 != 0) return;
    float value = __int_as_float(ordered_bits(most));
    if (value == -INFINITY) return;
    value = value * args_.softmax_scale;
    if (args_.softcap != 0) value = args_.softcap * tanhf(value / args_.softcap);
    value += 0.0f;  // no -0, whose bits are below all others
    float* const cell = cells_ + stage.cell * args_.max.stride[3];
    if (value < 0) {
      atomicMin(reinterpret_cast<uint32_t*>(cell), __float_as_uint(value));
    } else {  // NaN, too
      atomicMax(reinterpret_cast<int32_t*>(cell), __float_as_int(value));
    }
  }

  const MeasureArgs& args_;
  MeasureShared<C>& shared_;
  const int group_;
  RingPlace<1> q_place_;
  RingPlace<C::kStages> k_place_;
  MeasureItem item_;
  float* cells_ = nullptr;  // the row of cells that these queries are of
};

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1) attend_sm90_measure_kernel(const __grid_constant__ MeasureArgs args) {
  extern __shared__ __align__(1024) uint8_t measure_shared[];
  MeasureShared<C>& shared = *reinterpret_cast<MeasureShared<C>*>(measure_shared);
  if (threadIdx.x == 0) {
    shared.q_ring.init(4 * C::kConsumers);
    shared.k_ring.init(4 * C::kConsumers);
    fence_mbarrier_init();
  }
  __syncthreads();
  const int warpgroup = __shfl_sync(kAllLanes, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    setmaxnreg_dec<C::kProducerRegisters>();
    if (__shfl_sync(kAllLanes, threadIdx.x / 32, 0) == 0) MeasureProducer<C>(args, shared).run();
  } else {
    setmaxnreg_inc<C::kConsumerRegisters>();
    MeasureConsumer<C>(args, shared, warpgroup - 1).run();
  }
}

__global__ void __launch_bounds__(256) attend_sm90_measure_clear_kernel(const __grid_constant__ MeasureOutput max) {
  const int64_t cells = int64_t{max.batch} * max.heads * max.tiles_q * max.tiles_k;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < cells; i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = i / max.tiles_k, head = row / max.tiles_q, batch = head / max.heads;
    max.data[batch * max.stride[0] + head % max.heads * max.stride[1] + row % max.tiles_q * max.stride[2] + i % max.tiles_k * max.stride[3]] =
        -INFINITY;
  }
}

template <class C>
cudaError_t run(const MeasureArgs& args, int multiprocessors, cudaStream_t stream) {
  static_assert(sizeof(MeasureShared<C>) <= 227 * 1024, "shared memory of a multiprocessor");
  const auto kernel = reinterpret_cast<const void*>(attend_sm90_measure_kernel<C>);
  static const cudaError_t raised = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(MeasureShared<C>));
  if (raised != cudaSuccess) return raised;
  const void* parameters[] = {&args};
  return cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(std::min(args.items, multiprocessors))), dim3(C::kThreads),
                          const_cast<void**>(parameters), sizeof(MeasureShared<C>), stream);
}

template <int HeadDim>
cudaError_t run_head_dim(const MeasureInput& input, MeasureArgs& args, int multiprocessors, cudaStream_t stream) {
  if (make_tensor_map(args.q, input.q, 64, HeadDim / 64) != CUDA_SUCCESS || make_tensor_map(args.k, input.k, 128, HeadDim / 64) != CUDA_SUCCESS) {
    return cudaErrorInvalidValue;
  }
  return input.q.is_bf16 ? run<MeasureConfig<HeadDim, bf16>>(args, multiprocessors, stream)
                         : run<MeasureConfig<HeadDim, f16>>(args, multiprocessors, stream);
}

}  // namespace

cudaError_t attend_sm90_measure(const MeasureInput& input, cudaStream_t stream) {
  const int head_dim = input.q.head_dim;
  if (head_dim > 256 || head_dim % 64 != 0 || input.tile_q % 64 != 0 || input.tile % input.tile_q != 0) return cudaErrorInvalidValue;
  int device = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  MeasureArgs args{};
  args.max = input.max;
  args.masked = input.masked;
  args.whole = input.whole;
  args.band = input.band;
  args.heads_q = input.q.heads;
  args.heads_per_group = input.q.heads / std::max(1, input.k.heads);
  args.seqlen_q = input.q.seqlen;
  args.seqlen_k = input.k.seqlen;
  args.tile = input.tile;
  args.tile_q = input.tile_q;
  args.tile_k = Divisor(input.tile_k);
  args.softmax_scale = input.softmax_scale;
  args.softcap = input.softcap;
  args.items_per_row = (input.tile + 127) / 128;
  args.rows = (input.q.seqlen + input.tile - 1) / input.tile;
  const int64_t items = int64_t{input.q.batch} * input.q.heads * args.rows * args.items_per_row;
  if (items > std::numeric_limits<int>::max() - (1 << 20)) return cudaErrorInvalidValue;
  args.items = static_cast<int>(items);
  const int64_t cells = int64_t{input.max.batch} * input.max.heads * input.max.tiles_q * input.max.tiles_k;
  if (cells == 0) return cudaSuccess;
  const auto clears = static_cast<unsigned>(std::min<int64_t>((cells + 255) / 256, int64_t{8} * multiprocessors));
  attend_sm90_measure_clear_kernel<<<clears, 256, 0, stream>>>(input.max);
  error = cudaGetLastError();
  if (error != cudaSuccess || items == 0 || input.k.seqlen == 0) return error;
  return head_dim == 64    ? run_head_dim<64>(input, args, multiprocessors, stream)
         : head_dim == 128 ? run_head_dim<128>(input, args, multiprocessors, stream)
                           : run_head_dim<256>(input, args, multiprocessors, stream);
}

}  // namespace tilewise::attend::sm90
