// SPDX-License-Identifier: Apache-2.0
// Attention over a plan from a C++ program that uses libtorch, with gradients; against torch's own attention, since the plan here is dense.
#include <cstdio>

#include "tilewise/tilewise.h"
#include "tilewise_torch/nn/attention.h"

int main() {
  using namespace tilewise;
  torch::manual_seed(0);
  const auto options = torch::requires_grad();
  const torch::Tensor q = torch::randn({2, 4, 200, 64}, options), k = torch::randn({2, 2, 200, 64}, options),
                      v = torch::randn({2, 2, 200, 64}, options);
  Context context = cpu_context();
  const Plan plan = plan_with("dense", {.q = nn::view_of(q), .k = nn::view_of(k)}, {}, context).plan;

  const auto [out, lse] = nn::attend(q, k, v, plan);
  const auto grads = torch::autograd::grad({out.square().sum() + lse.sum()}, {q, k, v});

  const torch::Tensor keys = k.repeat_interleave(2, 1), values = v.repeat_interleave(2, 1);
  const torch::Tensor hidden = torch::ones({200, 200}, torch::kBool).triu(1);
  const torch::Tensor logits = (q.matmul(keys.transpose(-1, -2)) / 8).masked_fill(hidden, -INFINITY);
  const torch::Tensor exact = torch::softmax(logits, -1).matmul(values);
  const auto exact_grads = torch::autograd::grad({exact.square().sum() + torch::logsumexp(logits, -1).sum()}, {q, k, v});

  float error = (out - exact).abs().max().item<float>();
  for (size_t i = 0; i < 3; ++i) error = std::max(error, (grads[i] - exact_grads[i]).abs().max().item<float>());
  std::printf("density %.2f, largest difference from torch in output and gradients %.1e\n", density(plan), error);
  return error < 1e-3F ? 0 : 1;
}
