// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/compare.h"

TILEWISE_BEGIN_PUBLIC

const std::vector<MethodChoice>& demo_rows() {
  using std::string;
  static const std::vector<MethodChoice> rows = {
      {"xattention", {{"stride", int64_t{16}}, {"threshold", .97}, {"tile", int64_t{64}}}},  // holds the bound on the reference LM
      {"xattention", {{"stride", int64_t{8}}, {"threshold", .9}, {"tile", int64_t{128}}}},   // as published, which does not
      {"xattention", {{"stride", int64_t{16}}, {"threshold", .95}, {"tile", int64_t{64}}}},  // between the two
      {"mean_pool", {{"threshold", .9}}},
      {"a_shape", {{"init", int64_t{64}}, {"local", int64_t{2048}}}},
      {"random", {{"density", .2}}},
      {"oracle", {{"rule", string("sum")}, {"threshold", .9}, {"tile", int64_t{64}}}},  // looks at the true attention: a yardstick, not a method
      {"oracle", {{"rule", string("max")}, {"threshold", .05}, {"tile", int64_t{64}}}},
  };
  return rows;
}

TILEWISE_END_PUBLIC
