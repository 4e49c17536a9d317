// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/linear.h"

#include <dlfcn.h>

#include <cstring>
#include <map>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <unordered_map>

#include "tilewise/base/error.h"

#if DNNL_CPU_THREADING_RUNTIME != DNNL_RUNTIME_OMP && DNNL_CPU_THREADING_RUNTIME != DNNL_RUNTIME_SEQ
#error "tilewise needs oneDNN with the OpenMP or the sequential runtime: the others cannot be held to the calling thread here"
#endif

namespace tilewise::infer {
namespace {

using dnnl::memory;

/// Holds oneDNN to the calling thread: its OpenMP runtime is asked, per thread, for teams of one. The symbol is looked up because it must be that of
/// the runtime that oneDNN is bound to, which need not be the one that this file's compiler would link.
class OneThread {
 public:
  OneThread() {
    if (functions().set != nullptr) {
      before_ = functions().get();
      if (before_ != 1) functions().set(1);
    }
  }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;
  ~OneThread() {
    if (before_ > 1) functions().set(before_);
  }

 private:
  struct Functions {
    void (*set)(int) = nullptr;
    int (*get)() = nullptr;
  };
  static const Functions& functions() {
    static const Functions found = [] {
      Functions result;
#if DNNL_CPU_THREADING_RUNTIME == DNNL_RUNTIME_OMP
      result.set = reinterpret_cast<void (*)(int)>(::dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
      result.get = reinterpret_cast<int (*)()>(::dlsym(RTLD_DEFAULT, "omp_get_max_threads"));
      check(result.set != nullptr && result.get != nullptr, Error::Kind::unsupported,
            "infer: oneDNN uses OpenMP, but its runtime is not in the process");
#endif
      return result;
    }();
    return found;
  }
  int before_ = 0;
};

const dnnl::engine& engine() {
  static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

using Type = memory::data_type;

memory::desc matrix(int64_t rows, int64_t columns, Type type, memory::format_tag tag) { return {{rows, columns}, type, tag}; }

struct Layer {
  int64_t out, in;
  Epilogue epilogue;
  Type type;  // of x and the weights
  bool has_bias;
};

/// The product of `rows` rows with weights in the layout `weights`. The C++ interface of oneDNN 3 has no operation descriptors.
dnnl::matmul::primitive_desc describe(const Layer& layer, int64_t rows, const memory::desc& weights) {
  constexpr auto kRows = memory::format_tag::ab;
  const Type result = layer.epilogue == Epilogue::multiply ? layer.type : Type::f32;
  const memory::desc x = matrix(rows, layer.in, layer.type, kRows), y = matrix(rows, layer.out, result, kRows);
  const memory::desc bias = layer.has_bias ? matrix(1, layer.out, Type::f32, kRows) : memory::desc();
  dnnl::post_ops post;
  switch (layer.epilogue) {
    case Epilogue::store: break;
    case Epilogue::add: post.append_sum(1.0f); break;
#if DNNL_VERSION_MAJOR >= 3
    case Epilogue::silu: post.append_eltwise(dnnl::algorithm::eltwise_swish, 1.0f, 0.0f); break;
#else
    case Epilogue::silu: post.append_eltwise(1.0f, dnnl::algorithm::eltwise_swish, 1.0f, 0.0f); break;
#endif
    case Epilogue::multiply: post.append_binary(dnnl::algorithm::binary_mul, matrix(rows, layer.out, Type::f32, kRows)); break;
  }
  dnnl::primitive_attr attributes;
  attributes.set_post_ops(post);
  // The library's own scratchpad belongs to the thread that made the primitive; several threads run ours.
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
#if DNNL_VERSION_MAJOR >= 3
  return layer.has_bias ? dnnl::matmul::primitive_desc(engine(), x, weights, bias, y, attributes)
                        : dnnl::matmul::primitive_desc(engine(), x, weights, y, attributes);
#else
  return {layer.has_bias ? dnnl::matmul::desc(x, weights, bias, y) : dnnl::matmul::desc(x, weights, y), attributes, engine()};
#endif
}

[[noreturn]] void fail_for(const dnnl::error& error, const Layer& layer, const char* what) {
  const bool is_bf16 = layer.type == Type::bf16;
  fail(error.status == dnnl_out_of_memory ? Error::Kind::memory : Error::Kind::unsupported, "infer: oneDNN ", linear_library_version(), " ", what,
       " a linear layer of [", layer.out, ", ", layer.in, "] in ", is_bf16 ? "bf16" : "f32", ": ", error.what(),
       is_bf16 ? "; bf16 needs AVX-512, f32 runs anywhere" : "");
}

}  // namespace

struct Linear::Impl {
  /// The product for one number of rows, made when first asked for: creation compiles code and takes about a millisecond.
  struct Product {
    dnnl::matmul primitive;
    memory::desc x, y, scratch;
    size_t scratch_bytes = 0;
  };

  Layer layer{};
  memory::desc weights_desc;
  Buffer weights, bias;
  Product whole;  // kSliceRows rows
  std::mutex ragged_mutex;
  std::map<int64_t, std::unique_ptr<Product>> ragged;

  Product make(int64_t rows) const {
    const auto description = describe(layer, rows, weights_desc);
    const memory::desc scratch = description.scratchpad_desc();
    return {dnnl::matmul(description), description.src_desc(), description.dst_desc(), scratch, scratch.get_size()};
  }
  const Product& product(int64_t rows) {
    if (rows == kSliceRows) return whole;
    const std::lock_guard lock(ragged_mutex);
    std::unique_ptr<Product>& result = ragged[rows];
    if (result == nullptr) result = std::make_unique<Product>(make(rows));
    return *result;
  }
};

Linear::Linear() = default;
Linear::Linear(Linear&&) noexcept = default;
Linear& Linear::operator=(Linear&&) noexcept = default;
Linear::~Linear() = default;

Linear::Linear(const LinearParams& params, const std::shared_ptr<Memory>& memory_source) : impl_(std::make_unique<Impl>()) {
  check(params.compute == Dtype::f32 || params.compute == Dtype::bf16, Error::Kind::dtype, "infer: linear layers compute in f32 or bf16, got ",
        params.compute);
  impl_->layer = {params.out, params.in, params.epilogue, params.compute == Dtype::f32 ? Type::f32 : Type::bf16, params.bias != nullptr};
  const Layer& layer = impl_->layer;
  const OneThread one_thread;
  try {
    impl_->weights_desc = describe(layer, kSliceRows, matrix(layer.in, layer.out, layer.type, memory::format_tag::any)).weights_desc();
    impl_->weights = Buffer(memory_source, impl_->weights_desc.get_size());
    memory from(matrix(layer.in, layer.out, Type::f32, memory::format_tag::ba), engine(), const_cast<float*>(params.weights));
    memory to(impl_->weights_desc, engine(), impl_->weights.data());
    dnnl::stream stream(engine());
    dnnl::reorder(from, to).execute(stream, from, to);
    stream.wait();
    if (layer.has_bias) {
      const size_t bytes = static_cast<size_t>(layer.out) * sizeof(float);
      impl_->bias = Buffer(memory_source, bytes);
      std::memcpy(impl_->bias.data(), params.bias, bytes);
    }
    impl_->whole = impl_->make(kSliceRows);
  } catch (const dnnl::error& error) {
    fail_for(error, layer, "does not take");
  }
}

int64_t Linear::out() const { return impl_->layer.out; }
int64_t Linear::in() const { return impl_->layer.in; }
Dtype Linear::compute() const { return impl_->layer.type == Type::f32 ? Dtype::f32 : Dtype::bf16; }

void Linear::run(const void* x, int64_t rows, void* y, LinearScratch& scratch, const float* other) const {
  const OneThread one_thread;
  const Layer& layer = impl_->layer;
  try {
    const Impl::Product& product = impl_->product(rows);
    std::unordered_map<int, memory> arguments = {
        {DNNL_ARG_SRC, memory(product.x, engine(), const_cast<void*>(x))},
        {DNNL_ARG_WEIGHTS, memory(impl_->weights_desc, engine(), impl_->weights.data())},
        {DNNL_ARG_DST, memory(product.y, engine(), y)},
        {DNNL_ARG_SCRATCHPAD, memory(product.scratch, engine(), scratch.get(product.scratch_bytes))},
    };
    if (layer.has_bias) {
      arguments.emplace(DNNL_ARG_BIAS, memory(matrix(1, layer.out, Type::f32, memory::format_tag::ab), engine(), impl_->bias.data()));
    }
    if (layer.epilogue == Epilogue::multiply) {
      arguments.emplace(DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1,
                        memory(matrix(rows, layer.out, Type::f32, memory::format_tag::ab), engine(), const_cast<float*>(other)));
    }
    dnnl::stream stream(engine());
    product.primitive.execute(stream, arguments);
    stream.wait();
  } catch (const dnnl::error& error) {
    fail_for(error, layer, "fails on");
  }
}

std::string linear_library_version() {
  const dnnl_version_t* version = dnnl::version();
  return std::to_string(version->major) + "." + std::to_string(version->minor) + "." + std::to_string(version->patch);
}

}  // namespace tilewise::infer
