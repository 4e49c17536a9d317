// SPDX-License-Identifier: Apache-2.0
#include "app/table.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

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
  const bool has_needles = dense.needle.has_value();
  Table table;
  const auto add = [&](const std::vector<std::string>& cells, Style first, Style rest) {
    std::vector<Table::Cell> row;
    for (size_t i = 0; i < cells.size(); ++i) row.push_back({cells[i], i == 0 ? first : rest});
    if (!has_needles) row.pop_back();
    table.add(std::move(row));
  };
  add({"method", "density", "allowed", "recall", "error", "bits/byte", "+bits", "plan ms", "attend ms", "total ms", "speed-up", "model ms", "memory",
       "needles"},
      Style::bold, Style::bold);
  add({"dense", "1", "1", "1", "0", number("%.4f", dense.bits_per_byte), "", "", number("%.0f", dense.attend_ms), number("%.0f", dense.attend_ms),
       "1.00", number("%.0f", dense.model_ms), size_text(static_cast<double>(dense.peak_bytes)), needle_text(dense.needle)},
      Style::plain, Style::plain);
  for (size_t i = 0; i < comparison.methods.size(); ++i) {
    const MethodFigures& row = comparison.methods[i];
    if (row.is_refused()) {
      table.add_line(row.label + ": refused: " + first_line(row.refused), Style::bad);
      continue;
    }
    const bool is_best = verdict.best == i;
    add({row.label, number("%.3f", row.density), number("%.3f", row.allowed_density), number("%.3f", row.recall), number("%.3f", row.output_error),
         number("%.4f", row.bits_per_byte), number("%+.4f", row.max_extra_bits), number("%.0f", row.plan_ms), number("%.0f", row.attend_ms),
         number("%.0f", row.total_ms), number("%.2f", row.speedup), number("%.0f", row.model_ms), size_text(static_cast<double>(row.peak_bytes)),
         needle_text(row.needle)},
        is_best ? Style::good : Style::plain, is_best ? Style::good : Style::plain);
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
