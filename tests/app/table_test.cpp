// SPDX-License-Identifier: Apache-2.0
#include "app/table.h"

#include <gtest/gtest.h>

#include <sstream>

#include "tests/app/synthetic.h"

namespace tilewise::app {
namespace {

TEST(Table, AlignsColumnsByLetters) {
  Table table;
  table.add({{"a"}, {"1"}, {"22"}});
  table.add({{"l\xc3\xa4nger"}, {"333"}, {"4"}});
  table.add_line("a line of its own that is longer than the table", Style::dim);
  EXPECT_EQ(table.text(), "a         1  22\nl\xc3\xa4nger  333   4\n  a line of its own that is longer than the table\n");
}

TEST(Table, NumbersAndSizes) {
  EXPECT_EQ(number("%.2f", 1.005), "1.00");
  EXPECT_EQ(number("%.2f", kNoFigure), "-");
  EXPECT_EQ(size_text(0), "0 B");
  EXPECT_EQ(size_text(1023), "1023 B");
  EXPECT_EQ(size_text(1536), "1.5 KiB");
  EXPECT_EQ(size_text(512.0 * 1024 * 1024), "512 MiB");
  EXPECT_EQ(size_text(kNoFigure), "-");
  EXPECT_EQ(clock_text(5), "0:05");
  EXPECT_EQ(clock_text(3723), "1:02:03");
}

TEST(Table, ComparisonHasARowPerMethodAndTheVerdictLast) {
  const Comparison comparison = synthetic_comparison("a");
  const std::string text = comparison_text(comparison);
  size_t width = 0;
  std::istringstream lines(text);
  std::string line;
  int rows = 0;
  while (std::getline(lines, line) && rows < 10) {
    if (line.rfind("  ", 0) == 0) continue;
    if (width == 0) width = line.size();
    EXPECT_EQ(line.size(), width) << line;
    ++rows;
  }
  EXPECT_NE(text.find("refused: xattention: does not take this problem"), std::string::npos);
  EXPECT_NE(text.find(verdict_of(comparison).text + "\n"), std::string::npos);
  EXPECT_EQ(text.find("nan"), std::string::npos);
}

TEST(Table, OfTensorsShowsWhatTheyHaveAndTimesWithDecimals) {
  const std::string text = comparison_text(synthetic_tensors("saved"));
  for (const char* absent : {"bits/byte", "+bits", "model ms", "needles", "nan"}) EXPECT_EQ(text.find(absent), std::string::npos) << absent;
  EXPECT_NE(text.find("  8.50 "), std::string::npos) << text;
  EXPECT_NE(text.find("tensors/saved: nothing says which keys a query sees"), std::string::npos);
}

}  // namespace
}  // namespace tilewise::app
