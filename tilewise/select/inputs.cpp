// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/inputs.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "tilewise/plan/mask.h"

namespace tilewise::select {
namespace {

void check_bands(std::string_view where, const Mask& mask) {
  constexpr int64_t kLimit = int64_t{1} << 40;
  const auto fits = [](int64_t side) { return side == Mask::kAll || (side <= kLimit && side >= -kLimit); };
  for (const Mask::Band& band : mask.bands) {
    check(fits(band.left) && fits(band.right) && band.sink >= 0 && band.sink <= kLimit, Error::Kind::value, where, ": the mask's band {left ",
          band.left, ", right ", band.right, ", sink ", band.sink, "} is outside the limits: sides within 2^40 or Mask::kAll, sink 0 to 2^40");
  }
}

void check_mask(std::string_view where, const Mask& mask, const TensorView& q) {
  const int forms = (mask.bands.empty() ? 0 : 1) + (mask.spans.has_value() ? 1 : 0) + (mask.grids.empty() ? 0 : 1);
  check(forms == 1, Error::Kind::value, where, ": the mask has ", forms, " of its three forms (bands, spans, grids); give one, e.g. Mask::causal()");
  size_t classes = mask.bands.empty() ? mask.grids.size() : mask.bands.size();
  if (mask.spans.has_value()) {
    const TensorView& spans = mask.spans;
    check(spans.dtype() == Dtype::i32, Error::Kind::dtype, where, ": mask.spans is ", spans.dtype(), ", it takes i32");
    check(spans.device() == q.device(), Error::Kind::device, where, ": mask.spans is on ", spans.device(), ", q on ", q.device());
    check(spans.rank() == 4 && (spans.dim(1) == 1 || spans.dim(1) == q.dim(0)) && spans.dim(2) == q.dim(2) && spans.dim(3) == 4, Error::Kind::shape,
          where, ": mask.spans is ", spans.shape(), ", it takes [classes, B or 1, Sq, 4] for q ", q.shape());
    classes = static_cast<size_t>(spans.dim(0));
  }
  check(classes >= 1 && classes <= 16, Error::Kind::value, where, ": the mask has ", classes, " head classes, it takes 1 to 16");
  check(mask.head_class.empty() || static_cast<int64_t>(mask.head_class.size()) == q.dim(1), Error::Kind::shape, where, ": mask.head_class names ",
        mask.head_class.size(), " heads, q has ", q.dim(1));
  for (const uint8_t c : mask.head_class) {
    check(c < classes, Error::Kind::value, where, ": mask.head_class names class ", static_cast<int>(c), ", the mask has ", classes);
  }
  check_bands(where, mask);
}

void check_tensor(std::string_view where, std::string_view what, const TensorView& tensor, Device device) {
  check(tensor.has_value(), Error::Kind::shape, where, ": ", what, " is absent; give ", what, " as [B, H, S, D]");
  check(tensor.rank() == 4, Error::Kind::shape, where, ": ", what, " is ", tensor.shape(), ", it takes [B, H, S, D]");
  const Dtype dtype = tensor.dtype();
  check(dtype == Dtype::f32 || dtype == Dtype::bf16 || dtype == Dtype::f16, Error::Kind::dtype, where, ": ", what, " is ", dtype,
        ", it takes f32, bf16 or f16; cast it first");
  check(tensor.device() == device, Error::Kind::device, where, ": ", what, " is on ", tensor.device(), ", selection runs on ", device,
        " here; copy it");
  check(tensor.dim(3) <= 1 || tensor.stride(3) == 1, Error::Kind::shape, where, ": the last axis of ", what, " has stride ", tensor.stride(3),
        ", it must be contiguous");
  check(tensor.dim(1) >= 1 && tensor.dim(3) >= 1, Error::Kind::shape, where, ": ", what, " is ", tensor.shape(),
        ", it needs at least one head and one channel");
  check(tensor.dim(2) <= INT32_MAX, Error::Kind::shape, where, ": ", what, " has ", tensor.dim(2), " tokens, plans hold up to ", INT32_MAX);
}

void check_order(std::string_view where, const char* name, const TensorView& order, int64_t seqlen, int64_t batch, int heads) {
  if (!order.has_value()) return;
  check(order.dtype() == Dtype::i32, Error::Kind::dtype, where, ": ", name, " is ", order.dtype(), ", it takes i32");
  check(order.device().type == Device::Type::cpu, Error::Kind::device, where, ": ", name, " is on ", order.device(),
        ", selection runs on cpu here; copy it");
  check(order.rank() == 3 && (order.dim(0) == 1 || order.dim(0) == batch) && order.dim(1) >= 1 && heads % order.dim(1) == 0 &&
            order.dim(2) >= seqlen && order.dim(2) <= INT32_MAX && (order.dim(2) <= 1 || order.stride(2) == 1),
        Error::Kind::shape, where, ": ", name, " is ", order.shape(), ", it takes [B or 1, G, slots] with B ", batch, ", G a divisor of ", heads,
        " heads and at least ", seqlen, " slots, contiguous");
  for (int64_t b = 0; b < order.dim(0); ++b) {
    for (int64_t g = 0; g < order.dim(1); ++g) {
      std::vector<bool> seen(static_cast<size_t>(seqlen), false);
      int64_t held = 0;
      for (int64_t s = 0; s < order.dim(2); ++s) {
        const int64_t token = order.at<int32_t>(b, g, s);
        if (token == -1) continue;
        check(token >= 0 && token < seqlen && !seen[static_cast<size_t>(token)], Error::Kind::value, where, ": slot ", s, " of ", name,
              " holds token ", token, ", which is outside [0, ", seqlen, ") or repeated; each token has one slot, padding is -1");
        seen[static_cast<size_t>(token)] = true;
        ++held;
      }
      check(held == seqlen, Error::Kind::value, where, ": ", name, " holds ", held, " of ", seqlen, " tokens; it must hold all");
    }
  }
}

bool is_identity(const TensorView& order, int64_t seqlen) {
  if (order.dim(2) != seqlen) return false;
  for (int64_t b = 0; b < order.dim(0); ++b) {
    for (int64_t g = 0; g < order.dim(1); ++g) {
      for (int64_t s = 0; s < seqlen; ++s) {
        if (order.at<int32_t>(b, g, s) != s) return false;
      }
    }
  }
  return true;
}

}  // namespace

void drop_identity_orders(Inputs& inputs) {
  if (inputs.order_q.token.has_value() && is_identity(inputs.order_q.token, inputs.seqlen_q())) inputs.order_q = {};
  if (inputs.order_k.token.has_value() && is_identity(inputs.order_k.token, inputs.seqlen_k())) inputs.order_k = {};
}

std::vector<int64_t> tokens_of_row(const RowGrid& grid, int64_t b, int head, int64_t row) {
  std::vector<int64_t> tokens;
  const plan::SlotTokens queries = grid.queries(b, head);
  for (int64_t slot = grid.first(row); slot < grid.last(row); ++slot) {
    if (queries[slot] >= 0) tokens.push_back(queries[slot] + grid.offset());
  }
  std::sort(tokens.begin(), tokens.end());
  return tokens;
}

RowGrid plain_rows(const Inputs& inputs, int tile) {
  RowGrid grid = RowGrid::plain(inputs.seqlen_q(), inputs.seqlen_k(), tile);
  grid.order_q = inputs.order_q;
  grid.order_k = inputs.order_k;
  grid.heads = inputs.heads_q();
  return grid;
}

RowGrid score_rows(const Inputs& inputs, int tile) {
  const bool is_on_tiles = is_causal(inputs.mask, inputs.seqlen_k()) && !inputs.has_orders();
  return is_on_tiles ? RowGrid::on_key_tiles(inputs.seqlen_q(), inputs.seqlen_k(), tile) : plain_rows(inputs, tile);
}

void check_inputs(std::string_view where, const Inputs& inputs, Device device) {
  const TensorView& q = inputs.q;
  const TensorView& k = inputs.k;
  check_tensor(where, "q", q, device);
  check_tensor(where, "k", k, device);
  check(q.dim(0) == k.dim(0), Error::Kind::shape, where, ": q and k differ in batch: q ", q.shape(), ", k ", k.shape());
  check(q.dim(3) == k.dim(3), Error::Kind::shape, where, ": q and k differ in head_dim: q ", q.shape(), ", k ", k.shape());
  check(q.dim(1) % k.dim(1) == 0, Error::Kind::shape, where, ": the heads of k must divide those of q: q ", q.shape(), ", k ", k.shape());
  check(q.dtype() == k.dtype(), Error::Kind::dtype, where, ": q is ", q.dtype(), ", k is ", k.dtype(), "; cast one");
  check(std::isfinite(inputs.softmax_scale) && inputs.softmax_scale > 0, Error::Kind::value, where, ": softmax_scale is ", inputs.softmax_scale,
        ", it must be finite and above 0");
  check(std::isfinite(inputs.softcap) && inputs.softcap >= 0, Error::Kind::value, where, ": softcap is ", inputs.softcap,
        ", it must be finite and at least 0");
  check_mask(where, inputs.mask, q);
  const auto fault = plan::mask_fault(inputs.mask, q.dim(0), inputs.heads_q(), q.dim(2), k.dim(2));
  check(!fault, Error::Kind::value, where, ": ", fault.value_or(""));
  check_order(where, "order_q", inputs.order_q.token, q.dim(2), q.dim(0), inputs.heads_q());
  check_order(where, "order_k", inputs.order_k.token, k.dim(2), q.dim(0), inputs.heads_q());
}

float scale_or_default(const std::optional<float>& softmax_scale, int64_t head_dim) {
  return softmax_scale.value_or(1.0f / std::sqrt(static_cast<float>(head_dim)));
}

}  // namespace tilewise::select
