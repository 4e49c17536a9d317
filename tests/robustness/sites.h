// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <gtest/gtest.h>

#include <functional>
#include <iostream>
#include <new>
#include <string>

#include "tests/robustness/failing_new.h"
#include "tilewise/base/context.h"

namespace tilewise::testing {

/// Runs `call` once for each of its allocations, which then fails, and once in full. A failing call throws std::bad_alloc or an Error of kind memory, holds
/// nothing afterwards and leaves what `state` reads as it was; the one after it works. Of more than `most` allocations the first hundred are taken, then
/// every one further on by a growing step. Returns how many were made to fail.
inline int64_t fail_each_site(const std::string& name, const std::function<void(Context&)>& call, const std::function<std::string()>& state = {},
                              int64_t most = 100, Which which = Which::all) {
  const auto memory = std::make_shared<FailingMemory>();
  const auto run = [&](int64_t count) {
    Context context;
    context.memory = memory;
    fail_after(count, which);
    bool threw = false, was_reached = false;
    try {
      call(context);
      was_reached = has_failed();
    } catch (const std::bad_alloc&) {
      was_reached = has_failed();
      threw = true;
    } catch (const Error& error) {
      was_reached = has_failed();
      fail_after(-1);
      // Text made while memory is short may be cut, never the kind.
      EXPECT_EQ(error.kind(), Error::Kind::memory) << name << " at " << count << ": " << error.what();
      threw = true;
    }
    fail_after(-1);
    // A library may do without a block (a sort without its buffer): then the call ends as if nothing had been.
    if (threw) {
      EXPECT_TRUE(was_reached) << name << " threw before allocation " << count;
    }
    return std::pair{was_reached, threw};
  };
  run(-1);  // what is made once for the whole program is made now
  run(-1);
  const std::string before = state ? state() : "";
  const int64_t live = live_blocks(), held = memory->live();
  int64_t sites = 0;
  for (int64_t count = 0;; count += count < most ? 1 : 1 + count / 16) {
    const auto [was_reached, threw] = run(count);
    if (!was_reached) break;
    ++sites;
    EXPECT_EQ(live_blocks(), live) << name << ": blocks are still held after allocation " << count << " failed";
    EXPECT_EQ(memory->live(), held) << name << ": memory of the context is still held after allocation " << count << " failed";
    if (threw && state) {
      EXPECT_EQ(state(), before) << name << ": the call that failed at allocation " << count << " left something behind";
    }
    if (::testing::Test::HasFailure()) return sites;
  }
  std::cout << "  " << name << ": " << sites << " allocations failed in turn\n";
  return sites;
}

}  // namespace tilewise::testing
