// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
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

/// A terminal without a screen: what a program writes to it can be read here.
class PseudoTerminal {
 public:
  PseudoTerminal() : ours_(::posix_openpt(O_RDWR | O_NOCTTY)) {
    EXPECT_GE(ours_, 0);
    EXPECT_EQ(::grantpt(ours_), 0);
    EXPECT_EQ(::unlockpt(ours_), 0);
    theirs_ = ::open(::ptsname(ours_), O_RDWR | O_NOCTTY);
    EXPECT_GE(theirs_, 0);
  }
  PseudoTerminal(const PseudoTerminal&) = delete;
  PseudoTerminal& operator=(const PseudoTerminal&) = delete;
  ~PseudoTerminal() {
    ::close(ours_);
    let_go();
  }

  /// What the program gets. It must be let go in this process once the program has it: reading ends when nobody holds it.
  int theirs() const { return theirs_; }
  void let_go() {
    if (theirs_ >= 0) ::close(theirs_);
    theirs_ = -1;
  }
  /// Reads until `part` has been written since the last call, or until all who could write are gone. All that was read so far is in `text()`.
  bool wait_for(const std::string& part) {
    for (;;) {
      const size_t at = text_.find(part, seen_);
      if (at != std::string::npos) {
        seen_ = at + part.size();
        return true;
      }
      char bytes[4096];
      const ssize_t count = ::read(ours_, bytes, sizeof bytes);  // EIO where nobody holds the other end
      if (count <= 0) return false;
      text_.append(bytes, static_cast<size_t>(count));
    }
  }
  const std::string& text() const { return text_; }

 private:
  int ours_, theirs_ = -1;
  std::string text_;
  size_t seen_ = 0;
};

/// A program started with its standard streams in files, or its errors on a terminal.
class Process {
 public:
  explicit Process(const std::vector<std::string>& arguments, const std::vector<std::pair<std::string, std::string>>& environment = {},
                   PseudoTerminal* terminal = nullptr) {
    std::vector<std::string> all = arguments;
    std::vector<char*> argv;
    for (std::string& argument : all) argv.push_back(argument.data());
    argv.push_back(nullptr);
    const std::string out = folder_.file("out"), err = folder_.file("err");
    child_ = ::fork();
    EXPECT_GE(child_, 0);
    if (child_ != 0) {
      if (terminal != nullptr) terminal->let_go();
      return;
    }
    for (const auto& [name, value] : environment) ::setenv(name.c_str(), value.c_str(), 1);
    const int in_file = ::open("/dev/null", O_RDONLY);
    const int out_file = ::open(out.c_str(), O_WRONLY | O_CREAT, 0600),
              err_file = terminal != nullptr ? terminal->theirs() : ::open(err.c_str(), O_WRONLY | O_CREAT, 0600);
    if (::dup2(in_file, 0) < 0 || ::dup2(out_file, 1) < 0 || ::dup2(err_file, 2) < 0) ::_exit(126);
    ::execvp(argv[0], argv.data());
    ::_exit(127);
  }
  /// False, and nothing is sent, where it has ended: the number -1 would reach every process there is.
  bool send(int signal) { return !has_ended() && ::kill(child_, signal) == 0; }
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
