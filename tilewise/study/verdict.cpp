// SPDX-License-Identifier: Apache-2.0
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

bool has_needles(const MethodFigures& row, const Comparison& comparison) {
  if (!comparison.dense.needle) return true;
  return row.needle && row.needle->correct >= comparison.dense.needle->correct;
}

bool has_bits(const MethodFigures& row, double max_bits) { return row.max_extra_bits <= max_bits; }  // false for NaN

std::string needles_text(const MethodFigures& row) {
  if (!row.needle) return "";
  return ", needles " + std::to_string(row.needle->correct) + "/" + std::to_string(row.needle->of);
}

/// Where nothing is good enough: how near the nearest came.
std::string none_text(const Comparison& comparison) {
  const std::string bound = number("%.3g", comparison.max_bits) + " bits per byte";
  const std::string needles = comparison.dense.needle ? " with its needles" : "";
  const MethodFigures* nearest = nullptr;
  const MethodFigures* slow = nullptr;  // holds both bounds, is not faster
  for (const MethodFigures& row : comparison.methods) {
    if (row.is_refused() || row.is_baseline) continue;
    if (has_bits(row, comparison.max_bits) && has_needles(row, comparison)) slow = &row;  // or reads everything
    if (!std::isnan(row.max_extra_bits) && (nearest == nullptr || row.max_extra_bits < nearest->max_extra_bits)) nearest = &row;
  }
  if (slow != nullptr) {
    return "None: no method is both faster than dense and within " + bound + " of it" + needles + "; " + slow->label + " holds the bounds at " +
           number("%.2f", slow->speedup) + "x" + (slow->density >= 1 ? ", but leaves nothing out here" : "") + ". Stay with dense.";
  }
  if (nearest == nullptr) return "None: no sparse method ran. Stay with dense.";
  return "None: no method stays within " + bound + " of dense" + needles + "; the nearest is " + nearest->label + " at " +
         number("%+.4f", nearest->max_extra_bits) + needles_text(*nearest) + ". Stay with dense.";
}

}  // namespace
}  // namespace tilewise::study

TILEWISE_BEGIN_PUBLIC

Verdict verdict_of(const Comparison& comparison) {
  Verdict verdict;
  for (size_t i = 0; i < comparison.methods.size(); ++i) {
    const MethodFigures& row = comparison.methods[i];
    // What leaves nothing out is dense under another name, however the clock fell.
    if (row.is_refused() || row.is_baseline || row.density >= 1 || !(row.speedup > 1)) continue;
    if (!study::has_bits(row, comparison.max_bits) || !study::has_needles(row, comparison)) continue;
    if (!verdict.best || row.speedup > comparison.methods[*verdict.best].speedup) verdict.best = i;
  }
  if (!verdict.best) {
    verdict.text = study::none_text(comparison);
    return verdict;
  }
  const MethodFigures& row = comparison.methods[*verdict.best];
  verdict.text = "Use " + row.label + ": attention " + study::number("%.2f", row.speedup) + "x as fast as dense, " +
                 study::number("%+.4f", row.max_extra_bits) + " bits per byte (bound " + study::number("%.3g", comparison.max_bits) + ")" +
                 study::needles_text(row) + ".";
  return verdict;
}

TILEWISE_END_PUBLIC
