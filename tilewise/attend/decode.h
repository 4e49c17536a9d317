// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>

#include "tilewise/attend/params.h"
#include "tilewise/base/operand.h"

TILEWISE_BEGIN_PUBLIC

/// Shapes: B sequences, Hq and Hkv heads (Hkv divides Hq; query head h reads K/V head h * Hkv / Hq), Sq new tokens (1 to 8), D and Dv channels. The new
/// tokens' keys and values are in k and v already. Query i of sequence b counts as token lengths[b] - Sq + i, for the masks of plan and dense_band.
struct DecodeParams {
  TensorView q = {};  // [B, Hq, Sq, D]
  /// [B, Hkv, capacity, D] and [B, Hkv|1, capacity, Dv]: plain, Quantised or Paged, each as it likes; v and out may be absent together: lse alone.
  Operand k = {}, v = {};
  TensorView out = {}, lse = {};  // written: [B, Hq, Sq, Dv] in q's dtype, and [B, Hq, Sq] f32; an absent one is not written
  /// [B] i32: tokens of each sequence, the new ones included. Absent: all have plan->seqlen_k or, without a plan, the capacity.
  TensorView lengths = {};
  /// Which keys each row reads; seqlen_q is Sq, seqlen_k at least every length. This or dense_band, never both.
  Plan plan = {};
  /// Instead of a plan: every key of the sequence that the band lets through; {.right = 0} is causal decode.
  std::optional<Mask::Band> dense_band = {};
  std::optional<float> softmax_scale = {};  // default 1 / sqrt(D); finite and > 0
  float softcap = 0;  // s -> softcap * tanh(s / softcap); 0: none
  TensorView sink_logit = {};  // [Hq] f32, one more logit in each row's denominator, or absent
};

/// Attention of the newest tokens over a cache: out = softmax(softmax_scale * q k^T) v over the keys that the plan's row reads. A K/V head is read once for
/// all query heads and new tokens that share a list of runs: make lists with G = Hkv.
/// Dtypes  q and out alike: f32, bf16 or f16 (f64 on the reference); plain k and v, and pools of them, as q; quantised ones with any q. Scores, sums and lse
///         are f32; lse is a natural log.
/// Edges   lengths may differ and be 0. A masked run ends where its sequence ends; a whole or picked run past that end is an error. A row without a key gets
///         out = 0 and lse = -inf (lse = sink logit where there is one). Keys that no run of a row names, pages of which no key is read, and rows of a page
///         behind the last token are not touched.
/// Errors  shape, dtype, device; value (neither or both of plan and dense_band, a length beyond capacity or plan, a run past the end, a page that is read and
///         is not stored or not in the pool); unsupported (more than 8 tokens, orders and pools, what no backend takes). All come before the first write.
/// GPU     lengths, plan and table lie on the device and are not looked into (validate() the plan where it is made): a length is cut at the capacity and a run
///         at its sequence's end, and a row that reads a page that is not stored gets NaN. Nothing waits for the device; a call can be captured into a graph.
/// Runs    as attend_forward: the first backend that takes it; dense only where dense_band says so. Long lists are cut at constants of their lengths and
///         merged by lse, so bits depend neither on threads nor on the other sequences of the batch.
/// Source  flash-decoding: attention over parts of the keys, merged by lse; pages: PagedAttention, arXiv 2309.06180.
TILEWISE_API Ran attend_decode(const DecodeParams& params, Context& context);

TILEWISE_END_PUBLIC
