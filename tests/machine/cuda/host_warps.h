// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

#include "tests/machine/cuda/host_block.h"
#include "tilewise/machine/cuda/mma.h"
#include "tilewise/machine/cuda/warps.h"

namespace tilewise::testing {

/// machine/cuda/warps.h on the CPU, lane by lane. Registers begin as garbage (NaN). The memory that a copy is on its way to holds NaN until it is waited for.
class HostWarps : public HostBlock {
 public:
  using HostBlock::HostBlock;

  template <class T, int kCount>
  class Registers {
   public:
    explicit Registers(const HostWarps& block) : numbers_(static_cast<size_t>(block.threads() * kCount)) {
      std::memset(static_cast<void*>(numbers_.data()), 0xff, numbers_.size() * sizeof(T));
    }
    T& operator()(int thread, int i) { return numbers_.at(static_cast<size_t>(thread) * kCount + static_cast<size_t>(i)); }
    const T& operator()(int thread, int i) const { return numbers_.at(static_cast<size_t>(thread) * kCount + static_cast<size_t>(i)); }

   private:
    std::vector<T> numbers_;
  };

  template <class Step>
  void lanes(Step&& step) {
    each(step);
  }
  void sync() {}

  template <int kCount, class Fold>
  void quad(Registers<float, kCount>& numbers, const Fold& fold) {
    for (int first = 0; first < threads(); first += 4) {
      for (int i = 0; i < kCount; ++i) {
        const float folded = fold(fold(numbers(first, i), numbers(first + 1, i)), fold(numbers(first + 2, i), numbers(first + 3, i)));
        for (int thread = first; thread < first + 4; ++thread) numbers(thread, i) = folded;
      }
    }
  }

  template <bool kIsTransposed, class Address>
  void load_matrices(Registers<uint32_t, 4>& out, const Address& address) {
    for (int warp = 0; warp < threads(); warp += 32) {
      std::array<std::array<uint16_t, 8>, 32> rows;
      for (int lane = 0; lane < 32; ++lane) std::memcpy(rows[static_cast<size_t>(lane)].data(), address(warp + lane), 16);
      const auto at = [&](int matrix, int row, int column) {
        return uint32_t{rows[8 * static_cast<size_t>(matrix) + static_cast<size_t>(row)][static_cast<size_t>(column)]};
      };
      for (int lane = 0; lane < 32; ++lane) {
        const int i = lane / 4, j = lane % 4 * 2;
        for (int m = 0; m < 4; ++m) {
          out(warp + lane, m) = kIsTransposed ? at(m, j, i) | at(m, j + 1, i) << 16 : at(m, i, j) | at(m, i, j + 1) << 16;
        }
      }
    }
  }

  template <class Element, int kAcc, int kA, int kB>
  void multiply(Registers<float, kAcc>& acc, int at, const Registers<uint32_t, kA>& a, int a_at, const Registers<uint32_t, kB>& b, int b_at) {
    for (int warp = 0; warp < threads() / 32; ++warp) {
      machine::cuda::mma_16x8x16<Element::kHalf>(
          warp, [&](int thread) -> float(&)[4] { return *reinterpret_cast<float(*)[4]>(&acc(thread, at)); },
          [&](int thread) { return machine::cuda::MmaA{{a(thread, a_at), a(thread, a_at + 1), a(thread, a_at + 2), a(thread, a_at + 3)}}; },
          [&](int thread) { return machine::cuda::MmaB{{b(thread, b_at), b(thread, b_at + 1)}}; });
    }
  }

  void copy16(void* to, const void* from, bool is_there) {
    std::memset(to, 0xff, 16);
    open_.push_back({static_cast<unsigned char*>(to), is_there ? static_cast<const unsigned char*>(from) : nullptr});
  }
  void close_copies() { closed_.push_back(std::move(open_)), open_.clear(); }
  template <int kUnderWay>
  void await_copies() {
    for (; closed_.size() > kUnderWay; closed_.pop_front()) {
      for (const Copy& copy : closed_.front()) copy.from == nullptr ? std::memset(copy.to, 0, 16) : std::memcpy(copy.to, copy.from, 16);
    }
  }

 private:
  struct Copy {
    unsigned char* to;
    const unsigned char* from;
  };
  std::vector<Copy> open_;
  std::deque<std::vector<Copy>> closed_;
};

}  // namespace tilewise::testing
