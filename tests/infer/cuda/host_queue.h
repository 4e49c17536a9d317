// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstring>
#include <memory>

#include "tests/machine/cuda/host_block.h"
#include "tilewise/infer/cuda/queue.h"

namespace tilewise::testing {

/// A queue whose device is the CPU: memory of the heap that is labelled as a GPU's, the kernels' own lines over HostBlock, products in plain loops (f64
/// sums of the rounded operands). A Context for it says Device cuda:0; nothing asks the CUDA runtime for anything.
class HostQueue final : public infer::cuda::Queue {
 public:
  void upload(void* to, const void* from, size_t bytes) override { copy(to, from, bytes); }
  void download(void* to, const void* from, size_t bytes) override { copy(to, from, bytes); }
  void wait() override {}
  void run(const infer::cuda::EmbedArgs& args) override {
    start(args, [&](auto& block) { infer::cuda::embed_kernel(block, args); });
  }
  void run(const infer::cuda::NormArgs& args) override {
    start(args, [&](auto& block) { infer::cuda::norm_kernel(block, args); });
  }
  void run(const infer::cuda::TurnArgs& args) override {
    start(args, [&](auto& block) { infer::cuda::turn_kernel(block, args); });
  }
  void run(const infer::cuda::SiluArgs& args) override {
    start(args, [&](auto& block) { infer::cuda::silu_kernel(block, args); });
  }
  void run(const infer::cuda::BiasArgs& args) override {
    start(args, [&](auto& block) { infer::cuda::bias_kernel(block, args); });
  }
  void run(const infer::cuda::BitsArgs& args) override {
    start(args, [&](auto& block) { infer::cuda::bits_kernel(block, args); });
  }
  void run(const infer::cuda::DrawArgs& args) override {
    start(args, [&](auto& block) { infer::cuda::draw_kernel(block, args); });
  }
  void multiply(const infer::cuda::ProductArgs& args) override {
    const auto value = [&](const void* data, int64_t i) {
      return static_cast<double>(args.dtype == Dtype::bf16 ? static_cast<float>(static_cast<const bf16*>(data)[i])
                                                           : static_cast<const float*>(data)[i]);
    };
    for (int64_t row = 0; row < args.rows; ++row) {
      for (int64_t column = 0; column < args.out; ++column) {
        double sum = args.adds ? static_cast<double>(args.y[row * args.out + column]) : 0.0;
        for (int64_t i = 0; i < args.in; ++i) sum += value(args.x, row * args.in + i) * value(args.weights, column * args.in + i);
        args.y[row * args.out + column] = static_cast<float>(sum);
      }
    }
  }

  int launches() const { return launches_; }

 private:
  static void copy(void* to, const void* from, size_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  template <class Args, class Kernel>
  void start(const Args& args, const Kernel& kernel) {
    launch_on_host(static_cast<long>(args.blocks()), Args::kBlockThreads, infer::cuda::kSumBytes, static_cast<unsigned>(++launches_), kernel);
  }
  int launches_ = 0;
};

/// A context for HostQueue.
inline Context stand_in_context() {
  Context context;
  context.device = {Device::Type::cuda, 0};
  return context;
}

}  // namespace tilewise::testing
