// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "tilewise/base/memory.h"

// Memory that runs out at a chosen moment: the program's operator new (failing_new.cpp replaces it) and a Memory for a Context.
namespace tilewise::testing {

enum class Which : uint8_t { all, context };
/// The allocation after the next `count` throws std::bad_alloc (operator new) or Error::Kind::memory (FailingMemory), once; -1: none does.
/// Which::context counts those of FailingMemory alone.
void fail_after(int64_t count, Which which = Which::all);
/// Whether it has.
bool has_failed();
/// Blocks that operator new has handed out and that are still held.
int64_t live_blocks();

/// Host memory that takes part in fail_after and counts what is held.
class FailingMemory final : public Memory {
 public:
  void* allocate(size_t bytes) override;
  void release(void* data, size_t bytes) noexcept override;
  int64_t live() const { return live_; }

 private:
  int64_t live_ = 0;
};

}  // namespace tilewise::testing
