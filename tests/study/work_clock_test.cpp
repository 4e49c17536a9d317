// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/work_clock.h"

#include <gtest/gtest.h>

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

void burn(double ms) {
  const double end = cpu_ms() + ms;
  while (cpu_ms() < end) {
  }
}

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
  burn(20);
  EXPECT_GE(clock.ms() - before, 19);
}

TEST(WorkClock, SharesItemsOutEvenlyButNoItemIsSplit) {
  Context context;
  context.executor = std::make_shared<FourInTurn>();
  WorkClock even(context);
  even.context().parallel_for(8, [](int64_t, int) { burn(5); });  // 40 ms of work
  EXPECT_GE(even.ms(), 9.9);
  EXPECT_LT(even.ms(), 20);
  WorkClock uneven(context);
  uneven.context().parallel_for(8, [](int64_t item, int) { burn(item == 3 ? 30 : 1); });  // 37 ms, and one item holds 30 of them
  EXPECT_GE(uneven.ms(), 29.9);
  EXPECT_LT(uneven.ms(), 36);
}

TEST(WorkClock, CountsWhatIsNestedOnceAndRunsEveryItem) {
  Context context;
  context.executor = std::make_shared<FourInTurn>();
  WorkClock clock(context);
  int count = 0;
  clock.context().parallel_for(4, [&](int64_t, int) {
    clock.context().parallel_for(4, [&](int64_t, int) {
      burn(2);
      ++count;
    });
  });
  EXPECT_EQ(count, 16);
  EXPECT_GE(clock.ms(), 7.9);  // 32 ms over 4 workers
  EXPECT_LT(clock.ms(), 16);
}

TEST(WorkClock, GoesOnBehindAnException) {
  WorkClock clock(cpu_context(2));
  EXPECT_THROW(clock.context().parallel_for(2, [](int64_t, int) { fail(Error::Kind::value, "no"); }), Error);
  const double before = clock.ms();
  clock.context().parallel_for(2, [](int64_t, int) { burn(10); });  // not taken for a nested part
  EXPECT_GE(clock.ms() - before, 9.9);
  EXPECT_LT(clock.ms() - before, 19);
}

}  // namespace
}  // namespace tilewise::study
