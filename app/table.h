// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <vector>

#include "app/terminal.h"
#include "tilewise/study/comparison.h"

namespace tilewise::app {

/// Rows of text in aligned columns: the first column to the left, the others to the right.
class Table {
 public:
  struct Cell {
    std::string text;
    Style style = Style::plain;
  };
  void add(std::vector<Cell> row) { rows_.push_back(std::move(row)); }
  /// A line of its own after the last row, indented.
  void add_line(std::string text, Style style);
  std::string text() const;

 private:
  std::vector<std::vector<Cell>> rows_;
};

/// printf with one number; "-" where it is not a number.
std::string number(const char* format, double value);
/// "12.3 MiB".
std::string size_text(double bytes);

/// The table, the verdict and the notes that `tilewise compare` prints.
std::string comparison_text(const Comparison& comparison);

}  // namespace tilewise::app
