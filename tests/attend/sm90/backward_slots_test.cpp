// SPDX-License-Identifier: Apache-2.0
// Rows into the order of slots and back, by the kernel's own lines on the CPU, against one element after another.
#include "tilewise/attend/sm90/backward_slots_kernel.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "tests/machine/cuda/host_block.h"

namespace tilewise::attend::sm90 {
namespace {

using tilewise::testing::launch_on_host;

struct Tensor {
  int batch, heads, rows, channels;
  int64_t stride_row;
  std::vector<uint16_t> storage;
  uint16_t* data;  // at a multiple of 16 bytes, between guards

  Tensor(int b, int h, int r, int c, uint16_t fill) : batch(b), heads(h), rows(r), channels(c), stride_row((c + 7) / 8 * 8 + 8) {
    const auto size = static_cast<size_t>(int64_t{b} * h * r * stride_row);
    storage.assign(size + 64, fill);
    auto address = reinterpret_cast<uintptr_t>(storage.data() + 16);
    data = storage.data() + 16 + (16 - address % 16) % 16 / 2;
  }
  uint16_t& at(int b, int h, int r, int c) const { return data[((int64_t{b} * heads + h) * rows + r) * stride_row + c]; }
  SlotRows view() const { return {data, heads * rows * stride_row, rows * stride_row, stride_row, channels}; }
};

void run(const MoveRowsArgs& args, unsigned seed) {
  launch_on_host(static_cast<long>(move_blocks(args)), kMoveThreads, 0, seed, [&](auto& block) { move_rows_kernel(block, args); });
}

TEST(BackwardSlots, RowsGoToTheirSlotsAndBack) {
  std::mt19937 engine(3);
  const auto number = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine); };
  for (unsigned seed = 0; seed < 60; ++seed) {
    const int batch = number(1, 2), heads = 4, tokens = number(1, 100), slots = tokens + number(0, 40),
              channels = std::array{8, 64, 128, 40, 5}[seed % 5];
    const int groups = std::array{1, 2, 4}[seed % 3], order_batch = seed % 2 == 0 ? 1 : batch;
    const bool is_in_slots = seed % 4 == 1, has_order = seed % 7 != 0;
    const int rows = is_in_slots || !has_order ? slots : tokens;
    std::vector<int32_t> token(static_cast<size_t>(order_batch * groups * slots), -1);
    for (int of = 0; of < order_batch * groups; ++of) {
      const auto begin = token.begin() + of * slots;
      std::iota(begin, begin + tokens, 0);
      std::shuffle(begin, begin + slots, engine);
    }
    const auto held = [&](int b, int h, int slot) {
      const int list = (order_batch == 1 ? 0 : b) * groups + h * groups / heads;
      return has_order ? token[static_cast<size_t>(list) * static_cast<size_t>(slots) + static_cast<size_t>(slot)] : slot;
    };
    const Tensor caller(batch, heads, rows, channels, 7), in_slots(batch, heads, slots, channels, 9), back(batch, heads, rows, channels, 11);
    for (int b = 0; b < batch; ++b) {
      for (int h = 0; h < heads; ++h) {
        for (int r = 0; r < rows; ++r) {
          for (int c = 0; c < channels; ++c) caller.at(b, h, r, c) = static_cast<uint16_t>(number(20, 60000));
        }
      }
    }
    std::vector<float> lse(static_cast<size_t>(batch * heads * rows)), lse_in_slots(static_cast<size_t>(batch * heads * slots), 5.0f);
    std::iota(lse.begin(), lse.end(), 1.0f);
    MoveRowsArgs args;
    args.of_caller[1] = caller.view();
    args.of_slots[1] = in_slots.view();
    args.numbers_of_caller[0] = {lse.data(), heads * rows, rows, 1, 0};
    args.numbers_of_slots[0] = {lse_in_slots.data(), heads * slots, slots, 1, -std::numeric_limits<float>::infinity()};
    if (has_order) args.token = token.data();
    args.order_batch = order_batch;
    args.order_groups = groups;
    args.batch = batch;
    args.heads = heads;
    args.slots = slots;
    args.is_in_slots = is_in_slots;
    run(args, seed);
    args.of_caller[1] = back.view();
    args.is_back = true;
    run(args, seed);
    const Tensor want_back(batch, heads, rows, channels, 11);
    for (int b = 0; b < batch; ++b) {
      for (int h = 0; h < heads; ++h) {
        for (int slot = 0; slot < slots; ++slot) {
          const int of = held(b, h, slot), row = is_in_slots ? slot : of;
          ASSERT_EQ(lse_in_slots[static_cast<size_t>((b * heads + h) * slots + slot)],
                    of < 0 ? -std::numeric_limits<float>::infinity() : lse[static_cast<size_t>((b * heads + h) * rows + row)]);
          for (int c = 0; c < channels; ++c) {
            const uint16_t want = of < 0 ? uint16_t{0} : caller.at(b, h, row, c);
            ASSERT_EQ(in_slots.at(b, h, slot, c), want) << "seed " << seed << " slot " << slot;
            if (row >= 0) want_back.at(b, h, row, c) = want;
          }
        }
      }
    }
    ASSERT_TRUE(std::equal(back.data, back.data + int64_t{batch} * heads * rows * back.stride_row, want_back.data)) << "seed " << seed;
    for (const Tensor* tensor : {&in_slots, &back}) {  // nothing between rows or around them
      const uint16_t fill = tensor == &in_slots ? 9 : 11;
      for (int r = 0; r < batch * heads * tensor->rows; ++r) {
        for (int64_t c = channels; c < tensor->stride_row; ++c) ASSERT_EQ(tensor->data[r * tensor->stride_row + c], fill);
      }
      ASSERT_TRUE(std::all_of(tensor->storage.begin(), tensor->storage.begin() + 16, [&](uint16_t x) { return x == fill; }));
      ASSERT_TRUE(std::all_of(tensor->storage.end() - 40, tensor->storage.end(), [&](uint16_t x) { return x == fill; }));
    }
  }
}

// A pooled key for each of its members, and the sum of their gradients back.
TEST(BackwardSlots, PoolsAreRepeatedAndAddedUp) {
  for (unsigned seed = 0; seed < 12; ++seed) {
    std::mt19937 engine(seed);
    const bool is_bf16 = seed % 2 == 0, is_in_slots = seed % 3 == 0;
    const int slots = 77, tokens = 70, channels = 24, rows = is_in_slots ? slots : tokens;
    const std::array<int, 2> groups{4, 30};
    const auto wide = [&](uint16_t bits) { return is_bf16 ? machine::cuda::float_of_bf16(bits) : machine::cuda::float_of_f16(bits); };
    const auto narrow = [&](float x) { return is_bf16 ? machine::cuda::bf16_of_float(x) : machine::cuda::f16_of_float(x); };
    std::vector<int32_t> token(slots, -1);
    std::iota(token.begin(), token.begin() + tokens, 0);
    std::shuffle(token.begin(), token.end(), engine);
    std::normal_distribution<float> normal;
    const Tensor caller(1, 2, rows, channels, 7), in_slots(1, 2, 3 * slots, channels, 9), back(1, 2, rows, channels, 11);
    for (int h = 0; h < 2; ++h) {
      for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < channels; ++c) caller.at(0, h, r, c) = narrow(normal(engine));
      }
    }
    MoveRowsArgs args;
    args.of_caller[0] = caller.view();
    args.of_slots[0] = in_slots.view();
    args.token = token.data();
    args.batch = 1;
    args.heads = 2;
    args.slots = slots;
    args.is_in_slots = is_in_slots;
    args.is_bf16 = is_bf16;
    args.pools = 2;
    std::copy(groups.begin(), groups.end(), args.group);
    run(args, seed);
    const auto row_of = [&](int slot) { return is_in_slots ? slot : token[static_cast<size_t>(slot)]; };
    for (int h = 0; h < 2; ++h) {
      for (int slot = 0; slot < slots; ++slot) {
        for (int c = 0; c < channels; ++c) {
          for (int pool = 0; pool < 2; ++pool) {
            float sum = 0, members = 0;
            const int group = groups[static_cast<size_t>(pool)], from = slot / group * group;
            for (int member = from; member < std::min(slots, from + group); ++member) {
              if (token[static_cast<size_t>(member)] < 0) continue;
              sum += wide(caller.at(0, h, row_of(member), c));
              ++members;
            }
            const uint16_t want = token[static_cast<size_t>(slot)] < 0 ? uint16_t{0} : narrow(sum / members);
            ASSERT_EQ(in_slots.at(0, h, (pool + 1) * slots + slot, c), want) << "seed " << seed << " slot " << slot << " pool " << pool;
          }
        }
      }
    }
    args.of_caller[0] = back.view();
    args.is_back = true;
    run(args, seed);
    for (int h = 0; h < 2; ++h) {
      for (int slot = 0; slot < slots; ++slot) {
        if (row_of(slot) < 0) continue;
        for (int c = 0; c < channels; ++c) {
          float sum = 0;
          for (int part = 0; part < 3; ++part) sum += wide(in_slots.at(0, h, part * slots + slot, c));
          ASSERT_EQ(back.at(0, h, row_of(slot), c), token[static_cast<size_t>(slot)] < 0 ? uint16_t{0} : narrow(sum)) << "seed " << seed;
        }
      }
    }
  }
}

}  // namespace
}  // namespace tilewise::attend::sm90
