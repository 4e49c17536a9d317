// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/sm90/forward.cuh"

#include <algorithm>
#include <utility>

namespace tilewise::attend::sm90 {
namespace {

bool make_args(ForwardArgs& args, const ForwardInput& input, int tile_q, int tile_k) {
  const int blocks = input.q.head_dim / 64;
  bool is_made = make_tensor_map(args.q, input.q, tile_q, blocks) == CUDA_SUCCESS &&
                 make_tensor_map(args.k, input.k, tile_k, blocks) == CUDA_SUCCESS &&
                 make_tensor_map(args.v, input.v, tile_k, blocks) == CUDA_SUCCESS && make_tensor_map(args.out, input.out, 16, blocks) == CUDA_SUCCESS;
  for (int i = 0; i < ForwardArgs::kPieces && is_made; ++i) {
    is_made =
        make_tensor_map(args.k_piece[i], input.k, 1 << i, 1) == CUDA_SUCCESS && make_tensor_map(args.v_piece[i], input.v, 1 << i, 1) == CUDA_SUCCESS;
  }
  args.lse = input.lse;
  args.masked = input.masked;
  args.whole = input.whole;
  // A band wider than any tensor is cut to what 64-bit token arithmetic can add up.
  const auto cut = [](int64_t x) { return std::clamp(x, -(int64_t{1} << 40), int64_t{1} << 40); };
  args.band = {cut(input.band.left), cut(input.band.right), cut(input.band.sink)};
  args.order = input.order;
  args.counter = input.counter;
  args.num_q_tiles = (input.q.seqlen + tile_q - 1) / tile_q;
  args.rows = input.q.batch * input.q.heads * args.num_q_tiles;
  args.heads_q = input.q.heads;
  args.heads_per_group = input.q.heads / input.k.heads;
  args.seqlen_q = input.q.seqlen;
  args.seqlen_k = input.k.seqlen;
  args.scale_log2 = input.softmax_scale * 1.4426950408889634f;
  args.rescale_threshold = input.rescale_threshold_log2 / args.scale_log2;
  return is_made;
}

template <class C>
cudaError_t launch(const ForwardInput& input, cudaStream_t stream) {
  ForwardArgs args;
  if (!make_args(args, input, C::kTileQ, C::kTileK)) return cudaErrorInvalidValue;
  if (args.rows == 0) return cudaSuccess;
  static const cudaError_t raised =
      cudaFuncSetAttribute(attend_sm90_forward_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared<C>));
  if (raised != cudaSuccess) return raised;
  int device = 0, multiprocessors = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  attend_sm90_forward_kernel<C><<<std::min(multiprocessors, args.rows), C::kThreads, sizeof(Shared<C>), stream>>>(args);
  return cudaGetLastError();
}

template <int HeadDim, class T>
cudaError_t launch_variant(const ForwardInput& input, int variant, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  const auto try_one = [&]<int Variant>() {
    if (variant == Variant) error = launch<ForwardConfig<HeadDim, T, Variant>>(input, stream);
  };
  [&]<int... Variants>(std::integer_sequence<int, Variants...>) {
    (try_one.template operator()<Variants>(), ...);
  }(std::integer_sequence<int, TILEWISE_SM90_VARIANTS>{});
  return error;
}

}  // namespace

cudaError_t attend_sm90_forward(const ForwardInput& input, int variant, cudaStream_t stream) {
  const int head_dim = input.q.head_dim;
  if (head_dim == 128 && input.q.is_bf16) return launch_variant<128, bf16>(input, variant, stream);
  if (head_dim == 128 && variant == 0) return launch<ForwardConfig<128, f16, 0>>(input, stream);
  if (head_dim == 64 && variant == 0) {
    return input.q.is_bf16 ? launch<ForwardConfig<64, bf16, 0>>(input, stream) : launch<ForwardConfig<64, f16, 0>>(input, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace tilewise::attend::sm90
