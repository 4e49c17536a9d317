// SPDX-License-Identifier: Apache-2.0
#include "tilewise/prepare/reorder.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "tilewise/plan/rows.h"

namespace tilewise::prepare {
namespace {

int64_t groups_of(const Order& order) { return order.token.has_value() ? order.token.dim(1) : 1; }
int64_t slots_of(const Order& order, int64_t tokens) { return order.token.has_value() ? order.token.dim(2) : tokens; }

void require_tensors(const char* function, const TensorView& tokens, const Order& order, const TensorView& slots) {
  check((tokens.rank() == 3 || tokens.rank() == 4) && slots.rank() == tokens.rank(), Error::Kind::shape, function, ": tokens are ", tokens.shape(),
        " and slots ", slots.shape(), ", takes [B, H, S, D] or [B, H, S], both alike");
  check(tokens.dtype() == slots.dtype(), Error::Kind::dtype, function, ": tokens are ", tokens.dtype(), " and slots ", slots.dtype(),
        ", takes one dtype; convert one of them first");
  const bool has_channels = tokens.rank() == 4;
  for (const TensorView* view : {&tokens, &slots}) {
    check(!has_channels || view->dim(3) <= 1 || view->stride(3) == 1, Error::Kind::shape, function, ": a last axis has stride ",
          has_channels ? view->stride(3) : 1, ", takes 1; copy the tensor so that it is contiguous");
  }
  if (order.token.has_value()) {
    check(order.token.dtype() == Dtype::i32 && order.token.rank() == 3 && (order.token.dim(0) == 1 || order.token.dim(0) == tokens.dim(0)),
          Error::Kind::shape, function, ": the order's token is ", order.token.dtype(), " ", order.token.shape(), ", takes i32 [1 or ", tokens.dim(0),
          ", G, slots]");
  }
  const int64_t heads = slots.dim(1), groups = groups_of(order);
  check(slots.dim(0) == tokens.dim(0) && (!has_channels || slots.dim(3) == tokens.dim(3)) && slots.dim(2) == slots_of(order, tokens.dim(2)),
        Error::Kind::shape, function, ": slots are ", slots.shape(), " for tokens ", tokens.shape(), " and ", slots_of(order, tokens.dim(2)),
        " slots of the order");
  check(heads == 0 || (tokens.dim(1) >= 1 && heads % tokens.dim(1) == 0 && heads % groups == 0), Error::Kind::shape, function, ": slots have ", heads,
        " heads, takes a multiple of the ", tokens.dim(1), " heads of the tokens and of the ", groups, " groups of the order");
  if (!order.token.has_value()) return;
  for (int64_t b = 0; b < order.token.dim(0); ++b) {
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t s = 0; s < order.token.dim(2); ++s) {
        const int64_t token = order.token.at<int32_t>(b, g, s);
        check(token >= -1 && token < tokens.dim(2), Error::Kind::value, function, ": slot ", s, " of group ", g, " holds token ", token,
              ", takes -1 (padding) to ", tokens.dim(2) - 1);
      }
    }
  }
}

// Calls body(tokens row or null, slots row, bytes) for every slot.
template <class Body>
void for_each_row(const TensorView& tokens, const Order& order, const TensorView& slots, Context& context, const Body& body) {
  constexpr int64_t kSlots = 1024;  // of an item
  const int64_t heads = slots.dim(1), count = slots.dim(2), parts = (count + kSlots - 1) / kSlots;
  const auto element = static_cast<int64_t>(size_of(tokens.dtype()));
  const size_t bytes = static_cast<size_t>((tokens.rank() == 4 ? tokens.dim(3) : 1) * element);
  const auto at = [&](const TensorView& view, int64_t b, int64_t h, int64_t i) {
    return static_cast<std::byte*>(view.raw()) + view.offset(b, h, i) * element;
  };
  context.parallel_for(slots.dim(0) * heads * parts, [&](int64_t item, int) {
    const int64_t part = item % parts, j = item / parts % heads, b = item / parts / heads;
    const int64_t h = j * tokens.dim(1) / heads, last = std::min(count, (part + 1) * kSlots);
    const int64_t bi = order.token.has_value() ? plan::batch_index(order.token, b) : 0, g = j * groups_of(order) / heads;
    for (int64_t s = part * kSlots; s < last; ++s) {
      const int64_t token = order.token.has_value() ? order.token.at<int32_t>(bi, g, s) : s;
      body(token < 0 ? nullptr : at(tokens, b, h, token), at(slots, b, j, s), bytes);
    }
  });
}

}  // namespace

void to_slots(const TensorView& tokens, const Order& order, const TensorView& slots, Context& context) {
  require_tensors("prepare::to_slots", tokens, order, slots);
  for_each_row(tokens, order, slots, context, [](const std::byte* token, std::byte* slot, size_t bytes) {
    if (token == nullptr) {
      std::memset(slot, 0, bytes);
    } else {
      std::memcpy(slot, token, bytes);
    }
  });
}

Tensor to_slots(const TensorView& tokens, const Order& order, Context& context) {
  const int64_t heads = std::lcm(tokens.dim(1), groups_of(order)), count = slots_of(order, tokens.dim(2));
  Tensor slots(context.memory, tokens.dtype(),
               tokens.rank() == 4 ? Shape{tokens.dim(0), heads, count, tokens.dim(3)} : Shape{tokens.dim(0), heads, count});
  to_slots(tokens, order, slots.view, context);
  return slots;
}

void to_tokens(const TensorView& slots, const Order& order, const TensorView& tokens, Context& context) {
  require_tensors("prepare::to_tokens", tokens, order, slots);
  check(slots.dim(1) == tokens.dim(1), Error::Kind::shape, "prepare::to_tokens: slots have ", slots.dim(1), " heads and tokens ", tokens.dim(1),
        ", takes the same number");
  for_each_row(tokens, order, slots, context, [](std::byte* token, const std::byte* slot, size_t bytes) {
    if (token != nullptr) std::memcpy(token, slot, bytes);
  });
}

}  // namespace tilewise::prepare
