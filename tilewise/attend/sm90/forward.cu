// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/sm90/forward.cuh"

#include <algorithm>
#include <limits>

namespace tilewise::attend::sm90 {
namespace {

using machine::sm90::Tensor16;

/// `blocks`: column blocks of a box.
bool make_args(ForwardArgs& args, const ForwardInput& input, int tile_k, int blocks) {
  const auto make = [](CUtensorMap& map, const Tensor16& tensor, int tokens, int of_blocks) {
    return kept_tensor_map(map, tensor, tokens, of_blocks) == CUDA_SUCCESS;
  };
  Tensor16 k = input.k;
  Tensor16 v = input.v.data ? input.v : input.k;  // without v: lse alone, the product with it is thrown away
  k.seqlen = v.seqlen = std::max(1, k.seqlen);    // without keys nothing of them is read, but the copy engine wants a token
  args.past_k = k.seqlen;
  const Tensor16& out = input.out.data ? input.out : input.q;
  bool is_made =
      make(args.q, input.q, 64, blocks) && make(args.k, k, tile_k, blocks) && make(args.v, v, tile_k, blocks) && make(args.out, out, 16, 1);
  for (int i = 0; i < ForwardArgs::kPieces && is_made; ++i) is_made = make(args.k_piece[i], k, 1 << i, 1) && make(args.v_piece[i], v, 1 << i, 1);
  args.lse = input.lse;
  args.lse_stride_batch = input.lse_stride_batch;
  args.lse_stride_head = input.lse_stride_head;
  args.masked = input.masked;
  args.whole = input.whole;
  args.band = input.band;
  args.order = input.order;
  args.counter = input.counter;
  args.heads_q = input.q.heads;
  args.heads_per_group = input.q.heads / input.k.heads;
  args.seqlen_q = input.q.seqlen;
  args.seqlen_k = input.k.seqlen;
  args.head_v_step = v.heads == 1 && input.k.heads > 1 ? 0 : 1;
  args.is_by_counter = 0;
  args.scale_log2 = input.softmax_scale * 1.4426950408889634f;
  args.rescale_threshold = input.rescale_threshold_log2 / args.scale_log2;
  return is_made;
}

bool add_general(GeneralArgs& args, const ForwardInput& input, const GeneralInput& general) {
  args.picked = general.picked;
  args.edge = general.edge;
  args.tile = input.tile;
  args.slots_q = general.slots_q;
  args.order_q = general.order_q;
  args.order_k = general.order_k;
  args.order_k_slots = general.slots_k;
  args.form = general.form;
  for (int c = 0; c < GeneralArgs::kClasses; ++c) {
    args.bands[c] = general.bands[c];
    args.num_axes[c] = general.num_axes[c];
    std::copy(general.grids[c], general.grids[c] + GeneralArgs::kAxes, args.grids[c]);
  }
  args.spans = general.spans;
  args.spans_batch = general.spans_batch;
  args.grid_first = general.grid_first;
  std::copy(general.head_class, general.head_class + GeneralArgs::kHeads, args.head_class);
  args.sink_logit = general.sink_logit;
  args.softcap = general.softcap;
  args.softcap_scale = general.softcap == 0 ? 0 : input.softmax_scale / general.softcap;
  if (general.softcap != 0) {  // scores are then logits themselves
    args.scale_log2 = 1.4426950408889634f;
    args.rescale_threshold = input.rescale_threshold_log2 / args.scale_log2;
  }
  args.has_out = input.out.data != nullptr;
  const Tensor16& out = input.out.data ? input.out : input.q;
  args.is_flat_q = !has_whole_blocks(input.q);
  args.is_flat_v = !has_whole_blocks(out);
  return kept_tensor_map(args.q_token, input.q, 1, 1) == CUDA_SUCCESS && kept_tensor_map(args.out_token, out, 1, 1) == CUDA_SUCCESS;
}

bool add_pools(PooledArgs& args, const ForwardInput& input, const GeneralInput& general) {
  const Tensor16& v = general.pooled_v.data ? general.pooled_v : general.pooled_k;
  for (int i = 0; i < ForwardArgs::kPieces; ++i) {
    if (kept_tensor_map(args.pooled_k_piece[i], general.pooled_k, 1 << i, 1) != CUDA_SUCCESS) return false;
    if (kept_tensor_map(args.pooled_v_piece[i], v, 1 << i, 1) != CUDA_SUCCESS) return false;
  }
  args.parts = general.parts;
  args.pooled_token = general.pooled_token;
  args.pooled_count = general.pooled_count;
  args.pooled = general.pooled_k.seqlen;
  args.score_of_bias = general.softcap == 0 ? 1 / input.softmax_scale : 1;
  return true;
}

template <class C>
cudaError_t run(const ForwardInput& input, const GeneralInput* general, bool is_by_counter, cudaStream_t stream) {
  typename C::Args args;
  bool is_made = make_args(args, input, C::kTileK, C::kIsGeneral ? 1 : C::kBlocks);
  if constexpr (C::kIsGeneral) is_made = is_made && add_general(args, input, *general);
  if constexpr (C::kHasPools) is_made = is_made && add_pools(args, input, *general);
  if constexpr (C::kIsSplit) args.split = input.split;
  if (!is_made) return cudaErrorInvalidValue;
  const int64_t of_head = items_per_head(input, general), items = of_head * input.q.heads * input.q.batch;
  if (items > std::numeric_limits<int>::max() - (1 << 20)) return cudaErrorInvalidValue;
  if (items == 0) return cudaSuccess;
  args.items = static_cast<int>(items);
  args.items_per_head = static_cast<int>(of_head);
  args.items_per_row = items_per_row(input, general);
  args.is_by_counter = is_by_counter;
  return launch<C>(args, stream);
}

template <int HeadDim, class T>
cudaError_t run_dtype(const ForwardInput& input, const GeneralInput* general, cudaStream_t stream) {
  if (general && general->pooled_k.data) return run<ForwardConfig<HeadDim, T, kPooled>>(input, general, false, stream);
  if (general) return run<ForwardConfig<HeadDim, T, kGeneral>>(input, general, false, stream);
  if constexpr (HeadDim <= 128) {
    if (input.tile == 64) return run<ForwardConfig<HeadDim, T, kNarrow>>(input, nullptr, false, stream);
    if (input.tile == 128 && input.split.parts) return run<ForwardConfig<HeadDim, T, kSplit>>(input, nullptr, false, stream);
  }
  return input.tile == 128 ? run<ForwardConfig<HeadDim, T>>(input, nullptr, false, stream) : cudaErrorInvalidValue;
}

template <int HeadDim>
cudaError_t run_head_dim(const ForwardInput& input, const GeneralInput* general, cudaStream_t stream) {
  return input.q.is_bf16 ? run_dtype<HeadDim, bf16>(input, general, stream) : run_dtype<HeadDim, f16>(input, general, stream);
}

}  // namespace

int items_per_row(const ForwardInput& input, const GeneralInput* general) {
  const int tile_q = !general && input.tile == 64 ? 64 : 128;
  return (input.tile + tile_q - 1) / tile_q;
}

int items_per_head(const ForwardInput& input, const GeneralInput* general) {
  const int slots = general ? general->slots_q : input.q.seqlen;
  const int rows = general && general->edge ? general->num_rows : (slots + input.tile - 1) / input.tile;
  return rows * items_per_row(input, general);
}

int blocks_per_multiprocessor(const ForwardInput& input, const GeneralInput* general) { return !general && input.tile == 64 ? 2 : 1; }

cudaError_t attend_sm90_forward(const ForwardInput& input, const GeneralInput* general, int variant, cudaStream_t stream) {
  const int head_dim = std::max(input.q.head_dim, input.v.data ? input.v.head_dim : 0);
  if (variant != kPlain) {
    if (head_dim != 128 || !input.q.is_bf16) return cudaErrorInvalidValue;
    if (variant == kProof || variant == kByCounter) {
      return run<ForwardConfig<128, bf16, kProof>>(input, nullptr, variant == kByCounter, stream);
    }
    if (variant == kSeam && input.tile == 128) return run<ForwardConfig<128, bf16, kSeam>>(input, nullptr, false, stream);
    if (variant == kNarrowSeam && input.tile == 64) return run<ForwardConfig<128, bf16, kNarrowSeam>>(input, nullptr, false, stream);
    if (variant == kRowByRow) return run<ForwardConfig<128, bf16, kRowByRow>>(input, nullptr, false, stream);
    GeneralInput none;
    none.slots_q = input.q.seqlen;
    none.slots_k = input.k.seqlen;
    none.bands[0] = input.band;
    return variant == kGeneral ? run<ForwardConfig<128, bf16, kGeneral>>(input, &none, false, stream) : cudaErrorInvalidValue;
  }
  if (head_dim <= 64) return run_head_dim<64>(input, general, stream);
  if (head_dim <= 128) return run_head_dim<128>(input, general, stream);
  if (head_dim <= 256) return run_head_dim<256>(input, general, stream);
  return cudaErrorInvalidValue;
}

}  // namespace tilewise::attend::sm90
