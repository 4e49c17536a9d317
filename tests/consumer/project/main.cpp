// SPDX-License-Identifier: Apache-2.0
#include <tilewise/tilewise.h>

#include <cstdio>
#include <vector>
#ifdef WITH_INFER
#include <tilewise/infer/model.h>
#endif

int main() {
  using namespace tilewise;
  Context context = cpu_context();
  std::vector<float> zeros(2 * 100 * 32, 0.0f), twos(2 * 100 * 32, 2.0f), result(2 * 100 * 32);
  const TensorView q = TensorView::of(zeros.data(), {1, 2, 100, 32}), v = TensorView::of(twos.data(), {1, 2, 100, 32});
  const TensorView out = TensorView::of(result.data(), {1, 2, 100, 32});
  const Plan plan = plan_with("dense", {.q = q, .k = q}, {}, context).plan;
  attend_forward({.q = q, .k = q, .v = v, .out = out, .plan = plan}, context);
  std::printf("tilewise %s: out[0] = %g\n", version().data(), static_cast<double>(result[0]));
#ifdef WITH_INFER
  try {
    Model::load("/nowhere", context);
  } catch (const Error& error) {
    std::printf("%s\n", error.what());
    return error.kind() == Error::Kind::io ? 0 : 1;
  }
  return 1;
#endif
}
