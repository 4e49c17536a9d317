// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "tilewise/study/clock.h"
#include "tilewise/study/compare.h"

namespace tilewise::study {

/// Knows how much work a comparison is (in FLOP, roughly) and tells the caller where it stands and how long it will take.
/// Rows are numbered as they run: 0 is dense, then the methods.
class ProgressMeter {
 public:
  ProgressMeter(const ModelConfig& config, const CompareRequest& request);

  void begin(const std::string& row, size_t number);
  void text(size_t index);
  void needle(size_t index);
  /// A layer of the current text or needle begins.
  void layer(int index);
  /// Method `index` (its row has number index + 1) was refused: nothing of it is left to do.
  void skip_row(size_t index);

 private:
  struct Row {
    double text = 0, needle = 0;  // work of one
    bool is_skipped = false;
  };
  double work_of(const Row& row) const;
  double before(size_t number) const;

  const CompareRequest& request_;
  int num_layers_;
  std::vector<Row> rows_;
  Stopwatch watch_;
  std::string name_;
  size_t number_ = 0, index_ = 0;
  bool is_needle_ = false;
};

}  // namespace tilewise::study
