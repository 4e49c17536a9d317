// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/work_clock.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <thread>

#include "tilewise/machine/cpu/context.h"

namespace tilewise::study {
namespace {

double cpu_ms() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) / 1e6;
}

/// Returns what it burnt: a machine that is busy may count more than was asked for, and the clock sees that, too.
double burn(double ms) {
  const double start = cpu_ms();
  double now = start;
  while (now < start + ms) now = cpu_ms();
  return now - start;
}

constexpr double kSlack = 4;  // ms between two looks at the time of a thread on a busy machine

/// Says that it has four workers, and lets the caller be each in turn: what the machine's threads would do does not matter.
class FourInTurn : public Executor {
 public:
  int concurrency() const override { return 4; }
  void run(int64_t count, FunctionRef<void(int64_t, int)> body) override {
    for (int64_t item = 0; item < count; ++item) body(item, static_cast<int>(item % 4));
  }
};

TEST(WorkClock, CountsWorkAndNotWaiting) {
  WorkClock clock(cpu_context(2));
  std::this_thread::sleep_for(std::chrono::milliseconds(60));
  clock.context().parallel_for(4, [](int64_t, int) { std::this_thread::sleep_for(std::chrono::milliseconds(20)); });
  EXPECT_LT(clock.ms(), 30);
  const double before = clock.ms();
  const double burnt = burn(20);
  EXPECT_GE(clock.ms() - before, burnt);
}

TEST(WorkClock, SharesItemsOutEvenlyButNoItemIsSplit) {
  Context context;
  context.executor = std::make_shared<FourInTurn>();
  WorkClock even(context);
  double all = 0;
  even.context().parallel_for(8, [&](int64_t, int) { all += burn(5); });  // 40 ms of work
  EXPECT_GE(even.ms(), all / 4);
  EXPECT_LT(even.ms(), all / 4 + kSlack);
  WorkClock uneven(context);
  double longest = 0;
  uneven.context().parallel_for(8,
                                [&](int64_t item, int) { longest = std::max(longest, burn(item == 3 ? 30 : 1)); });  // 37 ms, and one item holds 30
  EXPECT_GE(uneven.ms(), longest);
  EXPECT_LT(uneven.ms(), longest + kSlack);
}

TEST(WorkClock, CountsWhatIsNestedOnceAndRunsEveryItem) {
  Context context;
  context.executor = std::make_shared<FourInTurn>();
  WorkClock clock(context);
  int count = 0;
  double all = 0;
  clock.context().parallel_for(4, [&](int64_t, int) {
    clock.context().parallel_for(4, [&](int64_t, int) {
      all += burn(2);
      ++count;
    });
  });
  EXPECT_EQ(count, 16);
  EXPECT_GE(clock.ms(), all / 4);  // 32 ms over 4 workers
  EXPECT_LT(clock.ms(), all / 4 + kSlack);
}

TEST(WorkClock, GoesOnBehindAnException) {
  WorkClock clock(cpu_context(2));
  EXPECT_THROW(clock.context().parallel_for(2, [](int64_t, int) { fail(Error::Kind::value, "no"); }), Error);
  const double before = clock.ms();
  double burnt[2] = {};
  clock.context().parallel_for(2, [&](int64_t item, int) { burnt[item] = burn(10); });  // not taken for a nested part
  const double expected = std::max({burnt[0], burnt[1], (burnt[0] + burnt[1]) / 2});
  EXPECT_GE(clock.ms() - before, expected);
  EXPECT_LT(clock.ms() - before, expected + kSlack);
}

}  // namespace
}  // namespace tilewise::study
