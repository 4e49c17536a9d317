// SPDX-License-Identifier: Apache-2.0
#include "tests/robustness/failing_new.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace tilewise::testing {
namespace {

std::atomic<int64_t> countdown{-1};
std::atomic<bool> failed{false};
std::atomic<Which> failing{Which::all};
std::atomic<int64_t> live{0};

/// Whether this allocation is the one.
bool takes_its_turn() {
  int64_t left = countdown.load();
  while (left >= 0 && !countdown.compare_exchange_weak(left, left - 1)) {
  }
  if (left != 0) return false;
  failed = true;
  return true;
}

void* allocate(size_t bytes, size_t alignment) noexcept {
  if (failing == Which::all && takes_its_turn()) return nullptr;
  void* data = alignment <= alignof(std::max_align_t) ? std::malloc(bytes > 0 ? bytes : 1)
                                                      : std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (data != nullptr) ++live;
  return data;
}

void release(void* data) noexcept {
  if (data == nullptr) return;
  --live;
  std::free(data);
}

void* or_throw(void* data) {
  if (data == nullptr) throw std::bad_alloc();
  return data;
}

}  // namespace

void fail_after(int64_t count, Which which) {
  failed = false;
  failing = which;
  countdown = count;
}
bool has_failed() { return failed; }
int64_t live_blocks() { return live; }

void* FailingMemory::allocate(size_t bytes) {
  check(!takes_its_turn(), Error::Kind::memory, "FailingMemory: no ", bytes, " bytes this time");
  void* data = host_memory()->allocate(bytes);
  ++live_;
  return data;
}
void FailingMemory::release(void* data, size_t bytes) noexcept {
  --live_;
  host_memory()->release(data, bytes);
}

}  // namespace tilewise::testing

// The whole family: a program that replaces one of them replaces all.
void* operator new(size_t bytes) { return tilewise::testing::or_throw(tilewise::testing::allocate(bytes, 1)); }
void* operator new[](size_t bytes) { return tilewise::testing::or_throw(tilewise::testing::allocate(bytes, 1)); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return tilewise::testing::allocate(bytes, 1); }
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept { return tilewise::testing::allocate(bytes, 1); }
void* operator new(size_t bytes, std::align_val_t a) {
  return tilewise::testing::or_throw(tilewise::testing::allocate(bytes, static_cast<size_t>(a)));
}
void* operator new[](size_t bytes, std::align_val_t a) {
  return tilewise::testing::or_throw(tilewise::testing::allocate(bytes, static_cast<size_t>(a)));
}
void* operator new(size_t bytes, std::align_val_t a, const std::nothrow_t&) noexcept {
  return tilewise::testing::allocate(bytes, static_cast<size_t>(a));
}
void* operator new[](size_t bytes, std::align_val_t a, const std::nothrow_t&) noexcept {
  return tilewise::testing::allocate(bytes, static_cast<size_t>(a));
}
void operator delete(void* data) noexcept { tilewise::testing::release(data); }
void operator delete[](void* data) noexcept { tilewise::testing::release(data); }
void operator delete(void* data, size_t) noexcept { tilewise::testing::release(data); }
void operator delete[](void* data, size_t) noexcept { tilewise::testing::release(data); }
void operator delete(void* data, std::align_val_t) noexcept { tilewise::testing::release(data); }
void operator delete[](void* data, std::align_val_t) noexcept { tilewise::testing::release(data); }
void operator delete(void* data, size_t, std::align_val_t) noexcept { tilewise::testing::release(data); }
void operator delete[](void* data, size_t, std::align_val_t) noexcept { tilewise::testing::release(data); }
void operator delete(void* data, const std::nothrow_t&) noexcept { tilewise::testing::release(data); }
void operator delete[](void* data, const std::nothrow_t&) noexcept { tilewise::testing::release(data); }
void operator delete(void* data, std::align_val_t, const std::nothrow_t&) noexcept { tilewise::testing::release(data); }
void operator delete[](void* data, std::align_val_t, const std::nothrow_t&) noexcept { tilewise::testing::release(data); }
