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

/// A comparison with figures as they come out of the reference LM, a refused row and text from outside everywhere.
inline Comparison synthetic_comparison(const std::string& outside) {
  Comparison comparison;
  comparison.environment = {"0.1.0", "0123456789ab", "cpu avx512, Some Processor", "tilewise compare --model " + outside, "2026-01-02T03:04:05Z", 2};
  comparison.input = {
      "models/" + outside, {{"documents/a-rather-long-name-of-a-document-" + outside + ".txt", 41052}}, 16384, {4096}, 8, 6, 2, 64, 16384};
  comparison.dense = {8520, 11200, .99407, size_t{512} << 20, "cpu/avx512", synthetic_needles(0)};
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
        method.heads.push_back({layer, head, density, density * .98, 1 - (1 - row.recall) * 2 * (1 - wave), row.error * (.5 + wave)});
      }
    }
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

}  // namespace tilewise::app
