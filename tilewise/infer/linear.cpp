// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/linear.h"

#include <dlfcn.h>

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

memory::desc matrix(int64_t rows, int64_t columns, memory::format_tag tag) { return {{rows, columns}, memory::data_type::f32, tag}; }

/// The product of `rows` rows with weights in the layout `weights`. The C++ interface of oneDNN 3 has no operation descriptors.
dnnl::matmul::primitive_desc describe(int64_t rows, int64_t out, int64_t in, const memory::desc& weights, Epilogue epilogue) {
  const memory::desc x = matrix(rows, in, memory::format_tag::ab), y = matrix(rows, out, memory::format_tag::ab);
  dnnl::post_ops post;
  switch (epilogue) {
    case Epilogue::store: break;
    case Epilogue::add: post.append_sum(1.0f); break;
#if DNNL_VERSION_MAJOR >= 3
    case Epilogue::silu: post.append_eltwise(dnnl::algorithm::eltwise_swish, 1.0f, 0.0f); break;
#else
    case Epilogue::silu: post.append_eltwise(1.0f, dnnl::algorithm::eltwise_swish, 1.0f, 0.0f); break;
#endif
    case Epilogue::multiply: post.append_binary(dnnl::algorithm::binary_mul, y); break;
  }
  dnnl::primitive_attr attributes;
  attributes.set_post_ops(post);
  // The library's own scratchpad belongs to the thread that made the primitive; several threads run ours.
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
#if DNNL_VERSION_MAJOR >= 3
  return {engine(), x, weights, y, attributes};
#else
  return {dnnl::matmul::desc(x, weights, y), attributes, engine()};
#endif
}

}  // namespace

struct Linear::Impl {
  /// The product for one number of rows, made when first asked for: creation compiles code and takes about a millisecond.
  struct Product {
    dnnl::matmul primitive;
    memory::desc x, y, scratch;
    size_t scratch_bytes = 0;
  };

  int64_t out = 0, in = 0;
  Epilogue epilogue = Epilogue::store;
  memory::desc weights_desc;
  Buffer weights;
  Product whole;  // kSliceRows rows
  std::mutex ragged_mutex;
  std::map<int64_t, std::unique_ptr<Product>> ragged;

  Product make(int64_t rows) const {
    const auto description = describe(rows, out, in, weights_desc, epilogue);
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

Linear::Linear(const float* weights, int64_t out, int64_t in, Epilogue epilogue, const std::shared_ptr<Memory>& memory_source)
    : impl_(std::make_unique<Impl>()) {
  const OneThread one_thread;
  try {
    impl_->out = out;
    impl_->in = in;
    impl_->epilogue = epilogue;
    impl_->weights_desc = describe(kSliceRows, out, in, matrix(in, out, memory::format_tag::any), epilogue).weights_desc();
    impl_->weights = Buffer(memory_source, impl_->weights_desc.get_size());
    memory from(matrix(in, out, memory::format_tag::ba), engine(), const_cast<float*>(weights));
    memory to(impl_->weights_desc, engine(), impl_->weights.data());
    dnnl::stream stream(engine());
    dnnl::reorder(from, to).execute(stream, from, to);
    stream.wait();
    impl_->whole = impl_->make(kSliceRows);
  } catch (const dnnl::error& error) {
    fail(error.status == dnnl_out_of_memory ? Error::Kind::memory : Error::Kind::unsupported, "infer: oneDNN ", linear_library_version(),
         " does not take a linear layer of [", out, ", ", in, "]: ", error.what());
  }
}

int64_t Linear::out() const { return impl_->out; }
int64_t Linear::in() const { return impl_->in; }

void Linear::run(const float* x, int64_t rows, float* y, LinearScratch& scratch, const float* other) const {
  const OneThread one_thread;
  try {
    const Impl::Product& product = impl_->product(rows);
    std::unordered_map<int, memory> arguments = {
        {DNNL_ARG_SRC, memory(product.x, engine(), const_cast<float*>(x))},
        {DNNL_ARG_WEIGHTS, memory(impl_->weights_desc, engine(), impl_->weights.data())},
        {DNNL_ARG_DST, memory(product.y, engine(), y)},
        {DNNL_ARG_SCRATCHPAD, memory(product.scratch, engine(), scratch.get(product.scratch_bytes))},
    };
    if (impl_->epilogue == Epilogue::multiply) {
      arguments.emplace(DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1, memory(product.y, engine(), const_cast<float*>(other)));
    }
    dnnl::stream stream(engine());
    product.primitive.execute(stream, arguments);
    stream.wait();
  } catch (const dnnl::error& error) {
    fail(error.status == dnnl_out_of_memory ? Error::Kind::memory : Error::Kind::unsupported, "infer: oneDNN ", linear_library_version(),
         " fails on ", rows, " rows of a linear layer of [", impl_->out, ", ", impl_->in, "]: ", error.what());
  }
}

std::string linear_library_version() {
  const dnnl_version_t* version = dnnl::version();
  return std::to_string(version->major) + "." + std::to_string(version->minor) + "." + std::to_string(version->patch);
}

}  // namespace tilewise::infer
