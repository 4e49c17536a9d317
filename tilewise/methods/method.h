// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "tilewise/base/context.h"
#include "tilewise/plan/plan.h"

TILEWISE_BEGIN_PUBLIC

/// What a method is asked to plan for. q and k are both f32, bf16 or f16, on the CPU, with D contiguous and any other strides; Hkv divides Hq; any Sq and Sk,
/// 0 among them; query i counts as key token i + Sk - Sq. Every method but random takes them on the GPU of their context, too, where that is built (bands in token order), and refuse by name what is not. Scores are f32. A method that does not read values (dense, a_shape, random) asks for shapes only.
/// Errors of every method, beside its own  value (an option outside its range, a scale, softcap, mask or order that cannot be), shape, dtype, device (tensors
/// that do not fit together), memory, cancelled. All come before a plan is made; nothing of the problem is written.
struct Problem {
  TensorView q = {}, k = {};  // [B, Hq, Sq, D], [B, Hkv, Sk, D], as attention reads them (after rotary)
  TensorView v = {};  // [B, Hkv|1, Sk, Dv], only for methods that say so (MethodInfo::needs_v)
  Mask mask = Mask::causal();  // the model's own mask
  Order order_q = {}, order_k = {};  // given orders; absent: token order
  std::optional<float> softmax_scale = {};  // default 1 / sqrt(D)
  float softcap = 0;
  int layer = 0;
  int64_t step = 0;  // of a diffusion sampler
  uint64_t seed = 0;
};

/// A plan and, where the search ran dense attention anyway, its result.
struct Planned {
  Plan plan;
  Tensor out = {}, lse = {};  // [B, Hq, Sq, Dv], [B, Hq, Sq]; absent views unless the method has them
};

using OptionValue = std::variant<bool, int64_t, double, std::string>;
/// Options by name; what is not named keeps its default. An unknown name or a value outside its range is an Error::Kind::value.
using OptionValues = std::map<std::string, OptionValue, std::less<>>;

/// One option of a method, as help texts, range errors, reports and --tune read it.
struct OptionInfo {
  std::string name, help;
  OptionValue default_value;
  std::string range;  // "16 to 256", "true or false", "mass, max"
  std::vector<OptionValue> grid;  // what --tune tries; empty: not tuned
};

struct MethodInfo {
  std::string name, source, summary;  // "xattention", "arXiv 2503.16428", one line
  std::vector<OptionInfo> options;  // one called `density` where the method has a budget by share: what --density sets
  bool needs_v = false;
  bool is_causal_only = false;  // other masks are refused

  bool has_option(std::string_view option) const {
    for (const OptionInfo& info : options) {
      if (info.name == option) return true;
    }
    return false;
  }
};

TILEWISE_END_PUBLIC
