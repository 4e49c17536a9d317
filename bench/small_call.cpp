// SPDX-License-Identifier: Apache-2.0
// Microseconds of attend_forward on one head of 64 tokens and 64 channels: what bench/peers_cpu.py takes from the time of the same call from Python.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "tilewise/tilewise.h"

int main(int argc, char** argv) {
  using namespace tilewise;
  Context context = cpu_context(argc > 1 ? std::atoi(argv[1]) : 0);
  const Shape shape = {1, 1, 64, 64};
  const Tensor q(context.memory, Dtype::f32, shape), k(context.memory, Dtype::f32, shape), v(context.memory, Dtype::f32, shape);
  const Tensor out(context.memory, Dtype::f32, shape), lse(context.memory, Dtype::f32, {1, 1, 64});
  for (const Tensor* tensor : {&q, &k, &v}) {
    for (int i = 0; i < 64 * 64; ++i) tensor->view.data<float>()[i] = static_cast<float>(i * 7919 % 1000) / 500 - 1;
  }
  const Plan plan = plan_with("dense", {.q = q.view, .k = k.view}, {}, context).plan;
  double best = std::numeric_limits<double>::infinity();
  for (int round = 0; round < 50; ++round) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 500; ++i) attend_forward({.q = q.view, .k = k.view, .v = v.view, .out = out.view, .lse = lse.view, .plan = plan}, context);
    best = std::min(best, std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() / 500);
  }
  std::printf("%.3f\n", best);
}
