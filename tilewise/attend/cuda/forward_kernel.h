// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/attend/cuda/softmax.h"

// Forward attention over a plan on any GPU with cp.async and mma.sync: FlashAttention-2, arXiv 2307.08691, Algorithm 1, with the keys of a stage gathered from
// whatever runs, orders and pools the plan names. Every part of a plan takes this one loop, so it is right before it is fast: attend/sm90 is the fast path.
namespace tilewise::attend::cuda {

/// Of each key of a stage.
template <int kTileK>
struct StageKeys {
  SlotKey key[kTileK];
  uint64_t rows[kTileK];  // which queries of the part read it
  bool is_asked[kTileK];
  int test;  // 1: some query may not see some key; 2: and some key may have a bias; 0: every query sees every key
};

template <class C>
struct alignas(16) ForwardShared {
  typename C::Bits q[C::kTileQ * C::kRow], k[C::kTileK * C::kRow], v[C::kTileK * C::kRow];
  float weights[Weights<C>::kShared + (C::kIsF32 ? 0 : 4)];
  SlotQuery queries[C::kTileQ];
  StageKeys<C::kTileK> stages[2];
  WalkShared<C> walk;
};

template <class C, class Block>
TILEWISE_DEVICE int next_keys(Block& block, const PlanArgs& args, const Part& part, RunWalk<C, Block>& walk, StageKeys<C::kTileK>& keys) {
  return walk.next(block, keys.test, [&](int i, const Found* found) {
    keys.key[i] = found == nullptr ? SlotKey{SlotKey::kNowhere, -1, 0} : key_of(args, part.batch, part.head, found->slot);
    keys.rows[i] = found == nullptr ? 0 : found->rows;
    keys.is_asked[i] = found != nullptr && found->is_masked;
    if (found == nullptr) return 0;
    return found->slot >= args.axis_k.end[0] ? 2 : found->is_masked || keys.key[i].token < 0 || found->rows != all_rows(part) ? 1 : 0;
  });
}

/// Starts the copies of a stage's keys or values.
template <class C, class Block>
TILEWISE_DEVICE void copy_stage(Block& block, const TensorArg& tensor, const TensorArg& pooled, const Part& part, int head_kv,
                                const StageKeys<C::kTileK>& keys, typename C::Bits* tile) {
  copy_rows<C>(block, tensor, tile, C::kTileK, [&](int i) { return key_row<C>(tensor, pooled, part.batch, head_kv, keys.key[i].place); });
  block.close_copies();
}

/// Products become scores: softcap, a pooled key's bias, -inf where a query does not see a key.
template <class C, class Block, class Scores>
TILEWISE_DEVICE void finish_scores(Block& block, const ForwardArgs& args, const Part& part, const SlotQuery* queries,
                                   const StageKeys<C::kTileK>& keys, Scores& scores) {
  block.lanes([&](int thread) {
    if (args.softcap != 0) {
      TILEWISE_UNROLL for (int i = 0; i < C::kScores; ++i) scores(thread, i) = args.softcap * tanhf(scores(thread, i) * args.softcap_scale);
    }
    if (keys.test == 0) return;
    const int mask_class = args.head_class[part.head % kMaskHeads];
    const uint32_t seen = seen_scores<C::kScores>(thread, [&](int row, int column) {
      const SlotKey& key = keys.key[column];
      return queries[row].token >= 0 && key.token >= 0 && (keys.rows[column] >> row & 1) != 0 &&
             (!keys.is_asked[column] || mask_sees(args, mask_class, queries[row], key.token));
    });
    if (keys.test == 2) {
      TILEWISE_UNROLL for (int i = 0; i < C::kScores; ++i) scores(thread, i) += keys.key[score_column(thread, i)].bias / args.scale;
    }
    TILEWISE_UNROLL for (int i = 0; i < C::kScores; ++i) scores(thread, i) = (seen >> i & 1) != 0 ? scores(thread, i) : -INFINITY;
  });
}

/// Writes a thread's numbers of a tile of queries, two neighbours at a time.
template <class C, class Block, class Acc, class Factor>
TILEWISE_DEVICE void write_queries(Block& block, const TensorArg& tensor, const Part& part, const SlotQuery* queries, const Acc& acc,
                                   const Factor& factor) {
  block.lanes([&](int thread) {
    TILEWISE_UNROLL for (int i = 0; i < C::kAcc; i += 2) {
      const int row = score_row(thread, i), column = score_column(thread, i);
      if (queries[row].place < 0 || column >= tensor.channels) continue;
      auto* const to = const_cast<typename C::Bits*>(row_at<C>(tensor, part.batch, part.head, queries[row].place)) + column;
      const float first = acc(thread, i) * factor(thread, i / 2 % 2), second = acc(thread, i + 1) * factor(thread, i / 2 % 2);
      if constexpr (!C::kIsF32) {
        if (tensor.is_wide) {
          *reinterpret_cast<uint32_t*>(to) = C::Element::pair(first, second);
          continue;
        }
      }
      to[0] = C::Element::narrow(first);
      if (column + 1 < tensor.channels) to[1] = C::Element::narrow(second);
    }
  });
}

/// Block i: part i of [batch, heads, rows]. One buffer for keys and one for values: the next keys are on their way while values are multiplied, and the other
/// way round.
template <class C, class Block>
TILEWISE_DEVICE void forward_kernel(Block& block, const ForwardArgs& args) {
  auto& shared = *reinterpret_cast<ForwardShared<C>*>(block.shared());
  const Part part = part_of<C>(args.rows, args.axis_q.slots(), args.heads_q, args.parts_per_row, block.index());
  if (part.count == 0) return;
  const int head_kv = part.head / (args.heads_q / args.heads_kv);
  const bool has_out = args.out.data != nullptr;
  block.each([&](int thread) {
    for (int i = thread; i < C::kTileQ; i += C::kThreads) {
      shared.queries[i] = i < part.count ? query_of(args, part.batch, part.head, part.first + i) : SlotQuery{-1, -1, {}};
    }
  });
  RunWalk<C, Block> walk(block, args.lists, args.rows, args.axis_k, args.heads_q, part.head, part, shared.walk);
  int fill = next_keys<C>(block, args, part, walk, shared.stages[0]);
  if (fill > 0) {
    copy_rows<C>(block, args.q, shared.q, C::kTileQ, [&](int i) -> const typename C::Bits* {
      const int place = shared.queries[i].place;
      return place < 0 ? nullptr : row_at<C>(args.q, part.batch, part.head, place);
    });
    copy_stage<C>(block, args.k, args.pooled_k, part, head_kv, shared.stages[0], shared.k);
  }
  typename Block::template Registers<float, C::kAcc> acc(block);
  block.lanes([&](int thread) { TILEWISE_UNROLL for (int i = 0; i < C::kAcc; ++i) acc(thread, i) = 0; });
  Softmax<Block> softmax(block);
  for (int stage = 0; fill > 0; ++stage) {
    if (has_out) copy_stage<C>(block, args.v, args.pooled_v, part, head_kv, shared.stages[stage % 2], shared.v);
    if (has_out) {
      block.template await_copies<1>();
    } else {
      block.template await_copies<0>();
    }
    block.sync();
    typename Block::template Registers<float, C::kScores> scores(block);
    block.lanes([&](int thread) { TILEWISE_UNROLL for (int i = 0; i < C::kScores; ++i) scores(thread, i) = 0; });
    multiply_by_rows<C>(block, scores, shared.q, shared.k, args.q.channels);
    block.sync();  // all are done with the keys
    fill = next_keys<C>(block, args, part, walk, shared.stages[(stage + 1) % 2]);
    if (fill > 0) copy_stage<C>(block, args.k, args.pooled_k, part, head_kv, shared.stages[(stage + 1) % 2], shared.k);
    finish_scores<C>(block, args, part, shared.queries, shared.stages[stage % 2], scores);
    softmax.template update<C>(block, scores, args.scale * kLog2E);
    if (!has_out) continue;
    softmax.template rescale<C::kAcc>(block, acc);
    typename Block::template Registers<uint32_t, Weights<C>::kPairs> pairs(block);
    keep_weights<C>(block, scores, pairs, shared.weights);
    if (fill > 0) {
      block.template await_copies<1>();
    } else {
      block.template await_copies<0>();
    }
    block.sync();
    multiply_by_columns<C>(block, acc, pairs, shared.weights, shared.v, args.v.channels);
    block.sync();  // all are done with the values
  }
  softmax.finish(block, args.scale, args.sink_logit == nullptr ? nullptr : args.sink_logit + part.head);
  if (has_out) write_queries<C>(block, args.out, part, shared.queries, acc, softmax.alpha);
  if (args.lse == nullptr) return;
  block.lanes([&](int thread) {
    if (thread % 4 != 0) return;
    TILEWISE_UNROLL for (int r = 0; r < 2; ++r) {
      const int place = shared.queries[score_row(thread, 2 * r)].place;
      if (place < 0) continue;
      args.lse[part.batch * args.lse_stride_batch + part.head * args.lse_stride_head + place * args.lse_stride_row] = softmax.row_max(thread, r);
    }
  });
}

/// Block i: pooled key i of [batch, heads of k, pooled], the mean of the real tokens of its slots, summed up in their order and rounded once.
template <class E, class Block>
TILEWISE_DEVICE void pool_kernel(Block& block, const PoolArgs& args) {
  using Bits = typename E::Bits;
  const int64_t index = block.index(), slot = args.axis_k.end[0] + index % args.pooled, head_of_batch = index / args.pooled;
  const int batch = static_cast<int>(head_of_batch / args.heads_kv), head = static_cast<int>(head_of_batch % args.heads_kv);
  const int part = args.axis_k.part_of(slot), group = args.axis_k.group[part];
  const int64_t first = (slot - args.axis_k.end[part - 1]) * group, last = first + group < args.axis_k.end[0] ? first + group : args.axis_k.end[0];
  block.lanes([&](int thread) {
    int largest = -1, count = 0;
    for (int64_t member = first; member < last; ++member) {
      const int token = token_of(args.axis_k, batch, head, args.heads_kv, member);
      largest = token > largest ? token : largest;
      count += token >= 0 ? 1 : 0;
    }
    if (thread == 0) {
      args.token[index] = largest;
      args.count[index] = static_cast<float>(count);
    }
    const auto write = [&](const TensorArg& from, const TensorArg& to) {
      for (int channel = thread; channel < from.channels; channel += block.threads()) {
        float sum = 0;
        for (int64_t member = first; member < last; ++member) {
          const int token = token_of(args.axis_k, batch, head, args.heads_kv, member);
          if (token < 0) continue;
          const int64_t row = args.is_in_slots ? member : token;
          sum += E::wide(static_cast<const Bits*>(
              from.data)[batch * from.stride_batch + (from.heads == 1 ? 0 : head) * from.stride_head + row * from.stride_row + channel]);
        }
        auto* const out = static_cast<Bits*>(const_cast<void*>(to.data));
        out[batch * to.stride_batch + head * to.stride_head + index % args.pooled * to.stride_row + channel] =
            E::narrow(count > 0 ? sum / static_cast<float>(count) : 0.0f);
      }
    };
    write(args.k, args.pooled_k);
    if (args.v.data != nullptr) write(args.v, args.pooled_v);
  });
}

constexpr int kPoolThreads = 128;

}  // namespace tilewise::attend::cuda
