// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/progress.h"

#include <algorithm>

namespace tilewise::study {
namespace {

/// What a method's planning and sparse attention take, as a share of dense attention: an oracle computes every score twice, others are taken
/// at a density of about .2. Only the time left rests on it.
double extra_share(const std::string& name) { return name == "oracle" ? 1.6 : .35; }

}  // namespace

ProgressMeter::ProgressMeter(const ModelConfig& config, const CompareRequest& request)
    : request_(request), num_layers_(std::max(1, config.num_layers)) {
  const double weights = static_cast<double>(config.num_layers) *
                         (static_cast<double>(config.hidden_size) * config.head_dim * (2 * config.heads_q + 2 * config.heads_kv) +
                          3.0 * config.hidden_size * config.intermediate_size);
  const auto linear = [&](double length) { return 2 * weights * length; };
  const auto attention = [&](double length) { return 2.0 * config.num_layers * config.heads_q * config.head_dim * length * length; };
  const double length = request.texts.empty() ? 0 : static_cast<double>(request.texts.front().tokens.size());
  const double needle = request.needles.empty() ? 0 : static_cast<double>(request.needles.front().length);
  rows_.push_back({linear(length) + attention(length), linear(needle) + attention(needle)});
  const auto add = [&](double extra) {
    rows_.push_back({linear(length) + (1 + extra) * attention(length), linear(needle) + extra * attention(needle)});
  };
  for (const MethodChoice& choice : request.methods) {
    if (choice.name != "dense") add(extra_share(choice.name));
  }
  if (request.recipe) add(extra_share(""));
}

void ProgressMeter::begin(const std::string& row, size_t number) {
  name_ = row;
  number_ = number;
  is_needle_ = false;
  index_ = 0;
}

void ProgressMeter::text(size_t index) {
  is_needle_ = false;
  index_ = index;
}

void ProgressMeter::needle(size_t index) {
  is_needle_ = true;
  index_ = index;
}

void ProgressMeter::layer(int index) {
  if (!request_.progress || number_ >= rows_.size()) return;
  const Row& row = rows_[number_];
  const double unit = is_needle_ ? row.needle : row.text;
  const double texts = static_cast<double>(request_.texts.size());
  const double inside = (is_needle_ ? texts * row.text : 0) + unit * (static_cast<double>(index_) + static_cast<double>(index) / num_layers_);
  const double done = before(number_) + inside;
  const double all = before(rows_.size());
  CompareProgress progress;
  progress.row = name_;
  const size_t of = is_needle_ ? request_.needles.size() : request_.texts.size();
  progress.part = (is_needle_ ? "needle " : "text ") + std::to_string(index_ + 1) + "/" + std::to_string(of) + ", layer " +
                  std::to_string(index + 1) + "/" + std::to_string(num_layers_);
  progress.share = all > 0 ? std::min(1.0, done / all) : 1;
  // The first layers hold the start of threads and first touches of memory; a guess from them would be wild.
  progress.seconds_left = progress.share < .01 ? -1 : watch_.ms() / 1000 * (1 - progress.share) / progress.share;
  request_.progress(progress);
}

void ProgressMeter::skip_row(size_t index) {
  if (index + 1 < rows_.size()) rows_[index + 1].is_skipped = true;
}

double ProgressMeter::work_of(const Row& row) const {
  if (row.is_skipped) return 0;
  return row.text * static_cast<double>(request_.texts.size()) + row.needle * static_cast<double>(request_.needles.size());
}

double ProgressMeter::before(size_t number) const {
  double total = 0;
  for (size_t i = 0; i < number; ++i) total += work_of(rows_[i]);
  return total;
}

}  // namespace tilewise::study
