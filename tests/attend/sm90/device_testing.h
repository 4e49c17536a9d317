// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tests/attend/test_tensor.h"
#include "tilewise/attend/params.h"
#include "tilewise/base/context.h"
#include "tilewise/machine/cuda/memory.h"

// What the tests that run on a GPU share; they stand alone, since the machine with the GPU has no GoogleTest.
namespace tilewise::attend::testing {

inline constexpr unsigned char kPattern = 0xa5;
inline constexpr size_t kZone = 4096;  // bytes before and after every tensor

inline void cuda_ok(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("FAIL %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

// A tensor on the device with the strides of a host tensor, between red zones.
class DeviceTensor {
 public:
  DeviceTensor() = default;
  explicit DeviceTensor(const TensorView& host) : bytes_(span_bytes(host) + 2 * kZone) {
    cuda_ok(cudaMalloc(&data_, bytes_), "cudaMalloc");
    std::array<int64_t, Shape::kMaxRank> strides{};
    for (int axis = 0; axis < host.rank(); ++axis) strides[static_cast<size_t>(axis)] = host.stride(axis);
    view = TensorView(static_cast<char*>(data_) + kZone, host.dtype(), host.shape(), strides, {Device::Type::cuda, 0});
    wipe();
  }
  DeviceTensor(const DeviceTensor&) = delete;
  DeviceTensor& operator=(const DeviceTensor&) = delete;
  ~DeviceTensor() { cudaFree(data_); }

  void wipe() const { cuda_ok(cudaMemset(data_, kPattern, bytes_), "cudaMemset"); }
  void upload(const TensorView& host) const {
    std::vector<unsigned char> all(bytes_, kPattern);
    const size_t size = size_of(host.dtype());
    for_each_offset(host, [&](int64_t offset) {
      const size_t at = static_cast<size_t>(offset) * size;
      std::memcpy(all.data() + kZone + at, static_cast<const char*>(host.raw()) + at, size);
    });
    cuda_ok(cudaMemcpy(data_, all.data(), bytes_, cudaMemcpyHostToDevice), "upload");
  }
  std::vector<unsigned char> bytes() const {
    std::vector<unsigned char> all(bytes_);
    cuda_ok(cudaMemcpy(all.data(), data_, bytes_, cudaMemcpyDeviceToHost), "download");
    return all;
  }
  // The elements as f64, in the order of the axes; false where memory that is no element was written.
  bool values(std::vector<double>& values) const {
    std::vector<unsigned char> all = bytes();
    const TensorView host(all.data() + kZone, view.dtype(), view.shape(), strides());
    values = values_of(host);
    const size_t size = size_of(view.dtype());
    for_each_offset(host, [&](int64_t offset) { std::memset(all.data() + kZone + static_cast<size_t>(offset) * size, kPattern, size); });
    return std::all_of(all.begin(), all.end(), [](unsigned char byte) { return byte == kPattern; });
  }

  TensorView view;

 private:
  std::array<int64_t, Shape::kMaxRank> strides() const {
    std::array<int64_t, Shape::kMaxRank> all{};
    for (int axis = 0; axis < view.rank(); ++axis) all[static_cast<size_t>(axis)] = view.stride(axis);
    return all;
  }
  static size_t span_bytes(const TensorView& host) {
    int64_t last = 0;
    if (host.numel() == 0) return 0;
    for (int axis = 0; axis < host.rank(); ++axis) last += (host.dim(axis) - 1) * host.stride(axis);
    return static_cast<size_t>(last + 1) * size_of(host.dtype());
  }
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Declared before what is allocated on it, since that goes back on it.
struct Stream {
  cudaStream_t raw = nullptr;
  Stream() { cuda_ok(cudaStreamCreateWithFlags(&raw, cudaStreamNonBlocking), "stream"); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(raw); }
};

inline std::mutex gpu;  // one problem on the device at a time
inline std::atomic<int> failures{0}, ran{0};
inline bool is_dry = false;  // the host's part alone
inline std::string expected_backend = "sm90";

inline void report(const std::string& what, const std::string& note) {
  if (++failures <= 20) std::printf("FAIL %s: %s\n", what.c_str(), note.c_str()), std::fflush(stdout);
}

// As cudaDeviceSynchronize, but a kernel that hangs is reported.
inline cudaError_t finished_within(int seconds) {
  const auto start = std::chrono::steady_clock::now();
  while (true) {
    const cudaError_t error = cudaStreamQuery(nullptr);
    if (error != cudaErrorNotReady) return error;
    if (std::chrono::steady_clock::now() - start > std::chrono::seconds(seconds)) return cudaErrorLaunchTimeout;
    std::this_thread::yield();
  }
}

/// Whether `repeats` calls, wipe() before each, end on expected_backend and leave the same bits(); what does not is reported. A hang ends the process.
template <class Wipe, class Call, class Bits>
bool runs_alike(int repeats, const std::string& note, const Wipe& wipe, const Call& call, const Bits& bits) {
  decltype(bits()) first;
  for (int i = 0; i < repeats; ++i) {
    wipe();
    try {
      const Ran result = call();
      if (result.backend != expected_backend) report("backend " + result.backend, note);
    } catch (const std::exception& error) {
      report(error.what(), note);
      return false;
    }
    const cudaError_t error = finished_within(20);
    if (error != cudaSuccess) {
      report(cudaGetErrorString(error), note);
      std::_Exit(1);  // the device is lost to this process
    }
    if (i == 0) {
      first = bits();
    } else if (first != bits()) {
      report("repeat " + std::to_string(i) + " differs", note);
      return false;
    }
  }
  ++ran;
  return true;
}

/// body(seed) for `cases` seeds, on all threads of the host.
template <class Body>
void for_each_seed(int cases, uint64_t first, const Body& body) {
  std::atomic<int> next{0};
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); ++i) {
    threads.emplace_back([&] {
      for (int at = next++; at < cases; at = next++) body(first + static_cast<uint64_t>(at));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

/// What the command line of a test on a GPU says.
struct TestOptions {
  int cases = 200, repeats = 2;
  uint64_t seed = 1;
  bool is_small = false;
  std::string only;

  TestOptions(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
      const std::string option = argv[i];
      const char* const value = i + 1 < argc ? argv[i + 1] : "";
      if (option == "--dry") is_dry = true;
      if (option == "--small") is_small = true;
      if (option == "--cases") cases = std::atoi(value);
      if (option == "--seed") seed = std::strtoull(value, nullptr, 10);
      if (option == "--repeats") repeats = std::atoi(value);
      if (option == "--only") only = value;
    }
  }
  template <class Body>
  void stage(const char* name, const Body& body) const {
    if (!only.empty() && only != name) return;
    const int before = failures;
    try {
      body();
    } catch (const std::exception& error) {
      report(error.what(), name);
    }
    std::printf("%s %s\n", failures == before ? "ok  " : "FAIL", name);
    std::fflush(stdout);
  }
  int summary() const {
    std::printf("%s: %d random cases ran, seed %llu, %d repeats, %d failures\n", failures ? "FAIL" : "ok", ran.load(),
                static_cast<unsigned long long>(seed), repeats, failures.load());
    return failures != 0;
  }
};

inline Context device_context(cudaStream_t stream = nullptr) {
  Context context;
  context.device = {Device::Type::cuda, 0};
  context.stream = stream;
  context.memory = cuda_memory(0, stream);
  return context;
}

}  // namespace tilewise::attend::testing
