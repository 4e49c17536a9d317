// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/cuda/products.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "tilewise/machine/cuda/check.h"

namespace tilewise::infer::cuda {
namespace {

constexpr const char* kVariable = "TILEWISE_CUBLASLT";

/// The library's functions, by name.
struct Functions {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtGetVersion) version = nullptr;
  decltype(&cublasLtGetStatusString) status_text = nullptr;
  decltype(&cublasLtMatmulDescCreate) make_description = nullptr;
  decltype(&cublasLtMatmulDescDestroy) drop_description = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) set_description = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) make_layout = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) drop_layout = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) make_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) drop_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) choose = nullptr;
  decltype(&cublasLtMatmul) multiply = nullptr;

  std::string place;    // where it was found
  std::string problem;  // why it was not
};

/// The places to look in, most telling first.
std::vector<std::string> candidates() {
  const char* const named = std::getenv(kVariable);
  if (named != nullptr && *named != '\0') return {named};  // what the user says, or nothing
  return {"libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13", "/usr/local/cuda-13/lib64/libcublasLt.so.13"};
}

Functions find_library() {
  Functions found;
  void* library = nullptr;
  std::string looked;
  for (const std::string& place : candidates()) {
    library = ::dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) {
      found.place = place;
      break;
    }
    const char* const reason = ::dlerror();
    looked += (looked.empty() ? "" : "; ") + (reason == nullptr ? place : std::string(reason));  // begins with the place
  }
  if (library == nullptr) {
    found.problem = "cuBLASLt of CUDA 13 is not found; looked for " + looked + ". Set " + kVariable +
                    " to the file, or LD_LIBRARY_PATH to its folder; torch for CUDA 13 brings it as nvidia/cu13/lib/libcublasLt.so.13";
    return found;
  }
  const auto look_up = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, name));
    if (function == nullptr && found.problem.empty()) found.problem = found.place + " has no function " + name + "; cuBLASLt of CUDA 13 is needed";
  };
  look_up(found.create, "cublasLtCreate");
  look_up(found.destroy, "cublasLtDestroy");
  look_up(found.version, "cublasLtGetVersion");
  look_up(found.status_text, "cublasLtGetStatusString");
  look_up(found.make_description, "cublasLtMatmulDescCreate");
  look_up(found.drop_description, "cublasLtMatmulDescDestroy");
  look_up(found.set_description, "cublasLtMatmulDescSetAttribute");
  look_up(found.make_layout, "cublasLtMatrixLayoutCreate");
  look_up(found.drop_layout, "cublasLtMatrixLayoutDestroy");
  look_up(found.make_preference, "cublasLtMatmulPreferenceCreate");
  look_up(found.drop_preference, "cublasLtMatmulPreferenceDestroy");
  look_up(found.set_preference, "cublasLtMatmulPreferenceSetAttribute");
  look_up(found.choose, "cublasLtMatmulAlgoGetHeuristic");
  look_up(found.multiply, "cublasLtMatmul");
  return found;
}

const Functions& functions() {
  static const Functions found = find_library();
  return found;
}

void check_status(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  const Error::Kind kind = status == CUBLAS_STATUS_NOT_SUPPORTED  ? Error::Kind::unsupported
                           : status == CUBLAS_STATUS_ALLOC_FAILED ? Error::Kind::memory
                                                                  : Error::Kind::cuda;
  fail(kind, "infer: cuBLASLt: ", what, ": ", functions().status_text(status));
}

/// Something that the library makes and drops.
template <class Object>
class Owned {
 public:
  Owned() = default;
  Owned(Object object, cublasStatus_t (*drop)(Object)) : object_(object), drop_(drop) {}
  Owned(Owned&& other) noexcept : object_(std::exchange(other.object_, nullptr)), drop_(other.drop_) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(object_, other.object_);
    std::swap(drop_, other.drop_);
    return *this;
  }
  ~Owned() {
    if (object_ != nullptr) drop_(object_);
  }
  Object get() const { return object_; }

 private:
  Object object_ = nullptr;
  cublasStatus_t (*drop_)(Object) = nullptr;
};

Owned<cublasLtMatrixLayout_t> layout(cudaDataType type, int64_t rows, int64_t columns) {
  cublasLtMatrixLayout_t made = nullptr;
  check_status(functions().make_layout(&made, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(columns), rows), "a layout");
  return {made, functions().drop_layout};
}

/// What one shape is multiplied with. The library counts columns first: y^T [out, rows] = W [out, in] x^T [in, rows], where row-major W is in^T.
struct Product {
  Owned<cublasLtMatmulDesc_t> description;
  Owned<cublasLtMatrixLayout_t> weights, x, y;
  cublasLtMatmulAlgo_t algorithm{};
};

Product make_product(cublasLtHandle_t handle, const ProductArgs& args) {
  const Functions& lt = functions();
  Product product;
  cublasLtMatmulDesc_t description = nullptr;
  // CUBLAS_COMPUTE_32F multiplies f32 as f32: TF32 has a type of its own.
  check_status(lt.make_description(&description, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a description");
  product.description = {description, lt.drop_description};
  const cublasOperation_t transposed = CUBLAS_OP_T;
  check_status(lt.set_description(description, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed), "a description");
  const cudaDataType type = args.dtype == Dtype::bf16 ? CUDA_R_16BF : CUDA_R_32F;
  product.weights = layout(type, args.in, args.out);
  product.x = layout(type, args.in, args.rows);
  product.y = layout(CUDA_R_32F, args.out, args.rows);

  cublasLtMatmulPreference_t made = nullptr;
  check_status(lt.make_preference(&made), "a preference");
  const Owned<cublasLtMatmulPreference_t> preference(made, lt.drop_preference);
  const uint64_t workspace = Products::kWorkspaceBytes;
  check_status(lt.set_preference(made, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace), "a preference");
  // Parts of a sum are added in an order of their own from the work space, or there are none: never in the order in which they come.
  const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  check_status(lt.set_preference(made, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof schemes), "a preference");
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  const cublasStatus_t status =
      lt.choose(handle, description, product.weights.get(), product.x.get(), product.y.get(), product.y.get(), made, 1, &best, &found);
  check(status == CUBLAS_STATUS_SUCCESS && found > 0 && best.state == CUBLAS_STATUS_SUCCESS, Error::Kind::unsupported,
        "infer: cuBLASLt has no product of [", args.rows, ", ", args.in, "] and [", args.out, ", ", args.in, "]^T in ", args.dtype, ": ",
        lt.status_text(status != CUBLAS_STATUS_SUCCESS ? status : CUBLAS_STATUS_NOT_SUPPORTED));
  product.algorithm = best.algo;
  return product;
}

}  // namespace

struct Products::Impl {
  int device = 0;
  cublasLtHandle_t handle = nullptr;
  std::mutex mutex;
  std::map<std::tuple<int64_t, int64_t, int64_t, Dtype>, Product> products;  // map: a product keeps its place
};

Products::Products(int device) : impl_(std::make_unique<Impl>()) {
  check(functions().problem.empty(), Error::Kind::unsupported, "infer: ", functions().problem);
  impl_->device = device;
  const machine::cuda::DeviceScope scope(device);
  check_status(functions().create(&impl_->handle), "no handle");
}

Products::~Products() {
  if (impl_->handle != nullptr) functions().destroy(impl_->handle);
}

void Products::run(const ProductArgs& args, void* workspace, cudaStream_t stream) {
  if (args.rows == 0) return;
  const machine::cuda::DeviceScope scope(impl_->device);
  const Product* product = nullptr;
  {
    const std::lock_guard lock(impl_->mutex);
    const auto key = std::tuple(args.rows, args.out, args.in, args.dtype);
    auto place = impl_->products.find(key);
    if (place == impl_->products.end()) place = impl_->products.emplace(key, make_product(impl_->handle, args)).first;
    product = &place->second;
  }
  const float one = 1, kept = args.adds ? 1.0f : 0.0f;
  check_status(
      functions().multiply(impl_->handle, product->description.get(), &one, args.weights, product->weights.get(), args.x, product->x.get(), &kept,
                           args.y, product->y.get(), args.y, product->y.get(), &product->algorithm, workspace, kWorkspaceBytes, stream),
      "a product failed");
}

Products::Library Products::library() {
  const Functions& found = functions();
  if (!found.problem.empty()) return {found.problem, false};
  const size_t version = found.version();  // 130000 + ...: major * 10000 + minor * 100 + patch
  return {std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." + std::to_string(version % 100) + ", " + found.place,
          true};
}

}  // namespace tilewise::infer::cuda
