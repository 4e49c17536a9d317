// SPDX-License-Identifier: Apache-2.0
#include "tilewise/prepare/quantise.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace tilewise::prepare {
namespace {

using Kind = Error::Kind;

float get(const TensorView& view, int64_t offset) {
  switch (view.dtype()) {
    case Dtype::bf16: return static_cast<float>(static_cast<const bf16*>(view.raw())[offset]);
    case Dtype::f16: return static_cast<float>(static_cast<const f16*>(view.raw())[offset]);
    default: return static_cast<const float*>(view.raw())[offset];
  }
}

void set(const TensorView& view, int64_t offset, float value) {
  switch (view.dtype()) {
    case Dtype::bf16: static_cast<bf16*>(view.raw())[offset] = bf16(value); return;
    case Dtype::f16: static_cast<f16*>(view.raw())[offset] = f16(value); return;
    default: static_cast<float*>(view.raw())[offset] = value;
  }
}

void check_numbers(const char* function, const char* name, const TensorView& x) {
  check(x.rank() == 4, Kind::shape, function, ": ", name, " has shape ", x.shape(), ", takes [B, H, S, D]");
  check(x.dtype() == Dtype::f32 || x.dtype() == Dtype::bf16 || x.dtype() == Dtype::f16, Kind::dtype, function, ": ", name, " is ", x.dtype(),
        ", takes f32, bf16 or f16; convert it first");
  check(x.device().type == Device::Type::cpu, Kind::device, function, ": ", name, " is on ", x.device(), ", only the CPU is built");
  check(x.numel() == 0 || x.raw() != nullptr, Kind::value, function, ": ", name, " ", x.shape(), " has a null pointer; give it memory");
}

// The groups of a quantised tensor [B, H, S, D].
struct Groups {
  int64_t tokens, channels;  // of one
  int64_t count_tokens, count_channels;
};

Groups check_quantised(const char* function, const Quantised& q, const Shape& shape, bool is_written) {
  const TensorView& data = q.data;
  check(data.rank() == 4, Kind::shape, function, ": data has shape ", data.shape(), ", takes four axes");
  check(data.dtype() == Dtype::i8 || data.dtype() == Dtype::u8, Kind::dtype, function, ": data is ", data.dtype(),
        ", takes i8, or u8 of two INT4 codes each");
  check((Shape{data.dim(0), data.dim(1), data.dim(2), q.channels()}) == shape, Kind::shape, function, ": data has shape ", data.shape(), " ",
        data.dtype(), ", takes ", shape, q.is_int4() ? " with half as many bytes as channels" : "");
  check(q.group.tokens >= 0 && q.group.channels >= 0, Kind::value, function, ": the group is ", q.group.tokens, " tokens, ", q.group.channels,
        " channels, takes 1 or more of each, or 0 for all");
  Groups g{};
  g.tokens = q.group.tokens == 0 ? std::max<int64_t>(1, shape[2]) : q.group.tokens;
  g.channels = q.group.channels == 0 ? std::max<int64_t>(1, shape[3]) : q.group.channels;
  g.count_tokens = (shape[2] + g.tokens - 1) / g.tokens;
  g.count_channels = (shape[3] + g.channels - 1) / g.channels;
  for (const TensorView* const scale : {&q.scale, &q.zero}) {
    if (scale == &q.zero && !q.zero.has_value()) continue;
    const char* const name = scale == &q.zero ? "zero" : "scale";
    check(scale->dtype() == Dtype::f32, Kind::dtype, function, ": ", name, " is ", scale->dtype(), ", takes f32");
    check(scale->rank() == 4 && (scale->dim(0) == shape[0] || (!is_written && scale->dim(0) == 1)) &&
              (scale->dim(1) == shape[1] || (!is_written && scale->dim(1) == 1)) && scale->dim(2) == g.count_tokens &&
              scale->dim(3) == g.count_channels,
          Kind::shape, function, ": ", name, " has shape ", scale->shape(), ", takes [", shape[0], ", ", shape[1], ", ", g.count_tokens, ", ",
          g.count_channels, "] for groups of ", g.tokens, " tokens and ", g.channels, " channels");
    check(scale->numel() == 0 || scale->raw() != nullptr, Kind::value, function, ": ", name, " has a null pointer; give it memory");
  }
  check(data.numel() == 0 || data.raw() != nullptr, Kind::value, function, ": data has a null pointer; give it memory");
  return g;
}

int64_t scale_offset(const TensorView& scale, int64_t b, int64_t h, int64_t token_group, int64_t channel_group) {
  return scale.offset(scale.dim(0) == 1 ? 0 : b, scale.dim(1) == 1 ? 0 : h, token_group, channel_group);
}

CodeScale scale_at(const Quantised& q, int64_t b, int64_t h, int64_t token_group, int64_t channel_group) {
  return {static_cast<const float*>(q.scale.raw())[scale_offset(q.scale, b, h, token_group, channel_group)],
          q.zero.has_value() ? static_cast<const float*>(q.zero.raw())[scale_offset(q.zero, b, h, token_group, channel_group)] : 0.0f};
}

int code_at(const Quantised& q, int64_t b, int64_t h, int64_t s, int64_t d) {
  if (!q.is_int4()) return q.data.at<int8_t>(b, h, s, d);
  const int byte = q.data.at<uint8_t>(b, h, s, d / 2);
  return (d % 2 == 0 ? byte & 15 : byte >> 4) - 8;
}

void set_code(const Quantised& q, int64_t b, int64_t h, int64_t s, int64_t d, int code) {
  if (!q.is_int4()) {
    q.data.at<int8_t>(b, h, s, d) = static_cast<int8_t>(code);
    return;
  }
  uint8_t& byte = q.data.at<uint8_t>(b, h, s, d / 2);
  const int half = code + 8;
  byte = static_cast<uint8_t>(d % 2 == 0 ? (byte & 0xf0) | half : (byte & 0x0f) | (half << 4));
}

// Calls body(b, h, token group) for all.
template <class Body>
void for_each_band(const Shape& shape, const Groups& g, Context& context, const Body& body) {
  context.parallel_for(shape[0] * shape[1] * g.count_tokens,
                       [&](int64_t item, int) { body(item / g.count_tokens / shape[1], item / g.count_tokens % shape[1], item % g.count_tokens); });
}

}  // namespace

CodeScale scale_of_range(float least, float most, bool is_int4, bool has_zero) {
  const float largest = is_int4 ? 7.0f : 127.0f, smallest = is_int4 ? -8.0f : -128.0f;
  if (std::isnan(least) || std::isnan(most)) return {std::numeric_limits<float>::quiet_NaN(), 0};
  if (!has_zero) {
    const float magnitude = std::max(std::fabs(least), std::fabs(most));
    // Of numbers so small that the quotient would vanish, each is 0 to within the smallest scale.
    return {magnitude == 0 ? 1.0f : std::max(magnitude / largest, std::numeric_limits<float>::min()), 0};
  }
  if (least == most) {  // code `smallest` stands for it exactly
    const float scale = least == 0 ? 1.0f : std::fabs(least);
    return {scale, smallest - (least == 0 ? 0.0f : std::copysign(1.0f, least))};
  }
  const float scale = std::max(most / (largest - smallest) - least / (largest - smallest), std::numeric_limits<float>::min());
  return {scale, smallest - least / scale};
}

int code_of(float x, CodeScale s, bool is_int4, bool has_zero) {
  const float largest = is_int4 ? 7.0f : 127.0f, smallest = !has_zero ? -largest : -largest - 1;
  const float code = std::nearbyint(x / s.scale + s.zero);
  return std::isnan(code) ? 0 : static_cast<int>(std::clamp(code, smallest, largest));
}

}  // namespace tilewise::prepare

TILEWISE_BEGIN_PUBLIC

void quantise(const QuantiseParams& params, Context& context) {
  const TensorView& x = params.x;
  const Quantised& q = params.out;
  prepare::check_numbers("quantise", "x", x);
  const prepare::Groups g = prepare::check_quantised("quantise", q, x.shape(), !params.has_given_scale);
  const bool has_zero = q.zero.has_value();
  prepare::for_each_band(x.shape(), g, context, [&](int64_t b, int64_t h, int64_t t) {
    const int64_t last = std::min(x.dim(2), (t + 1) * g.tokens);
    for (int64_t c = 0; c < g.count_channels; ++c) {
      const int64_t end = std::min(x.dim(3), (c + 1) * g.channels);
      prepare::CodeScale s{};
      if (params.has_given_scale) {
        s = prepare::scale_at(q, b, h, t, c);
      } else {
        float least = std::numeric_limits<float>::infinity(), most = -least;
        for (int64_t token = t * g.tokens; token < last; ++token) {
          for (int64_t d = c * g.channels; d < end; ++d) {
            const float value = prepare::get(x, x.offset(b, h, token, d));
            least = value < least || std::isnan(value) ? value : least;
            most = value > most || std::isnan(value) ? value : most;
            if (std::isnan(value)) break;
          }
          if (std::isnan(least)) break;
        }
        s = prepare::scale_of_range(least, most, q.is_int4(), has_zero);
        q.scale.at<float>(b, h, t, c) = s.scale;
        if (has_zero) q.zero.at<float>(b, h, t, c) = s.zero;
      }
      for (int64_t token = t * g.tokens; token < last; ++token) {
        for (int64_t d = c * g.channels; d < end; ++d) {
          prepare::set_code(q, b, h, token, d, prepare::code_of(prepare::get(x, x.offset(b, h, token, d)), s, q.is_int4(), has_zero));
        }
      }
    }
  });
}

void dequantise(const Quantised& x, const TensorView& out, Context& context) {
  prepare::check_numbers("dequantise", "out", out);
  const prepare::Groups g = prepare::check_quantised("dequantise", x, out.shape(), false);
  prepare::for_each_band(out.shape(), g, context, [&](int64_t b, int64_t h, int64_t t) {
    for (int64_t token = t * g.tokens; token < std::min(out.dim(2), (t + 1) * g.tokens); ++token) {
      for (int64_t d = 0; d < out.dim(3); ++d) {
        const prepare::CodeScale s = prepare::scale_at(x, b, h, t, d / g.channels);
        prepare::set(out, out.offset(b, h, token, d), (static_cast<float>(prepare::code_at(x, b, h, token, d)) - s.zero) * s.scale);
      }
    }
  });
}

void quantise_backward(const QuantiseBackwardParams& params, Context& context) {
  const TensorView& x = params.x;
  const Quantised& q = params.quantised;
  for (const auto& [name, view] : {std::pair{"x", &x}, std::pair{"dout", &params.dout}, std::pair{"dx", &params.dx}}) {
    prepare::check_numbers("quantise_backward", name, *view);
    check(view->shape() == x.shape(), Error::Kind::shape, "quantise_backward: ", name, " has shape ", view->shape(), ", takes ", x.shape(), " as x");
  }
  const prepare::Groups g = prepare::check_quantised("quantise_backward", q, x.shape(), false);
  const bool has_zero = q.zero.has_value();
  const float largest = q.is_int4() ? 7.0f : 127.0f, smallest = has_zero ? -largest - 1 : -largest;
  prepare::for_each_band(x.shape(), g, context, [&](int64_t b, int64_t h, int64_t t) {
    for (int64_t token = t * g.tokens; token < std::min(x.dim(2), (t + 1) * g.tokens); ++token) {
      for (int64_t d = 0; d < x.dim(3); ++d) {
        const prepare::CodeScale s = prepare::scale_at(q, b, h, t, d / g.channels);
        const float code = std::nearbyint(prepare::get(x, x.offset(b, h, token, d)) / s.scale + s.zero);
        const bool saturates = code < smallest || code > largest;
        prepare::set(params.dx, params.dx.offset(b, h, token, d), saturates ? 0.0f : prepare::get(params.dout, params.dout.offset(b, h, token, d)));
      }
    }
  });
}

TILEWISE_END_PUBLIC
