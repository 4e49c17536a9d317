// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/study/quality_rows.h"
#include "tilewise/base/error.h"
#include "tilewise/base/file.h"
#include "tilewise/machine/cpu/context.h"
#include "tilewise/methods/registry.h"
#include "tilewise/study/compare.h"

// Reproduces the published figures of the reference LM: minutes of work. With TILEWISE_QUALITY_TABLE=docs/methods.md it also writes the table of what
// it measured between that file's marks:
//   TILEWISE_QUALITY_TABLE=docs/methods.md build/<preset>/tests/study/study_quality_test
// TILEWISE_QUALITY_METHOD=minference runs one method's rows and prints them.
namespace tilewise::study {
namespace {

constexpr size_t kLength = 16384;
constexpr const char* kBegin = "<!-- begin quality -->";
constexpr const char* kEnd = "<!-- end quality -->";

struct Document {
  const char* name;
  double dense_bits;
  double QualityRow::* density;
  double QualityRow::* bits;
};
constexpr Document kDocuments[] = {{"postgresql-wal.txt", .99407, &QualityRow::pg_density, &QualityRow::pg_bits},
                                   {"python-http-client.txt", .81245, &QualityRow::http_density, &QualityRow::http_bits}};

CompareText first_bytes(const std::string& name) {
  const MappedFile file("models/reference-lm/documents/" + name);
  CompareText text{name, {}};
  for (size_t i = 0; i < kLength; ++i) text.tokens.push_back(static_cast<int32_t>(file.bytes()[i]));
  return text;
}

std::string shown(const char* format, double value) {
  if (std::isnan(value)) return "-";
  char text[32];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

double bits_bound(const std::string& method) { return method == "xattention" || method == "minference" ? .001 : .003; }

/// Replaces what stands between the marks of a file.
void write_between_marks(const std::string& path, const std::string& table) {
  const std::string text = read_file(path, size_t{1} << 24);
  const size_t begin = text.find(kBegin), end = text.find(kEnd);
  ASSERT_TRUE(begin != std::string::npos && end != std::string::npos && begin < end) << path << " has no marks " << kBegin << " and " << kEnd;
  write_file(path, text.substr(0, begin) + kBegin + "\n" + table + text.substr(end));
}

TEST(Quality, FiguresOfTheReferenceModelComeOutAgain) {
  Context context = cpu_context();
  const Model model = Model::load("models/reference-lm", context);
  std::string table =
      "Reference LM, first 16,384 bytes of each document; pg is `postgresql-wal.txt`, http `python-http-client.txt`. In parentheses what plain "
      "PyTorch\n"
      "code measured before; - where it did not. Bits are bits per byte above dense.\n\n"
      "| method | options | density pg | density http | recall pg | error pg | bits pg | bits http |\n|---|---|---|---|---|---|---|---|\n";
  const char* const only = std::getenv("TILEWISE_QUALITY_METHOD");
  std::vector<std::array<MethodFigures, 2>> measured(std::size(kQualityRows));
  for (size_t d = 0; d < 2; ++d) {
    const Document& document = kDocuments[d];
    CompareRequest request;
    request.texts = {first_bytes(document.name)};
    std::vector<size_t> index;
    for (size_t i = 0; i < std::size(kQualityRows); ++i) {
      const QualityRow& row = kQualityRows[i];
      if (std::isnan(row.*document.density) || (only != nullptr && std::string(row.method) != only)) continue;
      request.methods.push_back({row.method, parse_options(row.method, row.options)});
      index.push_back(i);
    }
    std::string last;
    request.progress = [&](const CompareProgress& progress) {
      if (progress.row == last) return;
      last = progress.row;
      std::printf("%s: %s (%.0f s left)\n", document.name, last.c_str(), progress.seconds_left);
      std::fflush(stdout);
    };
    const Comparison comparison = compare(model, request, context);
    EXPECT_NEAR(comparison.dense.bits_per_byte, document.dense_bits, 1e-4) << document.name;
    for (size_t i = 0; i < index.size(); ++i) {
      const QualityRow& expected = kQualityRows[index[i]];
      const MethodFigures& row = comparison.methods[i];
      SCOPED_TRACE(std::string(document.name) + ": " + row.label);
      ASSERT_FALSE(row.is_refused()) << row.refused;
      measured[index[i]][d] = row;
      // 2 %, and half a unit of the last place that was published.
      const double density = expected.*document.density;
      EXPECT_LE(row.density, 1.02 * density + .0005);
      EXPECT_GE(row.density, 0.98 * density - .0005);
      if (std::string(expected.method) != "random") {
        EXPECT_NEAR(row.max_extra_bits, expected.*document.bits, bits_bound(expected.method) + .00005);
      }
    }
  }
  for (size_t i = 0; i < std::size(kQualityRows); ++i) {
    const QualityRow& row = kQualityRows[i];
    if (only != nullptr && std::string(row.method) != only) continue;
    const auto& [pg, http] = measured[i];
    const auto pair = [](const char* format, double ours, double theirs) { return shown(format, ours) + " (" + shown(format, theirs) + ")"; };
    const bool has_http = !std::isnan(row.http_density);
    table += std::string("| ") + row.method + " | " + row.options + " | " + pair("%.3f", pg.density, row.pg_density) + " | " +
             (has_http ? pair("%.3f", http.density, row.http_density) : "-") + " | " + shown("%.3f", pg.recall) + " | " +
             shown("%.3f", pg.output_error) + " | " + pair("%+.4f", pg.max_extra_bits, row.pg_bits) + " | " +
             (has_http ? pair("%+.4f", http.max_extra_bits, row.http_bits) : "-") + " |\n";
  }
  std::printf("%s", table.c_str());
  const char* const path = std::getenv("TILEWISE_QUALITY_TABLE");
  if (path != nullptr && only == nullptr) write_between_marks(path, table);
}

}  // namespace
}  // namespace tilewise::study
