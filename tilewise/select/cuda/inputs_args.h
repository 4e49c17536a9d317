// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "tilewise/select/scores.h"

// What every score on a GPU asks of its inputs: no CUDA in it.
namespace tilewise::select::cuda {

inline std::optional<std::string> refusal_of(const Inputs& inputs) {
  if (inputs.has_orders()) return "an order is not built; score on the host, or for tensors that are reordered";
  if (inputs.mask.bands.empty()) return "spans and neighbourhoods are not built; score on the host";
  if (inputs.mask.bands.size() > 16) return "the mask has more than 16 classes of heads";
  if (inputs.heads_q() > 256) return "more than 256 heads are not built";
  return std::nullopt;
}

/// How kernels name a dtype.
inline int dtype_number(Dtype dtype) { return dtype == Dtype::f32 ? 0 : dtype == Dtype::bf16 ? 1 : 2; }

/// Whether rows of channels [.., D] are aligned to 16 bytes and D is whole pieces of 16.
inline bool is_wide(const TensorView& x) {
  const auto is_aligned = [&](int64_t elements) { return elements * static_cast<int64_t>(size_of(x.dtype())) % 16 == 0; };
  return reinterpret_cast<uintptr_t>(x.raw()) % 16 == 0 && is_aligned(x.stride(0)) && is_aligned(x.stride(1)) && is_aligned(x.stride(2)) &&
         is_aligned(x.dim(3));
}

/// What the arguments of every kernel that gathers rows of q and k say of them.
template <class Args>
void set_tensors(Args& args, const Inputs& inputs) {
  const TensorView &q = inputs.q, &k = inputs.k;
  args.q = q.raw();
  args.k = k.raw();
  args.q_batch = q.stride(0);
  args.q_head = q.stride(1);
  args.q_token = q.stride(2);
  args.k_batch = k.stride(0);
  args.k_head = k.stride(1);
  args.k_token = k.stride(2);
  args.is_wide = is_wide(q) && is_wide(k);
  args.heads = inputs.heads_q();
  args.group = inputs.heads_q() / inputs.heads_kv();
  args.dim = static_cast<int>(inputs.head_dim());
  args.seqlen_q = inputs.seqlen_q();
  args.seqlen_k = inputs.seqlen_k();
}

/// Scores of these inputs on rows of their own, `tile` tokens on both axes, with values at `memory` on the device of q.
inline Scores score_space(const Inputs& inputs, int tile, void* memory) {
  Scores scores;
  scores.grid = score_rows(inputs, tile);
  scores.tile_k = tile;
  scores.mask = inputs.mask;
  scores.batch = inputs.batch();
  scores.heads = inputs.heads_q();
  scores.values.view = TensorView(memory, Dtype::f32, {scores.batch, scores.heads, scores.grid.rows(), scores.key_tiles()}, inputs.q.device());
  return scores;
}

/// Errors: dtype, shape, device (tensors that a kernel does not take), value (scale, softcap).
void require_tensors(const char* function, const Inputs& inputs, const Context& context);
/// Errors: shape (q and k do not fit together), unsupported (refusal_of()).
void require_shapes(const char* function, const Inputs& inputs);
/// Errors: value (scores that were not made for these inputs).
void require_scores(const char* function, const Inputs& inputs, const Scores& scores);

}  // namespace tilewise::select::cuda
