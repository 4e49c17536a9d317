// SPDX-License-Identifier: Apache-2.0
#include "tilewise/machine/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tilewise/base/error.h"

namespace tilewise {
namespace {

TEST(ThreadPool, RunsEveryItemOnceForManySizes) {
  for (const int threads : {1, 2, 3, 5, 16}) {
    const auto pool = make_thread_pool(threads);
    EXPECT_EQ(pool->concurrency(), threads);
    for (const int64_t count : {-1, 0, 1, 2, 3, 7, 64, 1000, 10000}) {
      std::vector<std::atomic<int>> times(static_cast<size_t>(std::max<int64_t>(count, 0)));
      pool->run(count, [&](int64_t item, int worker) {
        ASSERT_GE(worker, 0);
        ASSERT_LT(worker, threads);
        ++times[static_cast<size_t>(item)];
      });
      for (const auto& time : times) ASSERT_EQ(time, 1) << threads << " threads, " << count << " items";
    }
  }
}

TEST(ThreadPool, WorkersDoNotShareANumberAtOnce) {
  const auto pool = make_thread_pool(4);
  std::vector<std::atomic<int>> inside(4);
  for (int round = 0; round < 50; ++round) {
    pool->run(64, [&](int64_t, int worker) {
      EXPECT_EQ(inside[static_cast<size_t>(worker)].fetch_add(1), 0);
      std::this_thread::yield();
      inside[static_cast<size_t>(worker)].fetch_sub(1);
    });
  }
}

TEST(ThreadPool, FirstExceptionArrivesAndTheRestIsDropped) {
  const auto pool = make_thread_pool(3);
  for (int round = 0; round < 100; ++round) {
    std::atomic<int> started{0};
    try {
      pool->run(100'000, [&](int64_t item, int) {
        ++started;
        if (item == 5) throw std::runtime_error("item 5");
      });
      FAIL() << "no exception";
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "item 5");
    }
    EXPECT_LE(started, 100'000);
    std::atomic<int> after{0};
    pool->run(10, [&](int64_t, int) { ++after; });
    EXPECT_EQ(after, 10);
  }
}

TEST(ThreadPool, ManyExceptionsAtOnce) {
  const auto pool = make_thread_pool(4);
  for (int round = 0; round < 100; ++round) {
    EXPECT_THROW(pool->run(50, [](int64_t item, int) { throw std::out_of_range(std::to_string(item)); }), std::out_of_range);
  }
}

TEST(ThreadPool, NestedCallsRunInTheirWorker) {
  const auto pool = make_thread_pool(3);
  std::atomic<int> total{0};
  pool->run(20, [&](int64_t, int worker) {
    const auto thread = std::this_thread::get_id();
    pool->run(10, [&](int64_t, int inner) {
      EXPECT_EQ(inner, worker);
      EXPECT_EQ(std::this_thread::get_id(), thread);
      pool->run(2, [&](int64_t, int innermost) {
        EXPECT_EQ(innermost, worker);
        ++total;
      });
    });
  });
  EXPECT_EQ(total, 400);
}

TEST(ThreadPool, NestedExceptionPassesThrough) {
  const auto pool = make_thread_pool(2);
  EXPECT_THROW(pool->run(4, [&](int64_t, int) { pool->run(4, [](int64_t, int) { throw std::logic_error("inner"); }); }), std::logic_error);
  int items = 0;
  pool->run(1, [&](int64_t, int) { ++items; });
  EXPECT_EQ(items, 1);
}

TEST(ThreadPool, TwoPoolsInsideOneAnother) {
  const auto outer = make_thread_pool(2), inner = make_thread_pool(3);
  std::atomic<int> total{0};
  outer->run(8, [&](int64_t, int) { inner->run(8, [&](int64_t, int) { outer->run(2, [&](int64_t, int) { ++total; }); }); });
  EXPECT_EQ(total, 128);
}

TEST(ThreadPool, ManyCallersAtOnce) {
  const auto pool = make_thread_pool(4);
  std::vector<std::thread> callers;
  std::atomic<int64_t> total{0};
  for (int caller = 0; caller < 16; ++caller) {
    callers.emplace_back([&, caller] {
      for (int round = 0; round < 50; ++round) {
        int64_t expected = 0;
        std::atomic<int64_t> sum{0};
        const int64_t count = (caller * 31 + round * 7) % 40;
        for (int64_t i = 0; i < count; ++i) expected += i;
        try {
          pool->run(count, [&](int64_t item, int) {
            sum += item;
            if (caller == 3 && item == 20) throw std::runtime_error("caller 3");
          });
          EXPECT_EQ(sum, expected);
        } catch (const std::runtime_error&) {
          EXPECT_EQ(caller, 3);
        }
        total += count;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_GT(total, 0);
}

TEST(ThreadPool, StartsAndStopsOften) {
  for (int round = 0; round < 100; ++round) {
    const auto pool = make_thread_pool(1 + round % 5);
    std::atomic<int> items{0};
    if (round % 3 != 0) pool->run(7, [&](int64_t, int) { ++items; });
    EXPECT_EQ(items, round % 3 != 0 ? 7 : 0);
  }
}

TEST(ThreadPool, WakesAfterSleep) {
  const auto pool = make_thread_pool(3);
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<int> items{0};
    pool->run(5, [&](int64_t, int) { ++items; });
    EXPECT_EQ(items, 5);
  }
}

TEST(ThreadPool, RefusesSizes) {
  EXPECT_THROW(make_thread_pool(0), Error);
  EXPECT_THROW(make_thread_pool(-3), Error);
  EXPECT_THROW(make_thread_pool(1025), Error);
}

}  // namespace
}  // namespace tilewise
