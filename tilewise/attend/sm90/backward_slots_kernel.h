// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/machine/cuda/numbers.h"

// Rows of tensors between the order of tokens and the order of slots, which the backward's products run in.
namespace tilewise::attend::sm90 {

/// A 16-bit tensor [B, H, rows, channels]; rows begin at multiples of 16 bytes.
struct SlotRows {
  uint16_t* data = nullptr;
  int64_t stride_batch = 0, stride_head = 0, stride_row = 0;
  int channels = 0;
};
/// [B, H, rows]; null: none.
struct SlotNumbers {
  float* data = nullptr;
  int64_t stride_batch = 0, stride_head = 0, stride_row = 0;
  float padding = 0;  // of slots that hold no token
};

/// One axis: slot s of head h holds row `token[s]` of the caller's tensors (or, in_slots, row s), -1 nothing.
struct MoveRowsArgs {
  static constexpr int kTensors = 4, kNumbers = 2;
  SlotRows of_caller[kTensors], of_slots[kTensors];
  SlotNumbers numbers_of_caller[kNumbers], numbers_of_slots[kNumbers];  // moved to slots alone
  const int32_t* token = nullptr;  // [order_batch, order_groups, slots]; null: slot s holds token s
  int order_batch = 1, order_groups = 1;
  int batch = 0, heads = 0, slots = 0;
  bool is_in_slots = false;
  bool is_back = false;  // from slots to the caller
  bool is_bf16 = true;
  // Behind the slots, pool by pool, of_slots has a row for each of them: the mean of the group of slots that it belongs to. On the way back these are
  // added to it.
  static constexpr int kPools = 7;
  int pools = 0, group[kPools] = {};
};

constexpr int kMoveThreads = 128, kMovedSlots = 32;  // slots of a block

TILEWISE_HOST_DEVICE inline int64_t move_blocks(const MoveRowsArgs& args) {
  return int64_t{args.batch} * args.heads * ((args.slots + kMovedSlots - 1) / kMovedSlots);
}

/// Padding becomes zeros in slots, and in the caller's tensors where these are in slots, too.
template <class Block>
TILEWISE_DEVICE void move_rows_kernel(Block& block, const MoveRowsArgs& args) {
  constexpr int kChunk = 8;
  struct alignas(16) Chunk {
    uint16_t values[kChunk];
  };
  const int parts = (args.slots + kMovedSlots - 1) / kMovedSlots;
  const int index = static_cast<int>(block.index());  // 64-bit divisions are calls that spill
  const int batch = index / parts / args.heads, head = index / parts % args.heads, first = index % parts * kMovedSlots;
  const int count = args.slots - first < kMovedSlots ? args.slots - first : kMovedSlots;
  const int32_t* const token = args.token == nullptr ? nullptr
                                                     : args.token + (int64_t{args.order_batch == 1 ? 0 : batch} * args.order_groups +
                                                                     static_cast<int64_t>(head) * args.order_groups / args.heads) *
                                                                        args.slots;
  const auto is_real = [&](int slot) { return token == nullptr || token[slot] >= 0; };
  const auto row_of = [&](int slot) { return args.is_in_slots || token == nullptr ? slot : token[slot]; };  // -1: none
  const auto wide = [&](uint16_t bits) { return args.is_bf16 ? machine::cuda::float_of_bf16(bits) : machine::cuda::float_of_f16(bits); };
  const auto narrow = [&](float value) { return args.is_bf16 ? machine::cuda::bf16_of_float(value) : machine::cuda::f16_of_float(value); };
  block.each([&](int thread) {
    for (int tensor = 0; tensor < MoveRowsArgs::kTensors; ++tensor) {
      const SlotRows &caller = args.of_caller[tensor], &slots = args.of_slots[tensor];
      if (slots.data == nullptr) continue;
      const int chunks = (slots.channels + kChunk - 1) / kChunk;
      for (int i = thread; i < count * chunks; i += kMoveThreads) {
        const int slot = first + i / chunks, channel = i % chunks * kChunk, row = row_of(slot);
        if (args.is_back && (row < 0 || (args.pools > 0 && is_real(slot)))) continue;
        uint16_t* const in_slots = slots.data + batch * slots.stride_batch + head * slots.stride_head + slot * slots.stride_row + channel;
        uint16_t* const of_caller =
            caller.data + batch * caller.stride_batch + head * caller.stride_head + int64_t{row} * caller.stride_row + channel;
        uint16_t* const to = args.is_back ? of_caller : in_slots;
        const uint16_t* const from = args.is_back ? in_slots : of_caller;
        const int channels = slots.channels - channel < kChunk ? slots.channels - channel : kChunk;
        if (channels == kChunk) {
          *reinterpret_cast<Chunk*>(to) = is_real(slot) ? *reinterpret_cast<const Chunk*>(from) : Chunk{};
        } else {
          for (int c = 0; c < channels; ++c) to[c] = is_real(slot) ? from[c] : uint16_t{0};
        }
      }
    }
#if defined(__CUDACC__)
#pragma unroll 1
#endif
    for (int tensor = 0; tensor < MoveRowsArgs::kTensors && args.pools > 0; ++tensor) {
      const SlotRows &caller = args.of_caller[tensor], &slots = args.of_slots[tensor];
      if (slots.data == nullptr) continue;
      uint16_t* const in_slots = slots.data + batch * slots.stride_batch + head * slots.stride_head;
      uint16_t* const of_caller = caller.data + batch * caller.stride_batch + head * caller.stride_head;
      for (int i = thread; i < count * slots.channels; i += kMoveThreads) {
        const int slot = first + i / slots.channels, channel = i % slots.channels;
        if (args.is_back) {
          if (!is_real(slot)) continue;
          float sum = wide(in_slots[slot * slots.stride_row + channel]);
          for (int pool = 0; pool < args.pools; ++pool) sum += wide(in_slots[(int64_t{pool + 1} * args.slots + slot) * slots.stride_row + channel]);
          of_caller[row_of(slot) * caller.stride_row + channel] = narrow(sum);
          continue;
        }
        for (int pool = 0; pool < args.pools; ++pool) {
          const int from = slot - slot % args.group[pool], past = from + args.group[pool];
          float sum = 0;
          int members = 0;
          for (int member = from; member < past && member < args.slots && is_real(slot); ++member) {
            if (!is_real(member)) continue;
            sum += wide(of_caller[row_of(member) * caller.stride_row + channel]);
            ++members;
          }
          in_slots[(int64_t{pool + 1} * args.slots + slot) * slots.stride_row + channel] =
              narrow(members > 0 ? sum / static_cast<float>(members) : 0.0f);
        }
      }
    }
    for (int number = 0; number < MoveRowsArgs::kNumbers && thread < count && !args.is_back; ++number) {
      const SlotNumbers &caller = args.numbers_of_caller[number], &slots = args.numbers_of_slots[number];
      if (slots.data == nullptr) continue;
      const int slot = first + thread;
      slots.data[batch * slots.stride_batch + head * slots.stride_head + slot * slots.stride_row] =
          is_real(slot) ? caller.data[batch * caller.stride_batch + head * caller.stride_head + int64_t{row_of(slot)} * caller.stride_row]
                        : slots.padding;
    }
  });
}

}  // namespace tilewise::attend::sm90
