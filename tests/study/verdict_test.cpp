// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "tilewise/study/comparison.h"

namespace tilewise {
namespace {

MethodFigures row(const std::string& label, double extra_bits, double speedup, int correct = -1) {
  MethodFigures figures;
  figures.name = "xattention";
  figures.label = label;
  figures.max_extra_bits = extra_bits;
  figures.speedup = speedup;
  if (correct >= 0) figures.needle = NeedleFigures{correct, 10, {}};
  return figures;
}

TEST(Verdict, IsTheFastestThatHoldsTheBound) {
  Comparison comparison;
  comparison.methods = {row("a", .0049, 3), row("b", .0051, 9), row("c", .001, 4), row("d", -.01, 2)};
  const Verdict verdict = verdict_of(comparison);
  ASSERT_TRUE(verdict.best.has_value());
  EXPECT_EQ(*verdict.best, 2u);
  EXPECT_NE(verdict.text.find("Use c: attention 4.00x as fast as dense, +0.0010"), std::string::npos) << verdict.text;
  comparison.max_bits = .0051;
  EXPECT_EQ(verdict_of(comparison).best, std::optional<size_t>(1));
}

TEST(Verdict, NeedlesMustHoldWhereDenseAnswersThem) {
  Comparison comparison;
  comparison.dense.needle = NeedleFigures{9, 10, {}};
  comparison.methods = {row("a", 0, 5, 8), row("b", 0, 4, 9), row("c", 0, 6)};  // c was not asked
  EXPECT_EQ(verdict_of(comparison).best, std::optional<size_t>(1));
  EXPECT_NE(verdict_of(comparison).text.find("needles 9/10"), std::string::npos);
}

TEST(Verdict, SaysPlainlyWhenNoneDoes) {
  Comparison comparison;
  EXPECT_NE(verdict_of(comparison).text.find("no sparse method ran"), std::string::npos);
  comparison.methods = {row("near", .006, 3), row("far", .5, 9)};
  Verdict verdict = verdict_of(comparison);
  EXPECT_FALSE(verdict.best.has_value());
  EXPECT_EQ(verdict.text.rfind("None: ", 0), 0u);
  EXPECT_NE(verdict.text.find("the nearest is near at +0.0060"), std::string::npos) << verdict.text;
  comparison.methods.push_back(row("slow", 0, .5));
  verdict = verdict_of(comparison);
  EXPECT_FALSE(verdict.best.has_value());
  EXPECT_NE(verdict.text.find("slow holds the bounds at 0.50x"), std::string::npos) << verdict.text;
}

TEST(Verdict, DenseUnderAnotherNameIsNoAdvice) {
  Comparison comparison;
  comparison.methods = {row("all", 0, 1.04)};
  comparison.methods[0].density = 1;
  const Verdict verdict = verdict_of(comparison);
  EXPECT_FALSE(verdict.best.has_value());
  EXPECT_NE(verdict.text.find("all holds the bounds at 1.04x, but leaves nothing out here"), std::string::npos) << verdict.text;
  comparison.methods[0].density = .9;
  EXPECT_TRUE(verdict_of(comparison).best.has_value());
}

TEST(Verdict, RefusedRowsBaselinesAndMissingFiguresDoNotCount) {
  Comparison comparison;
  comparison.methods = {row("a", 0, 5), row("b", kNoFigure, 9), row("c", 0, kNoFigure), row("d", 0, 7)};
  comparison.methods[0].refused = "why";
  comparison.methods[3].is_baseline = true;
  EXPECT_FALSE(verdict_of(comparison).best.has_value());
}

}  // namespace
}  // namespace tilewise
