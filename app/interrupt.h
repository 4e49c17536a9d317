// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <stop_token>
#include <string>

namespace tilewise::app {

inline constexpr int kInterruptedExit = 130;

/// Call before any other thread starts: Ctrl-C (SIGINT, SIGTERM) then asks for a stop through interrupt_token(). A computation that has not come
/// back after 150 ms (a library call that cannot be interrupted) is ended with exit code 130, unless a file is being written.
void install_interrupt();
std::stop_token interrupt_token();
/// The line "tilewise: interrupted", once, whoever comes first: main, whose work came back, or the watching thread.
void say_interrupted();

/// A folder that was made for what is to come: if the process is ended from outside main while it is still empty, it goes, too.
void remove_if_interrupted(const std::string& folder);

/// While one lives, the process is not ended from outside main: files are written whole and temporary ones removed.
class WritingFiles {
 public:
  WritingFiles();
  WritingFiles(const WritingFiles&) = delete;
  WritingFiles& operator=(const WritingFiles&) = delete;
  ~WritingFiles();
};

}  // namespace tilewise::app
