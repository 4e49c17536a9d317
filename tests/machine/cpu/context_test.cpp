// SPDX-License-Identifier: Apache-2.0
#include "tilewise/machine/cpu/context.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "tilewise/machine/cpu/limits.h"

namespace tilewise {
namespace {

namespace fs = std::filesystem;

struct Threads {
  explicit Threads(const char* value) {
    if (const char* const text = std::getenv("TILEWISE_THREADS")) before = text;
    value == nullptr ? unsetenv("TILEWISE_THREADS") : setenv("TILEWISE_THREADS", value, 1);
  }
  ~Threads() { before.empty() ? unsetenv("TILEWISE_THREADS") : setenv("TILEWISE_THREADS", before.c_str(), 1); }
  std::string before;
};

TEST(CpuContext, TakesTheNumberOfThreads) {
  EXPECT_EQ(cpu_context(1).concurrency(), 1);
  EXPECT_EQ(cpu_context(3).concurrency(), 3);
  EXPECT_THROW(cpu_context(-1), Error);
  EXPECT_THROW(cpu_context(1025), Error);
}

TEST(CpuContext, EnvironmentSetsTheDefault) {
  const Threads five("5");
  EXPECT_EQ(default_threads(), 5);
  EXPECT_EQ(cpu_context().concurrency(), 5);
  EXPECT_EQ(cpu_context(2).concurrency(), 2);
}

TEST(CpuContext, BadEnvironmentIsAnError) {
  for (const char* const text : {"0", "-2", "two", "3x", "99999", "1e2", " 4"}) {
    const Threads bad(text);
    EXPECT_THROW(default_threads(), Error) << text;
    EXPECT_THROW(cpu_context(), Error) << text;
  }
}

TEST(CpuContext, DefaultIsWithinAffinity) {
  const Threads unset(nullptr);
  EXPECT_GE(default_threads(), 1);
  EXPECT_LE(default_threads(), machine::cpu::affinity_threads());
}

class Cgroups : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("tilewise_cgroup_" + std::to_string(::testing::UnitTest::GetInstance()->random_seed()) + "_" +
                                         ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(root_);
  }
  void TearDown() override { fs::remove_all(root_); }
  void write(const std::string& path, const std::string& text) const {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  std::optional<int> quota(const std::string& groups) const { return machine::cpu::quota_threads(root_.string(), groups); }
  fs::path root_;
};

TEST_F(Cgroups, NothingIsNoQuota) {
  EXPECT_EQ(quota("0::/some/group\n"), std::nullopt);
  EXPECT_EQ(quota(""), std::nullopt);
  EXPECT_EQ(quota("rubbish\n"), std::nullopt);
}

TEST_F(Cgroups, Version2RoundsUp) {
  write("a/b/cpu.max", "150000 100000\n");
  EXPECT_EQ(quota("0::/a/b\n"), 2);
  write("a/b/cpu.max", "max 100000\n");
  EXPECT_EQ(quota("0::/a/b\n"), std::nullopt);
}

TEST_F(Cgroups, GroupsAboveCount) {
  write("a/b/cpu.max", "800000 100000\n");
  write("a/cpu.max", "300000 100000\n");
  write("cpu.max", "max 100000\n");
  EXPECT_EQ(quota("0::/a/b\n"), 3);
  write("cpu.max", "50000 100000\n");  // the root of a container's own namespace
  EXPECT_EQ(quota("0::/a/b\n"), 1);
  EXPECT_EQ(quota("0::/\n"), 1);
}

TEST_F(Cgroups, Version1) {
  write("cpu,cpuacct/job/cpu.cfs_quota_us", "400000\n");
  write("cpu,cpuacct/job/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota("5:memory:/job\n3:cpu,cpuacct:/job\n"), 4);
  write("cpu,cpuacct/job/cpu.cfs_quota_us", "-1\n");
  EXPECT_EQ(quota("3:cpu,cpuacct:/job\n"), std::nullopt);
  write("cpu/job/cpu.cfs_quota_us", "250000\n");
  write("cpu/job/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota("3:cpuset:/job\n4:cpu:/job\n"), 3);
}

}  // namespace
}  // namespace tilewise
