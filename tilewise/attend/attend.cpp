// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/attend.h"

#include "tilewise/attend/backend.h"
#include "tilewise/attend/check.h"
#include "tilewise/attend/decode.h"

namespace tilewise {
namespace attend {
namespace {

// How one of the entry points looks in a Backend.
template <class Params>
struct Entry {
  const char* function;
  std::optional<std::string> (*Backend::*refusal)(const Params&);
  Ran (*Backend::*run)(const Params&, Context&);
};

constexpr Entry<AttendParams> kForward{"attend_forward", &Backend::forward_refusal, &Backend::forward};
constexpr Entry<AttendBackwardParams> kBackward{"attend_backward", &Backend::backward_refusal, &Backend::backward};
constexpr Entry<DecodeProblem> kDecode{"attend_decode", &Backend::decode_refusal, &Backend::decode};
constexpr Entry<MeasureParams> kMeasure{"measure", &Backend::measure_refusal, &Backend::measure};

// The first backend that takes the problem, or null with one line of reason for each in `reasons`.
template <class Params>
const Backend* choose(const Entry<Params>& entry, const Params& params, std::string& reasons) {
  const Backend* const forced = forced_backend();
  for (const Backend& backend : backends()) {
    if (forced != nullptr && forced != &backend) continue;
    std::optional<std::string> reason;
    if (backend.is_forced_only && forced == nullptr) {
      reason = "runs only when asked for, since it is slow: set TILEWISE_BACKEND=reference";
    } else if (backend.*entry.run == nullptr) {
      reason = std::string(entry.function) + " is not built";
    } else {
      reason = (backend.*entry.refusal)(params);
    }
    if (!reason) return &backend;
    reasons.append(reasons.empty() ? "" : "\n").append("  ").append(backend.name).append(": ").append(*reason);
  }
  return nullptr;
}

template <class Params>
Ran dispatch(const Entry<Params>& entry, const Params& params, Context& context) {
  std::string reasons;
  const Backend* const backend = choose(entry, params, reasons);
  check(backend != nullptr, Error::Kind::unsupported, entry.function, ": no backend takes this problem.\n", reasons);
  return (backend->*entry.run)(params, context);
}

}  // namespace
}  // namespace attend

inline namespace v0 {

Ran attend_forward(const AttendParams& params, Context& context) {
  attend::check_forward(params, context);
  return attend::dispatch(attend::kForward, params, context);
}

Ran attend_backward(const AttendBackwardParams& params, Context& context) {
  attend::check_backward(params, context);
  return attend::dispatch(attend::kBackward, params, context);
}

Ran attend_decode(const DecodeParams& params, Context& context) {
  return attend::dispatch(attend::kDecode, attend::check_decode(params, context), context);
}

Ran measure(const MeasureParams& params, Context& context) {
  attend::check_measure(params, context);
  return attend::dispatch(attend::kMeasure, params, context);
}

std::string refusals(const AttendParams& params, const Context& context) {
  attend::check_forward(params, context);
  std::string reasons;
  return attend::choose(attend::kForward, params, reasons) != nullptr ? std::string() : reasons;
}

}  // namespace v0
}  // namespace tilewise
