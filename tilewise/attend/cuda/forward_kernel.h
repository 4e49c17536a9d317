// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/attend/cuda/softmax.h"

// Forward attention over a plan on any GPU with cp.async and mma.sync: FlashAttention-2, arXiv 2307.08691, Algorithm 1, with the keys of a stage gathered from
// whatever runs, orders and pools the plan names. Every part of a plan takes this one loop, so it is right before it is fast: attend/sm90 is the fast path.
namespace tilewise::attend::cuda {

template <class C>
struct alignas(16) ForwardShared {
  typename C::Bits q[C::kTileQ * C::kRow], k[C::kTileK * C::kRow], v[C::kTileK * C::kRow];
  float weights[Weights<C>::kShared + (C::kIsF32 ? 0 : 4)];
  PartQuery queries[C::kTileQ];
  WalkShared<C> walk;
};

/// Starts the copies of a stage's keys or values: of tokens or slots from `tensor`, of pooled keys from `pooled`.
template <class C, class Block>
TILEWISE_DEVICE void copy_stage(Block& block, const TensorArg& tensor, const TensorArg& pooled, const Part& part, int head_kv,
                                const StageKeys<C::kTileK>& keys, typename C::Bits* tile) {
  const int64_t head = tensor.heads == 1 ? 0 : head_kv;
  copy_rows<C>(block, tensor, tile, C::kTileK, [&](int i) -> const typename C::Bits* {
    const int place = keys.place[i];
    if (place >= 0) return row_at<C>(tensor, part.batch, head, place);
    return place == StageKeys<C::kTileK>::kNowhere ? nullptr : row_at<C>(pooled, part.batch, head_kv, -2 - place);
  });
  block.close_copies();
}

template <class C, class Block>
TILEWISE_DEVICE void copy_queries(Block& block, const TensorArg& tensor, const Part& part, const PartQuery* queries, typename C::Bits* tile) {
  copy_rows<C>(block, tensor, tile, C::kTileQ, [&](int i) -> const typename C::Bits* {
    return queries[i].place < 0 ? nullptr : row_at<C>(tensor, part.batch, part.head, queries[i].place);
  });
}

/// Writes a thread's numbers of a tile of queries, two neighbours at a time.
template <class C, class Block, class Acc, class Factor>
TILEWISE_DEVICE void write_queries(Block& block, const TensorArg& tensor, const Part& part, const PartQuery* queries, const Acc& acc,
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
  const Part part = part_of<C>(args, block.index());
  if (part.count == 0) return;
  const int head_kv = part.head / (args.heads_q / args.heads_kv);
  const bool has_out = args.out.data != nullptr;
  note_queries<C>(block, args, part, shared.queries);
  KeyWalk<C, Block> walk(block, args, part, shared.walk);
  int fill = walk.next(block, 0);
  if (fill > 0) {
    copy_queries<C>(block, args.q, part, shared.queries, shared.q);
    copy_stage<C>(block, args.k, args.pooled_k, part, head_kv, walk.stage(0), shared.k);
  }
  typename Block::template Registers<float, C::kAcc> acc(block);
  block.lanes([&](int thread) { TILEWISE_UNROLL for (int i = 0; i < C::kAcc; ++i) acc(thread, i) = 0; });
  Softmax<Block> softmax(block);
  for (int stage = 0; fill > 0; ++stage) {
    if (has_out) copy_stage<C>(block, args.v, args.pooled_v, part, head_kv, walk.stage(stage), shared.v);
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
    fill = walk.next(block, stage + 1);
    if (fill > 0) copy_stage<C>(block, args.k, args.pooled_k, part, head_kv, walk.stage(stage + 1), shared.k);
    finish_scores<C>(block, args, args, part, shared.queries, walk.stage(stage), scores);
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
      args.bias[index] = count > 0 ? logf(static_cast<float>(count)) : 0.0f;
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
