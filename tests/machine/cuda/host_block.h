// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "tilewise/machine/cuda/block.h"

// Kernels written over a block of threads (machine/cuda/block.h), run on the CPU.
namespace tilewise::testing {

/// Runs each step for one thread after another, in an order that changes from step to step: a step in which one thread reads what another
/// writes gives other results then. Shared memory begins as garbage and is exactly as long as the launch says, for the address sanitizer.
class HostBlock {
 public:
  HostBlock(int threads, long index, unsigned char* shared, std::mt19937& engine) : index_(index), shared_(shared), engine_(engine) {
    order_.resize(static_cast<size_t>(threads));
    std::iota(order_.begin(), order_.end(), 0);
  }
  int threads() const { return static_cast<int>(order_.size()); }
  long index() const { return index_; }
  unsigned char* shared() const { return shared_; }

  template <class Step>
  void each(Step&& step) {
    switch (engine_() % 3) {
      case 0: std::sort(order_.begin(), order_.end()); break;
      case 1: std::sort(order_.rbegin(), order_.rend()); break;
      default: std::shuffle(order_.begin(), order_.end(), engine_);
    }
    for (const int thread : order_) {
      thread_ = thread;
      step(thread);
    }
  }
  template <class Step>
  bool any(Step&& step) {
    bool is_any = false;
    each([&](int thread) { is_any = step(thread) || is_any; });
    return is_any;
  }
  template <class T>
  struct Registers {
    explicit Registers(const HostBlock& block) : own(static_cast<size_t>(block.threads())) {}
    T& operator[](int thread) { return own[static_cast<size_t>(thread)]; }
    std::vector<T> own;
  };
  template <class Step>
  void warps(Step&& step) {
    const int count = threads() / 32, first = static_cast<int>(engine_() % static_cast<unsigned>(count));
    for (int warp = 0; warp < count; ++warp) step((warp + first) % count);
  }
  template <class Step>
  void lanes(int warp, Step&& step) {
    const int turn = static_cast<int>(engine_() % 32);
    for (int lane = 0; lane < 32; ++lane) step(warp * 32 + (lane + turn) % 32);
  }
  template <class At, class Fold>
  void fold_lanes(int warp, int lanes, const At& at, const Fold& fold) {
    for (int step = 1; step < lanes; step *= 2) {
      for (int lane = 0; lane < 32; ++lane) {
        if ((lane & step) != 0) continue;
        auto &a = at(warp * 32 + lane), &b = at(warp * 32 + lane + step);
        a = b = fold(a, b);
      }
    }
  }
  template <class T>
  T get(const T& word) {
    return word;
  }
  void match(const int* keys, machine::cuda::Match* out) {
    for (int thread = 0; thread < threads(); ++thread) {
      machine::cuda::Match match{0, 0};
      const int first = thread / 32 * 32;
      for (int other = first; other < first + 32; ++other) {
        if (keys[other] != keys[thread]) continue;
        ++match.count;
        match.rank += other < thread ? 1 : 0;
      }
      out[thread] = match;
    }
  }
  template <class T>
  T add(T* to, T value) {
    const T was = *to;
    *to += value;
    return was;
  }
  template <class T>
  void min(T* to, T value) {
    *to = std::min(*to, value);
  }
  template <class T>
  void max(T* to, T value) {
    *to = std::max(*to, value);
  }
  template <class T>
  void unite(T* to, T bits) {
    *to |= bits;
  }
  template <class T>
  T claim(T* word, T value) {
    const T was = *word;
    if (was == 0) *word = value;
    return was;
  }
  /// Copies arrive at the last moment that they may.
  template <class T>
  void copy(T* to, const T* from) {
    copies_.push_back({thread_, to, from, sizeof(T)});
  }
  void wait_for_copies() {
    std::erase_if(copies_, [this](const Copy& copy) {
      if (copy.thread != thread_) return false;
      std::memcpy(copy.to, copy.from, copy.bytes);
      return true;
    });
  }

 private:
  struct Copy {
    int thread;
    void* to;
    const void* from;
    size_t bytes;
  };
  std::vector<Copy> copies_;
  int thread_ = 0;
  long index_;
  unsigned char* shared_;
  std::mt19937& engine_;
  std::vector<int> order_;
};

/// kernel(block) for every block of a grid, the blocks in an order of their own.
template <class Block = HostBlock, class Kernel>
void launch_on_host(long blocks, int threads, size_t shared_bytes, unsigned seed, Kernel&& kernel) {
  std::mt19937 engine(seed);
  std::vector<long> indices(static_cast<size_t>(blocks));
  std::iota(indices.begin(), indices.end(), 0L);
  std::shuffle(indices.begin(), indices.end(), engine);
  struct alignas(16) Line {
    unsigned char bytes[16];
  };
  const std::unique_ptr<Line[]> lines(new Line[(shared_bytes + 15) / 16]);
  auto* const shared = reinterpret_cast<unsigned char*>(lines.get());
  for (const long index : indices) {
    std::memset(shared, 0xa5, shared_bytes);
    Block block(threads, index, shared, engine);
    kernel(block);
  }
}

}  // namespace tilewise::testing
