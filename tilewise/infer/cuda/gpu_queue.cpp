// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/cuda/queue.h"
#include "tilewise/machine/device.h"

#ifdef TILEWISE_WITH_CUBLASLT
#include "tilewise/infer/cuda/launch.h"
#include "tilewise/infer/cuda/products.h"
#include "tilewise/machine/cuda/check.h"
#endif

namespace tilewise::infer::cuda {

#ifdef TILEWISE_WITH_CUBLASLT

namespace {

using machine::cuda::check_cuda;

class GpuQueue final : public Queue {
 public:
  GpuQueue(std::shared_ptr<Products> products, const Context& context)
      : products_(std::move(products)),
        context_(context),
        stream_(static_cast<cudaStream_t>(context.stream)),
        workspace_(context.memory, Products::kWorkspaceBytes) {}

  void upload(void* to, const void* from, size_t bytes) override {
    const machine::cuda::DeviceScope scope(context_.device.index);
    // From pageable memory the call returns when the bytes have been taken.
    if (bytes > 0) check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "infer: a copy to ", context_.device);
  }
  void download(void* to, const void* from, size_t bytes) override { machine::copy_to_host(to, from, bytes, context_); }
  void wait() override { machine::wait(context_); }
  void run(const EmbedArgs& args) override { start(args, "embed"); }
  void run(const NormArgs& args) override { start(args, "norm"); }
  void run(const TurnArgs& args) override { start(args, "turn"); }
  void run(const SiluArgs& args) override { start(args, "silu"); }
  void run(const BiasArgs& args) override { start(args, "bias"); }
  void run(const BitsArgs& args) override { start(args, "bits"); }
  void run(const DrawArgs& args) override { start(args, "draw"); }
  void multiply(const ProductArgs& args) override { products_->run(args, workspace_.data(), stream_); }

 private:
  template <class Args>
  void start(const Args& args, const char* name) {
    const machine::cuda::DeviceScope scope(context_.device.index);
    check_cuda(launch(args, stream_), "infer: kernel ", name, " on ", context_.device, ": the launch failed");
  }

  std::shared_ptr<Products> products_;
  Context context_;
  cudaStream_t stream_;
  Buffer workspace_;
};

}  // namespace

std::string why_no_queues(Device device) {
  if (const auto reason = machine::refusal_of(device)) return *reason;
  const Products::Library library = Products::library();
  return library.is_found ? "" : library.text;
}

std::string product_library() { return Products::library().text; }

QueueMaker gpu_queues(const Context& context) {
  if (const auto reason = machine::refusal_of(context.device)) fail(Error::Kind::device, context.device, ": ", *reason);
  auto products = std::make_shared<Products>(context.device.index);
  return [products](const Context& own) -> std::unique_ptr<Queue> { return std::make_unique<GpuQueue>(products, own); };
}

#else

std::string why_no_queues(Device device) {
  if (const auto reason = machine::refusal_of(device)) return *reason;
  return "this build has no cuBLASLt, which a model on a GPU needs; configure where cublasLt.h of CUDA 13 is found, or give its folder with "
         "-DTILEWISE_CUBLASLT_INCLUDE_DIR=...";
}

std::string product_library() { return ""; }

QueueMaker gpu_queues(const Context& context) { fail(Error::Kind::unsupported, context.device, ": ", why_no_queues(context.device)); }

#endif

}  // namespace tilewise::infer::cuda
