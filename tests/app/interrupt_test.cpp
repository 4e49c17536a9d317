// SPDX-License-Identifier: Apache-2.0
#include <chrono>
#include <csignal>
#include <thread>

#include "tests/app/process.h"

namespace tilewise::app {
namespace {

using Clock = std::chrono::steady_clock;

/// Sends SIGINT after `delay` and tells how long the program took to end. Its own limit is 200 ms; the test allows for a loaded machine.
void interrupted(std::chrono::milliseconds delay, int signal) {
  SCOPED_TRACE(delay.count());
  TemporaryFolder folder;
  Process process({TILEWISE_PROGRAM, "compare", "--model", "models/reference-lm", "--text", "models/reference-lm/documents/postgresql-wal.txt",
                   "--length", "16384", "--methods", "xattention,oracle", "--report", folder.file("report.html"), "--json", folder.file("out.json")});
  std::this_thread::sleep_for(delay);
  ASSERT_FALSE(process.has_ended()) << process.wait().err;
  const auto sent = Clock::now();
  ::kill(process.id(), signal);
  const Ended ended = process.wait();
  const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - sent).count();
  EXPECT_EQ(ended.code, 130) << ended.err;
  EXPECT_EQ(ended.err, "tilewise: interrupted\n");
  EXPECT_EQ(ended.out, "");
  EXPECT_EQ(folder.count(), 0) << "no file, whole or half";
  EXPECT_LT(took, 1000) << "ms";
  std::printf("stopped after %lld ms\n", static_cast<long long>(took));
}

TEST(Interrupt, StopsReadingTheModelAndComputing) {
  for (const int delay : {60, 300, 1200}) interrupted(std::chrono::milliseconds(delay), SIGINT);
  interrupted(std::chrono::milliseconds(500), SIGTERM);
}

}  // namespace
}  // namespace tilewise::app
