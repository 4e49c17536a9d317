// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "tests/base/temporary_folder.h"

namespace tilewise::app {

/// What a program did. A negative code is the signal that ended it.
struct Ended {
  int code = -1;
  std::string out, err;
  bool has_one_error_line() const { return err.rfind("tilewise: ", 0) == 0 && std::count(err.begin(), err.end(), '\n') == 1 && err.back() == '\n'; }
};

/// A program started with its standard streams in files.
class Process {
 public:
  explicit Process(const std::vector<std::string>& arguments, const std::vector<std::pair<std::string, std::string>>& environment = {}) {
    std::vector<std::string> all = arguments;
    std::vector<char*> argv;
    for (std::string& argument : all) argv.push_back(argument.data());
    argv.push_back(nullptr);
    const std::string out = folder_.file("out"), err = folder_.file("err");
    child_ = ::fork();
    if (child_ != 0) return;
    for (const auto& [name, value] : environment) ::setenv(name.c_str(), value.c_str(), 1);
    const int in_file = ::open("/dev/null", O_RDONLY);
    const int out_file = ::open(out.c_str(), O_WRONLY | O_CREAT, 0600), err_file = ::open(err.c_str(), O_WRONLY | O_CREAT, 0600);
    if (::dup2(in_file, 0) < 0 || ::dup2(out_file, 1) < 0 || ::dup2(err_file, 2) < 0) ::_exit(126);
    ::execvp(argv[0], argv.data());
    ::_exit(127);
  }
  pid_t id() const { return child_; }
  bool has_ended() {
    if (child_ > 0 && ::waitpid(child_, &status_, WNOHANG) == child_) child_ = -1;
    return child_ < 0;
  }
  Ended wait() {
    if (child_ > 0) ::waitpid(child_, &status_, 0);
    child_ = -1;
    return {WIFEXITED(status_) ? WEXITSTATUS(status_) : -WTERMSIG(status_), TemporaryFolder::read(folder_.file("out")),
            TemporaryFolder::read(folder_.file("err"))};
  }

 private:
  TemporaryFolder folder_;
  pid_t child_ = -1;
  int status_ = 0;
};

inline Ended run_program(std::vector<std::string> arguments, const std::vector<std::pair<std::string, std::string>>& environment = {}) {
  arguments.insert(arguments.begin(), TILEWISE_PROGRAM);
  return Process(arguments, environment).wait();
}

}  // namespace tilewise::app
