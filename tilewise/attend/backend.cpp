// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/backend.h"

#include <array>
#include <cstdlib>

#include "tilewise/attend/cpu/backward.h"
#include "tilewise/attend/cpu/decode.h"
#include "tilewise/attend/cpu/forward.h"
#include "tilewise/attend/cpu/measure.h"
#include "tilewise/attend/reference/backward.h"
#include "tilewise/attend/reference/decode.h"
#include "tilewise/attend/reference/forward.h"
#include "tilewise/attend/reference/measure.h"
#ifdef TILEWISE_WITH_CUDA
#include "tilewise/attend/cuda/backward.h"
#include "tilewise/attend/cuda/forward.h"
#include "tilewise/attend/cuda/measure.h"
#include "tilewise/attend/sm90/backward.h"
#include "tilewise/attend/sm90/decode.h"
#include "tilewise/attend/sm90/forward.h"
#include "tilewise/attend/sm90/measure.h"
#endif

namespace tilewise::attend {
namespace {

// The reference takes whatever passes the checks and lies on the CPU.
std::optional<std::string> takes(const TensorView& q) {
  if (q.device().type == Device::Type::cpu) return std::nullopt;
  return "the tensors are not on the CPU";
}
std::optional<std::string> takes_forward(const AttendParams& p) { return takes(p.q); }
std::optional<std::string> takes_backward(const AttendBackwardParams& p) { return takes(p.forward.q); }
std::optional<std::string> takes_decode(const DecodeProblem& p) { return takes(p.params.q); }
std::optional<std::string> takes_measure(const MeasureParams& p) { return takes(p.q); }

const std::array kBackends{
#ifdef TILEWISE_WITH_CUDA
    Backend{
        .name = "sm90",
        .forward_refusal = &sm90::refusal,
        .forward = &sm90::forward,
        .backward_refusal = &sm90::refusal,
        .backward = &sm90::backward,
        .decode_refusal = &sm90::refusal,
        .decode = &sm90::decode,
        .measure_refusal = &sm90::refusal,
        .measure = &sm90::measure,
    },
    Backend{
        .name = "cuda",
        .forward_refusal = &cuda::refusal,
        .forward = &cuda::forward,
        .backward_refusal = &cuda::refusal,
        .backward = &cuda::backward,
        .measure_refusal = &cuda::refusal,
        .measure = &cuda::measure,
    },
#endif
    Backend{
        .name = "cpu",
        .forward_refusal = &cpu::refusal,
        .forward = &cpu::forward,
        .backward_refusal = &cpu::refusal,
        .backward = &cpu::backward,
        .decode_refusal = &cpu::refusal,
        .decode = &cpu::decode,
        .measure_refusal = &cpu::refusal,
        .measure = &cpu::measure,
    },
    Backend{
        .name = "reference",
        .forward_refusal = &takes_forward,
        .forward = &reference::forward,
        .backward_refusal = &takes_backward,
        .backward = &reference::backward,
        .decode_refusal = &takes_decode,
        .decode = &reference::decode,
        .measure_refusal = &takes_measure,
        .measure = &reference::measure,
        .is_forced_only = true,
    },
};

}  // namespace

std::span<const Backend> backends() { return kBackends; }

const Backend* forced_backend() {
  const char* const text = std::getenv("TILEWISE_BACKEND");
  const std::string_view name = text == nullptr ? "" : text;
  if (name.empty() || name == "auto") return nullptr;
  for (const Backend& backend : kBackends) {
    if (backend.name == name) return &backend;
  }
  std::string names;
  for (const Backend& backend : kBackends) names.append(names.empty() ? "" : ", ").append(backend.name);
  fail(Error::Kind::value, "TILEWISE_BACKEND is \"", name, "\", takes auto or one of: ", names, "; unset it to let the library choose");
}

}  // namespace tilewise::attend
