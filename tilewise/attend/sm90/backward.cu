// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/sm90/backward.cuh"

#include <algorithm>

#include "tilewise/attend/sm90/backward_passes.cuh"

namespace tilewise::attend::sm90 {
namespace {

using machine::sm90::Tensor16;

constexpr int padded_head_dim(int head_dim) { return head_dim <= 64 ? 64 : 128; }

bool make_args(BackwardArgs& args, const BackwardInput& input, int tile_q) {
  const auto make = [](CUtensorMap& map, Tensor16 tensor, int tokens) {
    tensor.seqlen = std::max(1, tensor.seqlen);
    return make_tensor_map(map, tensor, tokens, 1) == CUDA_SUCCESS;
  };
  args.items = input.items;
  args.first_item = input.first_item;
  args.steps = input.steps;
  args.patterns = input.patterns;
  args.heads_q = input.q.heads;
  args.heads_per_group = input.q.heads / input.k.heads;
  args.is_flat_q = !has_whole_blocks(input.q);
  args.is_flat_v = !has_whole_blocks(input.v);
  constexpr float kLog2E = 1.4426950408889634f;
  args.scale = input.softmax_scale;
  args.scale_log2 = (input.softcap == 0 ? input.softmax_scale : input.softcap) * kLog2E;
  args.inner_scale = input.softcap == 0 ? 0 : input.softmax_scale / input.softcap;
  return make(args.q, input.q, tile_q) && make(args.dout, input.dout, tile_q) && make(args.k, input.k, kKeyTile) && make(args.v, input.v, kKeyTile) &&
         make(args.dk, input.dk, 16) && make(args.dv, input.dv, 16);
}

template <class T>
Rows<T> rows(const Tensor16& tensor) {
  return {static_cast<T*>(tensor.data), tensor.stride_batch, tensor.stride_head, tensor.stride_token, tensor.head_dim};
}
Rows<const float> rows(const float* data, const int64_t (&strides)[3]) { return {data, strides[0], strides[1], strides[2], 1}; }

template <class Kernel, class Args>
cudaError_t launch(Kernel* kernel, unsigned blocks, int threads, const Args& args, cudaStream_t stream) {
  const void* parameters[] = {&args};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(threads), const_cast<void**>(parameters), 0, stream);
}

/// All thread blocks run at once, since they wait for one another.
template <class C>
cudaError_t launch_products(const BackwardArgs& args, int thread_blocks, cudaStream_t stream) {
  static const cudaError_t raised =
      cudaFuncSetAttribute(attend_sm90_backward_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(BackwardShared<C>));
  if (raised != cudaSuccess) return raised;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(thread_blocks);
  config.blockDim = dim3(C::kThreads);
  config.dynamicSmemBytes = sizeof(BackwardShared<C>);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, attend_sm90_backward_kernel<C>, args);
}

template <int HeadDim, class T>
cudaError_t run(const BackwardInput& input, void* workspace, cudaStream_t stream) {
  constexpr int kTileQ = backward_tile_q(HeadDim);
  BackwardArgs args{};
  args.q_tiles = (input.q.seqlen + kTileQ - 1) / kTileQ;
  if (input.thread_blocks > 0 && !make_args(args, input, kTileQ)) return cudaErrorInvalidValue;
  const BackwardWorkspace parts = backward_workspace(input.q.batch, input.q.heads, input.q.seqlen, HeadDim);
  auto* const bytes = static_cast<uint8_t*>(workspace);
  auto* const facts = reinterpret_cast<float*>(bytes);
  args.row_facts = facts;
  args.turn = reinterpret_cast<int32_t*>(bytes + parts.row_facts);
  args.dq_sums = reinterpret_cast<float*>(bytes + parts.row_facts + parts.turn);
  const int64_t tiles = int64_t{input.q.batch} * input.q.heads * args.q_tiles;
  if (tiles > INT32_MAX) return cudaErrorInvalidValue;
  cudaError_t error = cudaSuccess;
  if (tiles > 0) {
    const FactsArgs<T> first = {rows<const T>(input.out),
                                rows<const T>(input.dout),
                                rows(input.lse, input.lse_strides),
                                rows(input.dlse, input.dlse_strides),
                                facts,
                                args.turn,
                                input.q.heads,
                                input.q.seqlen,
                                args.q_tiles,
                                kTileQ};
    error = launch(attend_sm90_backward_facts_kernel<T>, static_cast<unsigned>(tiles), 256, first, stream);
  }
  if (error == cudaSuccess && input.thread_blocks > 0) {
    error = input.softcap == 0 ? launch_products<BackwardConfig<HeadDim, T, false>>(args, input.thread_blocks, stream)
                               : launch_products<BackwardConfig<HeadDim, T, true>>(args, input.thread_blocks, stream);
  }
  if (error == cudaSuccess && tiles > 0) {
    const FinishArgs<T> last = {rows<T>(input.dq), args.dq_sums, args.turn, input.q.heads, input.q.seqlen, args.q_tiles, input.softmax_scale};
    error = launch(attend_sm90_backward_finish_kernel<T, HeadDim>, static_cast<unsigned>(tiles), 128, last, stream);
  }
  if (error == cudaSuccess && input.dsink_logit) {
    const SinkArgs sink = {facts, input.sink_logit, input.dsink_logit, input.q.batch, input.q.heads, args.q_tiles, kTileQ};
    error = launch(attend_sm90_backward_sink_kernel<256>, static_cast<unsigned>(input.q.heads), 256, sink, stream);
  }
  if (error == cudaSuccess && input.status != nullptr) {
    PoisonArgs poison{};
    const Tensor16* const gradients[3] = {&input.dq, &input.dk, &input.dv};
    for (int i = 0; i < 3; ++i) {
      poison.gradients[i] = rows<uint16_t>(*gradients[i]);
      poison.heads[i] = gradients[i]->heads;
      poison.seqlen[i] = gradients[i]->seqlen;
    }
    poison.batch = input.q.batch;
    poison.status = input.status;
    attend_sm90_backward_poison_kernel<<<dim3(264, 3), 128, 0, stream>>>(poison);
    error = cudaGetLastError();
  }
  return error;
}

}  // namespace

BackwardWorkspace backward_workspace(int64_t batch, int heads_q, int64_t seqlen_q, int head_dim) {
  const int padded = padded_head_dim(head_dim);
  const int64_t tile = backward_tile_q(padded), tiles = batch * heads_q * ((seqlen_q + tile - 1) / tile);
  const auto whole = [](int64_t bytes) { return static_cast<size_t>((bytes + 255) / 256 * 256); };
  return {whole(tiles * tile * 8), whole(tiles * 4), whole(tiles * tile * padded * 4)};
}

cudaError_t attend_sm90_backward(const BackwardInput& input, void* workspace, cudaStream_t stream) {
  const int head_dim = std::max(input.q.head_dim, input.v.head_dim);
  if (head_dim > 128) return cudaErrorInvalidValue;
  if (head_dim <= 64) return input.q.is_bf16 ? run<64, bf16>(input, workspace, stream) : run<64, f16>(input, workspace, stream);
  return input.q.is_bf16 ? run<128, bf16>(input, workspace, stream) : run<128, f16>(input, workspace, stream);
}

}  // namespace tilewise::attend::sm90
