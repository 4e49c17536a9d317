// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/attend/cuda/backward_args.h"
#include "tilewise/attend/cuda/softmax.h"

// dq, dk and dv over a plan: FlashAttention-2, arXiv 2307.08691, Algorithm 2, each by a walk of its own, so that every sum stays in a block's registers and has one
// order: eight products a pair where one walk takes five. dq holds queries while the keys that they read pass by (by_query), dk and dv hold keys (by_key).
namespace tilewise::attend::cuda {

enum class Gradient : int { dq, dk, dv };

struct GradientQuery : SlotQuery {
  float lse_log2, delta;  // lse +inf: nothing was read, so every probability is 0
};

template <class C>
struct alignas(16) GradientShared {
  static constexpr int kMost = C::kTileQ > C::kTileK ? C::kTileQ : C::kTileK;
  typename C::Bits own[2][C::kTileQ * C::kRow];  // q and dout, or k and v
  typename C::Bits other[2][C::kTileK * C::kRow];  // the other two, of a stage
  float weights[Weights<C>::kShared + (C::kIsF32 ? 0 : 4)];
  GradientQuery queries[kMost];
  SlotKey keys[kMost];
  uint64_t rows[C::kTileK];  // which slots of the part meet a slot of the stage
  bool is_asked[C::kTileK];
  int test;  // 0: all of them do
  WalkShared<C> walk;
};

TILEWISE_DEVICE inline float number_at(const QueryNumbers& numbers, int64_t b, int64_t head, int64_t row) {
  return numbers.data[b * numbers.stride_batch + head * numbers.stride_head + row * numbers.stride_row];
}

TILEWISE_DEVICE inline GradientQuery gradient_query(const BackwardArgs& args, int b, int head, int64_t slot) {
  GradientQuery query;
  static_cast<SlotQuery&>(query) = query_of(args, b, head, slot);
  query.lse_log2 = INFINITY;
  query.delta = 0;
  if (query.place < 0) return query;
  const float lse = number_at(args.lse, b, head, query.place);
  query.lse_log2 = lse == -INFINITY ? INFINITY : lse * kLog2E;
  query.delta = args.delta[(int64_t{b} * args.heads_q + head) * args.axis_q.end[0] + slot];
  return query;
}

/// Block i: part i of [batch, heads, rows of by_query] for dq, of [batch, J, rows of by_key] else.
template <class C, bool kIsByKey, class Block>
TILEWISE_DEVICE void gradient_kernel(Block& block, const BackwardArgs& args, Gradient gradient) {
  using Bits = typename C::Bits;
  auto& shared = *reinterpret_cast<GradientShared<C>*>(block.shared());
  const bool is_dv = gradient == Gradient::dv;
  const Part part = kIsByKey ? part_of<C>(args.rows_k, args.axis_k.slots(), args.slot_heads, args.parts_per_row_k, block.index())
                             : part_of<C>(args.rows, args.axis_q.slots(), args.heads_q, args.parts_per_row, block.index());
  if (part.count == 0) return;
  // Query heads that share the part: one for dq.
  const int heads = kIsByKey ? args.heads_q / args.slot_heads : 1, first_head = part.head * heads;
  const int head_kv = first_head / (args.heads_q / args.heads_kv);
  block.each([&](int thread) {
    for (int i = thread; i < C::kTileQ; i += C::kThreads) {
      const bool is_there = i < part.count;
      if constexpr (kIsByKey) {
        shared.keys[i] = is_there ? key_of(args, part.batch, first_head, part.first + i) : SlotKey{SlotKey::kNowhere, -1, 0};
      } else {
        shared.queries[i] = is_there ? gradient_query(args, part.batch, part.head, part.first + i) : GradientQuery{{-1, -1, {}}, INFINITY, 0};
      }
    }
  });
  const auto row_of_query = [&](const TensorArg& tensor, int head, int i) -> const Bits* {
    const int place = shared.queries[i].place;
    return place < 0 ? nullptr : row_at<C>(tensor, part.batch, head, place);
  };
  const auto row_of_k = [&](int i) { return key_row<C>(args.k, args.pooled_k, part.batch, head_kv, shared.keys[i].place); };
  const auto row_of_v = [&](int i) { return key_row<C>(args.v, args.pooled_v, part.batch, head_kv, shared.keys[i].place); };
  if constexpr (kIsByKey) {
    copy_rows<C>(block, args.k, shared.own[0], C::kTileQ, row_of_k);
    if (!is_dv) copy_rows<C>(block, args.v, shared.own[1], C::kTileQ, row_of_v);
  } else {
    copy_rows<C>(block, args.q, shared.own[0], C::kTileQ, [&](int i) { return row_of_query(args.q, part.head, i); });
    copy_rows<C>(block, args.dout, shared.own[1], C::kTileQ, [&](int i) { return row_of_query(args.dout, part.head, i); });
  }
  block.close_copies();
  typename Block::template Registers<float, C::kAcc> acc(block);
  block.lanes([&](int thread) { TILEWISE_UNROLL for (int i = 0; i < C::kAcc; ++i) acc(thread, i) = 0; });

  for (int head = first_head; head < first_head + heads; ++head) {
    const int mask_class = args.head_class[head % kMaskHeads];
    RunWalk<C, Block> walk(block, kIsByKey ? args.lists_k : args.lists, kIsByKey ? args.rows_k : args.rows, kIsByKey ? args.axis_q : args.axis_k,
                           args.heads_q, head, part, shared.walk);
    const auto note = [&](int i, const Found* found) {
      shared.rows[i] = found == nullptr ? 0 : found->rows;
      shared.is_asked[i] = found != nullptr && found->is_masked;
      bool is_padding = false;
      if constexpr (kIsByKey) {
        shared.queries[i] = found == nullptr ? GradientQuery{{-1, -1, {}}, INFINITY, 0} : gradient_query(args, part.batch, head, found->slot);
        is_padding = shared.queries[i].token < 0;
      } else {
        shared.keys[i] = found == nullptr ? SlotKey{SlotKey::kNowhere, -1, 0} : key_of(args, part.batch, head, found->slot);
        is_padding = shared.keys[i].token < 0;
      }
      return found != nullptr && (found->is_masked || is_padding || found->rows != all_rows(part)) ? 1 : 0;
    };
    while (walk.next(block, shared.test, note) > 0) {
      if constexpr (kIsByKey) {
        copy_rows<C>(block, args.q, shared.other[0], C::kTileK, [&](int i) { return row_of_query(args.q, head, i); });
        copy_rows<C>(block, args.dout, shared.other[1], C::kTileK, [&](int i) { return row_of_query(args.dout, head, i); });
      } else {
        copy_rows<C>(block, args.k, shared.other[0], C::kTileK, row_of_k);
        copy_rows<C>(block, args.v, shared.other[1], C::kTileK, row_of_v);
      }
      block.close_copies();
      block.template await_copies<0>();
      block.sync();
      typename Block::template Registers<float, C::kScores> scores(block), products(block);
      block.lanes([&](int thread) { TILEWISE_UNROLL for (int i = 0; i < C::kScores; ++i) scores(thread, i) = products(thread, i) = 0; });
      multiply_by_rows<C>(block, scores, shared.own[0], shared.other[0], args.q.channels);
      if (!is_dv) multiply_by_rows<C>(block, products, shared.own[1], shared.other[1], args.dout.channels);  // dout v^T
      // Scores become probabilities, or what of them reaches the products of q and k.
      block.lanes([&](int thread) {
        uint32_t seen = ~uint32_t{0};
        if (shared.test != 0) {
          seen = seen_scores<C::kScores>(thread, [&](int row, int column) {
            const SlotQuery& query = shared.queries[kIsByKey ? column : row];
            const SlotKey& key = shared.keys[kIsByKey ? row : column];
            return query.token >= 0 && key.token >= 0 && (shared.rows[column] >> row & 1) != 0 &&
                   (!shared.is_asked[column] || mask_sees(args, mask_class, query, key.token));
          });
        }
        TILEWISE_UNROLL for (int i = 0; i < C::kScores; ++i) {
          const int row = score_row(thread, i), column = score_column(thread, i);
          const GradientQuery& query = shared.queries[kIsByKey ? column : row];
          const bool is_seen = (seen >> i & 1) != 0;
          float score = scores(thread, i), slope = 1;
          if (args.softcap != 0) {
            const float t = tanhf(score * args.softcap_scale);
            score = args.softcap * t;
            slope = 1 - t * t;
          }
          const float p =
              is_seen ? exp2f(fmaf(score, args.scale * kLog2E, shared.keys[kIsByKey ? row : column].bias * kLog2E - query.lse_log2)) : 0.0f;
          scores(thread, i) = is_dv || !is_seen ? p : p * (products(thread, i) - query.delta) * slope;
        }
      });
      typename Block::template Registers<uint32_t, Weights<C>::kPairs> pairs(block);
      keep_weights<C>(block, scores, pairs, shared.weights);
      block.sync();  // weights of f32 are there, and the lanes of a warp, which the mask may have parted, stand together
      // dq = dS k, dk = dS^T q, dv = P^T dout
      multiply_by_columns<C>(block, acc, pairs, shared.weights, shared.other[is_dv ? 1 : 0], is_dv ? args.dout.channels : args.q.channels);
      block.sync();  // all are done with the stage
    }
  }
  block.template await_copies<0>();

  if constexpr (kIsByKey) {
    float* const slots = is_dv ? args.dv_slots : args.dk_slots;
    const int channels = is_dv ? args.dout.channels : args.q.channels;
    const float factor = is_dv ? 1.0f : args.softmax_scale;
    block.lanes([&](int thread) {
      TILEWISE_UNROLL for (int i = 0; i < C::kAcc; ++i) {
        const int row = score_row(thread, i), column = score_column(thread, i);
        if (row >= part.count || column >= channels) continue;
        slots[((int64_t{part.batch} * args.slot_heads + part.head) * args.axis_k.slots() + part.first + row) * channels + column] =
            acc(thread, i) * factor;
      }
    });
  } else {
    block.lanes([&](int thread) {
      TILEWISE_UNROLL for (int i = 0; i < C::kAcc; ++i) {
        const int row = score_row(thread, i), column = score_column(thread, i), place = shared.queries[row].place;
        if (row >= part.count || column >= args.dq.channels || (place < 0 && !args.is_in_slots)) continue;
        auto* const to = const_cast<Bits*>(row_at<C>(args.dq, part.batch, part.head, place < 0 ? part.first + row : place));
        to[column] = C::Element::narrow(place < 0 ? 0.0f : acc(thread, i) * args.softmax_scale);  // padding slots have a gradient of 0
      }
    });
  }
}

}  // namespace tilewise::attend::cuda
