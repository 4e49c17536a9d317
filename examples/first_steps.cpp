// SPDX-License-Identifier: Apache-2.0
#include <tilewise/tilewise.h>

#include <cstdio>
#include <random>

int main() {
  using namespace tilewise;
  Context context = cpu_context();
  const Shape shape = {1, 8, 4096, 64};  // B, H, S, D
  const Tensor q(context.memory, Dtype::f32, shape), k(context.memory, Dtype::f32, shape), out(context.memory, Dtype::f32, shape);
  float *x = q.view.data<float>(), *y = k.view.data<float>();
  std::minstd_rand random;
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < shape.numel(); ++i) x[i] = y[i] = 0.3f * normal(random) + (i < 64 ? 0 : 0.99f * x[i - 64]);  // neighbours are alike
  const Plan plan = plan_with("xattention", {.q = q.view, .k = k.view}, {{"threshold", 0.9}}, context).plan;
  const Ran ran = attend_forward({.q = q.view, .k = k.view, .v = k.view, .out = out.view, .plan = plan}, context);
  std::printf("%s: density %.2f\n", ran.target.c_str(), density(plan));
}
