// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>
#include <string>

#include "tilewise/study/comparison.h"

namespace tilewise::app {

/// What a path or an error could hold to break a page or a script.
inline const std::string kHostile = "</script><script>document.title='broken'</script><b a=\"x\" c='y'>&amp; \xe2\x80\xa8 {{json}} \xff";

inline NeedleFigures synthetic_needles(int wrong) {
  NeedleFigures needle{10 - wrong, 10, {}};
  int left = wrong;
  for (const double depth : {.05, .25, .5, .75, .95}) {
    const int miss = std::min(left, 2);
    left -= miss;
    needle.cells.push_back({4096, depth, 2 - miss, 2});
  }
  return needle;
}

/// Mass near the diagonal and on the first keys; every third cell between is left out.
inline HeadMap synthetic_map(const MapShape& shape, int layer, int head) {
  HeadMap map;
  for (int i = 0; i < shape.side_q; ++i) {
    for (int j = 0; j < (shape.is_triangle ? i + 1 : shape.side_k); ++j) {
      const bool is_kept = j == 0 || i - j < 4 + layer || (i + j + head) % 3 == 0;
      const int mass = j == 0 || i == j ? 180 : 120 / (1 + (i > j ? i - j : j - i)) + 10;
      map.mass.push_back(static_cast<uint8_t>(mass));
      map.kept.push_back(is_kept ? 255 : 0);
      map.missed.push_back(static_cast<uint8_t>(is_kept ? 0 : mass));
    }
  }
  return map;
}

/// What --tune tried of two methods.
inline TuneFigures synthetic_tune(const std::string& outside) {
  using Outcome = TunePoint::Outcome;
  TuneFigures tune{"documents/" + outside + ".txt", {}};
  const OptionValues options{{"tile", int64_t{64}}, {"threshold", .97}};
  tune.curves.push_back(
      {"xattention",
       {{options, "xattention threshold=0.9", .1, .0487, 1380, 300, 1100, Outcome::over, ""},
        {options, "xattention threshold=0.97", .19, .0034, 2060, 300, 1790, Outcome::within, ""},
        {options, "xattention threshold=0.99", .32, kNoFigure, 2870, 310, 2600, Outcome::slow, ""},
        {options, "xattention tile=256 " + outside, kNoFigure, kNoFigure, kNoFigure, kNoFigure, kNoFigure, Outcome::refused, "why not: " + outside}},
       1,
       true});
  tune.curves.push_back({"a_shape", {{options, "a_shape", .248, .0219, 2240, .4, 2260, Outcome::over, ""}}, 0, false});
  return tune;
}

/// A comparison with figures as they come out of the reference LM, a refused row and text from outside everywhere.
inline Comparison synthetic_comparison(const std::string& outside) {
  Comparison comparison;
  comparison.environment = {"0.1.0", "0123456789ab", "cpu avx512, Some Processor", "tilewise compare --model " + outside, "2026-01-02T03:04:05Z", 2};
  comparison.input = {
      "models/" + outside, {{"documents/a-rather-long-name-of-a-document-" + outside + ".txt", 41052}}, 16384, {4096}, 8, 6, 2, 64, 16384};
  comparison.dense = {8520, 11200, .99407, size_t{512} << 20, "cpu/avx512", synthetic_needles(0)};
  comparison.map = MapShape{64, 64, 256, 256, true};
  comparison.tune = synthetic_tune(outside);
  struct Row {
    const char* name;
    const char* label;
    double density, recall, error, bits, plan, attend;
    int wrong;
  };
  const Row rows[] = {{"xattention", "xattention stride=16,threshold=0.97,tile=64", .194, .958, .041, .0034, 310, 1790, 0},
                      {"xattention", "xattention", .124, .904, .118, .0778, 560, 1130, 3},
                      {"xattention", "xattention stride=16,threshold=0.95,tile=64", .151, .937, .062, .0092, 300, 1400, 1},
                      {"mean_pool", "mean_pool", .114, .882, .151, .106, 40, 1040, 4},
                      {"a_shape", "a_shape", .248, .954, .043, .0219, .4, 2260, 6},
                      {"random", "random", .212, .615, .32, .4639, 3, 1960, 10},
                      {"oracle", "oracle", .111, .921, .096, .0697, 12900, 1050, 2},
                      {"oracle", "oracle rule=max,threshold=0.05", .092, .909, .042, -.0008, 13100, 890, 0}};
  for (const Row& row : rows) {
    MethodFigures method;
    method.name = row.name;
    method.label = row.label;
    method.options = {{"stride", int64_t{16}}, {"threshold", .97}, {"rule", std::string("sum")}, {"is_fast", true}};
    method.density = row.density;
    method.allowed_density = row.density * .98;
    method.recall = row.recall;
    method.output_error = row.error;
    method.bits_per_byte = .99407 + row.bits;
    method.max_extra_bits = row.bits;
    method.plan_ms = row.plan;
    method.attend_ms = row.attend;
    method.total_ms = row.plan + row.attend;
    method.dense_attend_ms = 8540;
    method.speedup = 8540 / method.total_ms;
    method.model_ms = 2700 + method.total_ms;
    method.peak_bytes = size_t{530} << 20;
    method.backend = "cpu/avx512";
    method.needle = synthetic_needles(row.wrong);
    for (int layer = 0; layer < 8; ++layer) {
      for (int head = 0; head < 6; ++head) {
        const double wave = .5 + .5 * std::sin(layer * 1.7 + head * 2.3 + row.density * 9);
        const double density = layer == 7 ? .3 + .4 * wave : row.density * 1.6 * wave;
        method.heads.push_back({layer, head, density, density * .98, 1 - (1 - row.recall) * 2 * (1 - wave), row.error * (.5 + wave),
                                synthetic_map(*comparison.map, layer, head)});
      }
    }
    method.worst_tiles = {{7, 3, 8192, 8256, 1024, 1088, .031}, {5, 0, 64, 128, 0, 64, .02}};
    method.is_baseline = method.name == "random" || method.name == "oracle";
    method.texts.push_back({"a.txt", method.bits_per_byte, .99407});
    comparison.methods.push_back(std::move(method));
  }
  comparison.methods[6].notes.push_back("looks at the true attention to choose: a yardstick, not a method to use");
  MethodFigures refused;
  refused.name = "xattention";
  refused.label = "xattention tile=256 " + outside;
  refused.refused = "xattention: does not take this problem: " + outside;
  comparison.methods.push_back(refused);
  return comparison;
}

/// The same of tensors from a file: no model, so neither bits nor needles.
inline Comparison synthetic_tensors(const std::string& outside) {
  Comparison comparison = synthetic_comparison(outside);
  comparison.tune.reset();
  comparison.input = {"", {}, 1000, {}, 1, 6, 2, 64, 1500, 2, "tensors/" + outside, "spans", true, "bf16"};
  comparison.map = MapShape{63, 47, 16, 32, false};
  comparison.dense = {8.5, kNoFigure, kNoFigure, size_t{5} << 20, "cpu/avx512", {}};
  for (MethodFigures& row : comparison.methods) {
    row.bits_per_byte = row.max_extra_bits = row.model_ms = kNoFigure;
    row.needle.reset();
    row.texts.clear();
    for (double* time : {&row.plan_ms, &row.attend_ms, &row.total_ms, &row.dense_attend_ms}) *time /= 1000;
    if (row.heads.size() > 6) row.heads.resize(6);
    for (HeadFigures& head : row.heads) head.map = synthetic_map(*comparison.map, 0, head.head);
    row.worst_tiles = {{0, 3, 64, 80, 0, 16, .031}};
  }
  return comparison;
}

}  // namespace tilewise::app
