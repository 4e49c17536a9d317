// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <stop_token>

namespace tilewise::app {

inline constexpr int kInterruptedExit = 130;

/// Call before any other thread starts: Ctrl-C (SIGINT, SIGTERM) then asks for a stop through interrupt_token(). A computation that has not come
/// back after 150 ms (a library call that cannot be interrupted) is ended with exit code 130, unless a file is being written.
void install_interrupt();
std::stop_token interrupt_token();
/// The line "tilewise: interrupted", once, whoever comes first: main, whose work came back, or the watching thread.
void say_interrupted();

/// While one lives, the process is not ended from outside main: files are written whole and temporary ones removed.
class WritingFiles {
 public:
  WritingFiles();
  WritingFiles(const WritingFiles&) = delete;
  WritingFiles& operator=(const WritingFiles&) = delete;
  ~WritingFiles();
};

}  // namespace tilewise::app
