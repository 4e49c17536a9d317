// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "tilewise/study/comparison.h"

namespace tilewise::study {
namespace {

std::string number(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

/// One miss more in twenty prompts is chance, not a loss: 38 of 40 do where dense answers all, 9 of 10 do not.
bool has_needles(const MethodFigures& row, const Comparison& comparison) {
  if (!comparison.dense.needle) return true;
  return row.needle && row.needle->correct >= comparison.dense.needle->correct - comparison.dense.needle->of / 20;
}

bool is_within(const MethodFigures& row, const Comparison& comparison) { return comparison.excess(row) <= comparison.bound(); }  // false for NaN

std::string excess_text(const Comparison& comparison, double excess) {
  return number(comparison.input.has_bits() ? "%+.4f" : "%.4f", excess) + comparison.input.unit();
}

std::string needles_text(const MethodFigures& row) {
  if (!row.needle) return "";
  return ", needles " + std::to_string(row.needle->correct) + "/" + std::to_string(row.needle->of);
}

/// Where nothing is good enough: how near the nearest came.
std::string none_text(const Comparison& comparison) {
  const std::string bound = number("%.3g", comparison.bound()) + comparison.input.unit();
  const std::string needles = comparison.dense.needle ? " with its needles" : "";
  const MethodFigures* nearest = nullptr;
  const MethodFigures* slow = nullptr;  // holds both bounds, is not faster
  for (const MethodFigures& row : comparison.methods) {
    if (row.is_refused() || row.is_baseline) continue;
    if (is_within(row, comparison) && has_needles(row, comparison)) slow = &row;  // or reads everything
    const double excess = comparison.excess(row);
    if (!std::isnan(excess) && (nearest == nullptr || excess < comparison.excess(*nearest))) nearest = &row;
  }
  if (slow != nullptr) {
    return "None: no method is both faster than dense and within " + bound + " of it" + needles + "; " + slow->label + " holds the bounds at " +
           number("%.2f", slow->speedup) + "x" + (slow->density >= 1 ? ", but leaves nothing out here" : "") + ". Stay with dense.";
  }
  if (nearest == nullptr) {
    const auto has = [&](auto property) { return std::any_of(comparison.methods.begin(), comparison.methods.end(), property); };
    if (has([](const MethodFigures& row) { return row.is_refused() && !row.is_baseline; }))
      return "None: no sparse method takes this; the table says why. Stay with dense.";
    if (has([](const MethodFigures& row) { return !row.is_refused() && !row.is_baseline; }))
      return "None: no sparse method gave a figure that a bound could hold. Stay with dense.";
    return has([](const MethodFigures& row) { return row.is_baseline; })
               ? "None: only yardsticks ran, which are not to be used. Name a method, or leave --methods out."
               : "None: no sparse method ran. Name one, or leave --methods out.";
  }
  return "None: no method stays within " + bound + " of dense" + needles + "; the nearest is " + nearest->label + " at " +
         excess_text(comparison, comparison.excess(*nearest)) + needles_text(*nearest) + ". Stay with dense.";
}

double extra_bits(const InputFigures& input, const TextFigures& text) {
  return input.reads == InputFigures::Reads::tokens ? text.bits_per_token - text.dense_bits_per_token : text.bits_per_byte - text.dense_bits_per_byte;
}

/// What is said of the winner: its figures on all texts, or after --tune on those that did not choose it.
std::string quality_text(const Comparison& comparison, const MethodFigures& row) {
  const std::string bound = " (bound " + number("%.3g", comparison.bound()) + ")";
  if (!comparison.tune) return excess_text(comparison, comparison.excess(row)) + bound;
  if (row.texts.size() < 2 || !comparison.input.has_bits())
    return excess_text(comparison, comparison.excess(row)) + bound + " on what it was tuned on";
  double excess = -INFINITY;
  for (size_t i = 1; i < row.texts.size(); ++i) excess = std::max(excess, extra_bits(comparison.input, row.texts[i]));
  return excess_text(comparison, excess) + bound + (row.texts.size() == 2 ? " on the text" : " on the worst of the texts") +
         " that did not choose it";
}

}  // namespace
}  // namespace tilewise::study

TILEWISE_BEGIN_PUBLIC

const char* InputFigures::unit() const {
  if (!has_bits()) return " output error";
  return reads == Reads::tokens ? " bits per token" : " bits per byte";
}

Verdict verdict_of(const Comparison& comparison) {
  Verdict verdict;
  for (size_t i = 0; i < comparison.methods.size(); ++i) {
    const MethodFigures& row = comparison.methods[i];
    // What leaves nothing out is dense under another name, however the clock fell.
    if (row.is_refused() || row.is_baseline || row.density >= 1 || !(row.speedup > 1)) continue;
    if (!study::is_within(row, comparison) || !study::has_needles(row, comparison)) continue;
    if (!verdict.best || row.speedup > comparison.methods[*verdict.best].speedup) verdict.best = i;
  }
  if (!verdict.best) {
    verdict.text = study::none_text(comparison);
    return verdict;
  }
  const MethodFigures& row = comparison.methods[*verdict.best];
  verdict.text = "Use " + row.label + ": attention " + study::number("%.2f", row.speedup) + "x as fast as dense, " +
                 study::quality_text(comparison, row) + study::needles_text(row) + ".";
  return verdict;
}

TILEWISE_END_PUBLIC
