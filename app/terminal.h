// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <chrono>
#include <string>

#include "tilewise/study/compare.h"

namespace tilewise::app {

/// Standard output is a terminal and NO_COLOR is not set.
bool has_colour();

enum class Style { plain, bold, dim, good, bad };
/// `text` with the codes of a style around it, or as it is where there is no colour.
std::string styled(const std::string& text, Style style);

/// "1:05", "2:03:10".
std::string clock_text(double seconds);

/// One line on standard error that is written over and over, at most ten times a second; a row or a kind of work that begins is shown at once. Nothing at
/// all where standard error is not a terminal.
class ProgressLine {
 public:
  ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  ~ProgressLine() { clear(); }

  void show(const CompareProgress& progress);
  void show(const std::string& text);
  void clear();

 private:
  void draw(const std::string& text);
  bool is_on_, is_shown_ = false;
  std::string kind_;  // of what was shown last
  std::chrono::steady_clock::time_point last_{};
};

}  // namespace tilewise::app
