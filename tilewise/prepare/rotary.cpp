// SPDX-License-Identifier: Apache-2.0
#include "tilewise/prepare/rotary.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "tilewise/base/error.h"

namespace tilewise::prepare {
namespace {

constexpr int64_t kRowsPerItem = 256;  // a few microseconds of work, so that a long sequence spreads over the workers

void fill_angles(std::span<const double> frequency, double scale, int64_t position, float* row) {
  for (size_t i = 0; i < frequency.size(); ++i) {
    const double angle = static_cast<double>(position) * frequency[i];
    row[i] = static_cast<float>(std::cos(angle) * scale);
    row[i + frequency.size()] = static_cast<float>(std::sin(angle) * scale);
  }
}

// Turns the rows of one position, of every batch entry and head. `row`: room for a row in f32.
template <class T>
void turn_position(const TensorView& x, const TensorView& out, int64_t s, const float* angles, float* row) {
  const int64_t head_dim = x.dim(3);
  for (int64_t b = 0; b < x.dim(0); ++b) {
    for (int64_t h = 0; h < x.dim(1); ++h) {
      const T* const from = static_cast<const T*>(x.raw()) + x.offset(b, h, s);
      T* const to = static_cast<T*>(out.raw()) + out.offset(b, h, s);
      if constexpr (std::is_same_v<T, float>) {
        rotate_half(from, angles, head_dim, to);
      } else {
        for (int64_t d = 0; d < head_dim; ++d) row[d] = static_cast<float>(from[d]);
        rotate_half(row, angles, head_dim, row);
        for (int64_t d = 0; d < head_dim; ++d) to[d] = T(row[d]);
      }
    }
  }
}

}  // namespace

std::vector<double> rotary_frequencies(int64_t head_dim, double theta) {
  std::vector<double> result(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < result.size(); ++i) result[i] = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
  return result;
}

RotaryTable::RotaryTable(std::span<const double> frequencies, double scale, int64_t first, int64_t count, Context& context)
    : head_dim_(static_cast<int64_t>(2 * frequencies.size())),
      first_(first),
      count_(count),
      table_(context.memory, Dtype::f32, Shape{count, static_cast<int64_t>(2 * frequencies.size())}) {
  float* table = table_.view.data<float>();
  context.parallel_for((count + kRowsPerItem - 1) / kRowsPerItem, [&](int64_t item, int) {
    const int64_t last = std::min(count, (item + 1) * kRowsPerItem);
    for (int64_t row = item * kRowsPerItem; row < last; ++row) fill_angles(frequencies, scale, first + row, table + row * head_dim_);
  });
}

}  // namespace tilewise::prepare

TILEWISE_BEGIN_PUBLIC

void rotary(const RotaryParams& params, Context& context) {
  const TensorView& x = params.x;
  const TensorView& out = params.out;
  check(x.has_value() && x.rank() == 4, Error::Kind::shape, "rotary: x must be [B, H, S, D], got ", x.shape());
  check(out.shape() == x.shape(), Error::Kind::shape, "rotary: out must have the shape of x: x ", x.shape(), ", out ", out.shape());
  check((x.dtype() == Dtype::f32 || x.dtype() == Dtype::bf16 || x.dtype() == Dtype::f16) && out.dtype() == x.dtype(), Error::Kind::dtype,
        "rotary: x and out must both be f32, bf16 or f16, got ", x.dtype(), " and ", out.dtype(), "; convert first");
  check(x.device() == context.device && out.device() == context.device, Error::Kind::device, "rotary: x is on ", x.device(), ", out on ",
        out.device(), ", the context on ", context.device);
  check(x.device().type == Device::Type::cpu, Error::Kind::device, "rotary: only the CPU is built, tensors are on ", x.device());
  const int64_t head_dim = x.dim(3);
  check(head_dim > 0 && head_dim % 2 == 0, Error::Kind::shape, "rotary: D must be even and above 0, got ", head_dim);
  check(x.stride(3) == 1 && out.stride(3) == 1, Error::Kind::unsupported, "rotary: the last axis must be contiguous, strides are ", x.stride(3),
        " and ", out.stride(3), "; copy the tensor first");
  check(std::isfinite(params.theta) && params.theta > 0, Error::Kind::value, "rotary: theta must be finite and above 0, got ", params.theta);
  // Above 2^53 a position is not exact in f64.
  constexpr int64_t kMaxPosition = int64_t{1} << 53;
  check(params.first_position >= 0 && params.first_position <= kMaxPosition - x.dim(2), Error::Kind::value,
        "rotary: positions must lie in [0, 2^53], first_position is ", params.first_position);
  if (x.numel() == 0) return;
  if (x.raw() == out.raw()) {
    for (int axis = 0; axis < 3; ++axis)
      check(x.stride(axis) == out.stride(axis) || x.dim(axis) == 1, Error::Kind::unsupported,
            "rotary: in place, x and out must have the same strides; axis ", axis, " has ", x.stride(axis), " and ", out.stride(axis));
  }

  const auto frequency = prepare::rotary_frequencies(head_dim, params.theta);
  const int64_t seqlen = x.dim(2);
  context.parallel_for((seqlen + prepare::kRowsPerItem - 1) / prepare::kRowsPerItem, [&](int64_t item, int) {
    std::vector<float> angles(static_cast<size_t>(head_dim)), row(angles.size());
    const int64_t last = std::min(seqlen, (item + 1) * prepare::kRowsPerItem);
    for (int64_t s = item * prepare::kRowsPerItem; s < last; ++s) {
      prepare::fill_angles(frequency, 1.0, params.first_position + s, angles.data());
      if (params.is_inverse) {
        for (int64_t i = head_dim / 2; i < head_dim; ++i) angles[static_cast<size_t>(i)] = -angles[static_cast<size_t>(i)];
      }
      switch (x.dtype()) {
        case Dtype::bf16: prepare::turn_position<bf16>(x, out, s, angles.data(), row.data()); break;
        case Dtype::f16: prepare::turn_position<f16>(x, out, s, angles.data(), row.data()); break;
        default: prepare::turn_position<float>(x, out, s, angles.data(), row.data());
      }
    }
  });
}

TILEWISE_END_PUBLIC
