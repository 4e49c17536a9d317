// SPDX-License-Identifier: Apache-2.0
// Files that cannot be read or written: no such file, a folder in its place, a full disk, a limit on file sizes.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "tests/base/temporary_folder.h"
#include "tilewise/base/file.h"
#include "tilewise/base/safetensors.h"
#include "tilewise/plan/file.h"
#include "tilewise/plan/make.h"

namespace tilewise::testing {
namespace {

struct Writer {
  const char* name;
  std::function<void(const std::string& path)> write;
};

std::vector<Writer> writers() {
  static const Plan plan = dense_plan({.seqlen_q = 20000, .seqlen_k = 20000, .tile = 16});  // some 50 KB
  static Tensor tensor(host_memory(), Dtype::f32, {10000});
  tensor.fill_zero();
  return {{"save_plan", [](const std::string& path) { save_plan(plan, path); }},
          {"write_safetensors",
           [](const std::string& path) {
             const NamedTensor tensors[] = {{"t", tensor.view}};
             write_safetensors(path, tensors);
           }},
          {"write_file", [](const std::string& path) { write_file(path, std::string(40000, 'x')); }}};
}

std::string io_error(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::io) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "was done all the same";
  return "";
}

TEST(Files, AFullDiskIsAnErrorOfKindIo) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "there is no /dev/full";
  for (const Writer& writer : writers()) {
    const std::string text = io_error([&] { writer.write("/dev/full"); });
    EXPECT_NE(text.find("/dev/full"), std::string::npos) << writer.name << ": " << text;
    EXPECT_NE(text.find("No space"), std::string::npos) << writer.name << ": " << text;
  }
}

// A child process with a limit on file sizes: the write stops in the middle of the file.
TEST(Files, AFileThatCannotGrowIsNotLeftBehind) {
  for (const Writer& writer : writers()) {
    for (const bool has_old : {false, true}) {
      TemporaryFolder folder;
      const std::string path = folder.file("out");
      if (has_old) TemporaryFolder::write(path, "old");
      const pid_t child = ::fork();
      ASSERT_GE(child, 0);
      if (child == 0) {
        std::signal(SIGXFSZ, SIG_IGN);
        const rlimit limit{8192, 8192};
        ::setrlimit(RLIMIT_FSIZE, &limit);
        int code = 1;
        try {
          writer.write(path);
        } catch (const Error& error) {
          code = error.kind() == Error::Kind::io && std::string(error.what()).find(path) != std::string::npos ? 0 : 2;
        } catch (...) {
          code = 3;
        }
        ::_exit(code);
      }
      int status = 0;
      ::waitpid(child, &status, 0);
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << writer.name << " ended with " << status;
      EXPECT_EQ(folder.count(), has_old ? 1 : 0) << writer.name << " left a file";
      if (has_old) {
        EXPECT_EQ(TemporaryFolder::read(path), "old") << writer.name;
      }
      writer.write(path);  // the next one works
      EXPECT_GT(std::filesystem::file_size(path), 8192u);
    }
  }
}

TEST(Files, APlaceThatCannotBeWrittenIsNamed) {
  TemporaryFolder folder;
  TemporaryFolder::write(folder.file("file"), "a file");
  std::filesystem::create_directory(folder.file("sealed"));
  std::filesystem::permissions(folder.file("sealed"), std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
  std::vector<std::string> places{"", folder.path(), folder.file("nowhere/out"), folder.file("file/out"), folder.file(std::string(300, 'n'))};
  if (::geteuid() != 0) places.push_back(folder.file("sealed/out"));  // root writes everywhere
  for (const Writer& writer : writers()) {
    for (const std::string& place : places) {
      const std::string text = io_error([&] { writer.write(place); });
      EXPECT_NE(text.find("'" + place + "'"), std::string::npos) << writer.name << ": " << text;
    }
  }
  EXPECT_EQ(folder.count(), 2);
  EXPECT_EQ(TemporaryFolder::read(folder.file("file")), "a file");
}

TEST(Files, WhatCannotBeReadIsNamed) {
  TemporaryFolder folder;
  TemporaryFolder::write(folder.file("empty"), "");
  TemporaryFolder::write(folder.file("file"), "a file");
  const std::vector<std::function<void(const std::string&)>> readers{[](const std::string& path) { load_plan(path); },
                                                                     [](const std::string& path) { SafetensorsFile file(path); }};
  for (const auto& read : readers) {
    for (const std::string& place : {folder.path(), folder.file("nothing"), folder.file("file/in"), folder.file("empty"), std::string("/dev/null")}) {
      EXPECT_NE(io_error([&] { read(place); }).find(place), std::string::npos);
    }
    EXPECT_NE(io_error([&] { read(""); }), "");
  }
  EXPECT_NE(io_error([&] { read_file(folder.file("nothing"), 100); }).find("nothing"), std::string::npos);
  EXPECT_NE(io_error([&] { read_file(folder.file("file"), 3); }).find("at most 3"), std::string::npos);
}

}  // namespace
}  // namespace tilewise::testing
