// SPDX-License-Identifier: Apache-2.0
#include "app/table.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>

namespace tilewise::app {
namespace {

/// Letters, not bytes: continuation bytes of UTF-8 take no column.
size_t width(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0u) != 0x80u; }));
}

std::string needle_text(const std::optional<NeedleFigures>& needle) {
  return needle ? std::to_string(needle->correct) + "/" + std::to_string(needle->of) : "-";
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

}  // namespace

void Table::add_line(std::string text, Style style) { rows_.push_back({{std::move(text), style}}); }

std::string Table::text() const {
  std::vector<size_t> widths;
  for (const auto& row : rows_) {
    if (row.size() < 2) continue;
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width(row[i].text));
  }
  std::string out;
  for (const auto& row : rows_) {
    if (row.size() == 1) {
      out += "  " + styled(row[0].text, row[0].style) + "\n";
      continue;
    }
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string space(widths[i] - width(row[i].text), ' ');
      const std::string shown = styled(row[i].text, row[i].style);
      if (i == 0) {
        out.append(shown).append(space);
      } else {
        out.append("  ").append(space).append(shown);
      }
    }
    out += "\n";
  }
  return out;
}

std::string number(const char* format, double value) {
  if (std::isnan(value)) return "-";
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

std::string size_text(double bytes) {
  if (std::isnan(bytes)) return "-";
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(units)) {
    bytes /= 1024;
    ++unit;
  }
  return number(unit == 0 ? "%.0f " : bytes < 10 ? "%.1f " : "%.0f ", bytes) + units[unit];
}

std::string comparison_text(const Comparison& comparison) {
  const DenseFigures& dense = comparison.dense;
  const Verdict verdict = verdict_of(comparison);
  // Of tensors there are neither bits nor a model's time.
  const bool has_model = comparison.input.has_model(), has_bits = comparison.input.has_bits(), has_needles = dense.needle.has_value();
  const bool has_bytes = has_bits && comparison.input.reads != InputFigures::Reads::tokens;
  const bool has_tokens = has_bits && comparison.input.reads != InputFigures::Reads::bytes;
  const char* const time = dense.attend_ms >= 200 ? "%.0f" : dense.attend_ms >= 2 ? "%.2f" : "%.3f";
  Table table;
  /// What is shown of each column, dense first: its cells and whether it is there.
  struct Column {
    bool is_shown;
    std::string head, of_dense;
    std::function<std::string(const MethodFigures&)> text;
  };
  const Column columns[] = {
      {true, "density", "1", [](const MethodFigures& row) { return number("%.3f", row.density); }},
      {true, "allowed", "1", [](const MethodFigures& row) { return number("%.3f", row.allowed_density); }},
      {true, "recall", "1", [](const MethodFigures& row) { return number("%.3f", row.recall); }},
      {true, "error", "0", [](const MethodFigures& row) { return number("%.3f", row.output_error); }},
      {has_bytes, "bits/byte", number("%.4f", dense.bits_per_byte), [](const MethodFigures& row) { return number("%.4f", row.bits_per_byte); }},
      {has_tokens && !has_bytes, "bits/token", number("%.4f", dense.bits_per_token),
       [](const MethodFigures& row) { return number("%.4f", row.bits_per_token); }},
      {has_tokens, "perplexity", number("%.4g", std::exp2(dense.bits_per_token)),
       [](const MethodFigures& row) { return number("%.4g", std::exp2(row.bits_per_token)); }},
      {has_bits, "+bits", "", [](const MethodFigures& row) { return number("%+.4f", row.max_extra_bits); }},
      {true, "plan ms", "", [&](const MethodFigures& row) { return number(time, row.plan_ms); }},
      {true, "attend ms", number(time, dense.attend_ms), [&](const MethodFigures& row) { return number(time, row.attend_ms); }},
      {true, "total ms", number(time, dense.attend_ms), [&](const MethodFigures& row) { return number(time, row.total_ms); }},
      {true, "speed-up", "1.00", [](const MethodFigures& row) { return number("%.2f", row.speedup); }},
      {has_model, "model ms", number("%.0f", dense.model_ms), [](const MethodFigures& row) { return number("%.0f", row.model_ms); }},
      {dense.peak_bytes > 0, "memory", size_text(static_cast<double>(dense.peak_bytes)),
       [](const MethodFigures& row) { return size_text(static_cast<double>(row.peak_bytes)); }},
      {has_needles, "needles", needle_text(dense.needle), [](const MethodFigures& row) { return needle_text(row.needle); }},
  };
  const auto add = [&](const std::string& name, Style style, const auto& cell) {
    std::vector<Table::Cell> cells{{name, style}};
    for (const Column& column : columns) {
      if (column.is_shown) cells.push_back({cell(column), style});
    }
    table.add(std::move(cells));
  };
  add("method", Style::bold, [](const Column& column) { return column.head; });
  add("dense", Style::plain, [](const Column& column) { return column.of_dense; });
  for (size_t i = 0; i < comparison.methods.size(); ++i) {
    const MethodFigures& row = comparison.methods[i];
    if (row.is_refused()) {
      table.add_line(row.label + ": refused: " + first_line(row.refused), Style::bad);
    } else {
      add(row.label, verdict.best == i ? Style::good : Style::plain, [&](const Column& column) { return column.text(row); });
    }
  }
  std::string out = table.text();
  if (comparison.input.is_mask_assumed) {
    out += styled(comparison.input.qkv + ": nothing says which keys a query sees; taken as " + comparison.input.mask + " (--mask says otherwise)",
                  Style::dim) +
           "\n";
  }
  for (const MethodFigures& row : comparison.methods) {
    for (const std::string& note : row.notes) out += styled(row.label + ": " + note, Style::dim) + "\n";
  }
  return out + "\n" + styled(verdict.text, verdict.best ? Style::good : Style::bad) + "\n";
}

}  // namespace tilewise::app
