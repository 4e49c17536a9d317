// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/attend/cuda/gradient_kernel.h"

// What of a backward comes before and after its products.
namespace tilewise::attend::cuda {

/// Block i: 32 query slots of [batch, heads, slots], four threads each. delta = dout out^T - dlse.
template <class E, class Block>
TILEWISE_DEVICE void delta_kernel(Block& block, const BackwardArgs& args) {
  using Bits = typename E::Bits;
  const int64_t slots = args.axis_q.end[0], all = int64_t{args.batch} * args.heads_q * slots;
  typename Block::template Registers<float, 1> sum(block);
  const auto slot_at = [&](int thread) { return block.index() * kDeltaRows + thread / 4; };
  const auto place_of = [&](int64_t at) {
    const int64_t slot = at % slots, head = at / slots;
    const int token = token_of(args.axis_q, static_cast<int>(head / args.heads_q), static_cast<int>(head % args.heads_q), args.heads_q, slot);
    return token < 0 ? int64_t{-1} : args.is_in_slots ? slot : int64_t{token};
  };
  block.lanes([&](int thread) {
    sum(thread, 0) = 0;
    const int64_t at = slot_at(thread);
    if (at >= all) return;
    const int64_t place = place_of(at), b = at / slots / args.heads_q, head = at / slots % args.heads_q;
    if (place < 0) return;
    const auto row = [&](const TensorArg& tensor) {
      return static_cast<const Bits*>(tensor.data) + b * tensor.stride_batch + head * tensor.stride_head + place * tensor.stride_row;
    };
    const Bits *const out = row(args.out), *const dout = row(args.dout);
    float total = 0;
    for (int channel = thread % 4; channel < args.out.channels; channel += 4) total += E::wide(out[channel]) * E::wide(dout[channel]);
    sum(thread, 0) = total;
  });
  block.quad(sum, [](float a, float b) { return a + b; });
  block.lanes([&](int thread) {
    const int64_t at = slot_at(thread);
    if (at >= all || thread % 4 != 0) return;
    const int64_t place = place_of(at), b = at / slots / args.heads_q, head = at / slots % args.heads_q;
    args.delta[at] = place < 0 ? 0.0f : args.dlse.data == nullptr ? sum(thread, 0) : sum(thread, 0) - number_at(args.dlse, b, head, place);
  });
}

/// Block h: the gradient of head h's sink, in a fixed order of sums.
template <class Block>
TILEWISE_DEVICE void sink_kernel(Block& block, const BackwardArgs& args) {
  auto* const partial = reinterpret_cast<float*>(block.shared());
  const auto head = static_cast<int>(block.index());
  const int64_t slots = args.axis_q.end[0];
  block.each([&](int thread) {
    float sum = 0;
    for (int64_t i = thread; i < args.batch * slots; i += kSinkThreads) {
      const auto b = static_cast<int>(i / slots);
      const int64_t slot = i % slots;
      const int token = token_of(args.axis_q, b, head, args.heads_q, slot);
      if (token < 0) continue;
      const float lse = number_at(args.lse, b, head, args.is_in_slots ? slot : token);
      if (lse == -INFINITY) continue;
      sum -= exp2f((args.sink_logit[head] - lse) * kLog2E) * args.delta[(int64_t{b} * args.heads_q + head) * slots + slot];
    }
    partial[thread] = sum;
  });
  const float sum = machine::cuda::folded(block, partial, [](float a, float b) { return a + b; });
  block.lanes([&](int thread) {
    if (thread == 0) args.dsink_logit[head] = sum;
  });
}

/// Where each token of the order of keys stands.
template <class Block>
TILEWISE_DEVICE void slot_kernel(Block& block, const BackwardArgs& args) {
  const AxisView& axis = args.axis_k;
  block.lanes([&](int thread) {
    const int64_t at = block.index() * kSlotThreads + thread;
    if (at >= int64_t{axis.batch} * axis.groups * axis.end[0]) return;
    const int token = axis.token[at];
    if (token >= 0) args.slot_of[at / axis.end[0] * args.seqlen_k + token] = static_cast<int32_t>(at % axis.end[0]);
  });
}

/// Block i: row i of [batch, heads, rows] of dk or dv, its own slot's sum and its share of the pools', over the heads of slots that are one here.
template <class E, class Block>
TILEWISE_DEVICE void gather_kernel(Block& block, const BackwardArgs& args, bool is_dv) {
  using Bits = typename E::Bits;
  const TensorArg& to = is_dv ? args.dv : args.dk;
  const float* const slots = is_dv ? args.dv_slots : args.dk_slots;
  if (block.index() >= int64_t{args.batch} * to.heads * args.rows_of_k) return;  // one head of v for all
  const int64_t row = block.index() % args.rows_of_k, of = block.index() / args.rows_of_k, b = of / to.heads, head = of % to.heads;
  const int of_head = args.slot_heads / to.heads;  // heads of slots for each head of `to`
  const AxisView& axis = args.axis_k;
  block.lanes([&](int thread) {
    auto* const out = static_cast<Bits*>(const_cast<void*>(to.data)) + b * to.stride_batch + head * to.stride_head + row * to.stride_row;
    for (int channel = thread; channel < to.channels; channel += kGatherThreads) {
      float sum = 0;
      for (int64_t j = head * of_head; j < (head + 1) * of_head; ++j) {
        const auto head_q = static_cast<int>(j * (args.heads_q / args.slot_heads));
        int64_t slot = row;
        if (args.slot_of != nullptr) {
          const int64_t list = int64_t{axis.batch == 1 ? 0 : b} * axis.groups + static_cast<int64_t>(head_q) * axis.groups / args.heads_q;
          slot = args.slot_of[list * args.seqlen_k + row];
        } else if (args.is_in_slots && token_of(axis, static_cast<int>(b), head_q, args.heads_q, row) < 0) {
          continue;  // padding
        }
        const float* const of_slots = slots + (b * args.slot_heads + j) * axis.slots() * to.channels + channel;
        sum += of_slots[slot * to.channels];
        for (int part = 1; part < axis.parts; ++part) {
          const int64_t pooled = axis.end[part - 1] + slot / axis.group[part];
          const int64_t head_kv = head_q / (args.heads_q / args.heads_kv);
          const float count = args.pooled_count[(b * args.heads_kv + head_kv) * args.pooled + pooled - axis.end[0]];
          sum += of_slots[pooled * to.channels] / count;
        }
      }
      out[channel] = E::narrow(sum);
    }
  });
}

}  // namespace tilewise::attend::cuda
