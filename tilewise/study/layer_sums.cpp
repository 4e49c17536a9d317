// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/layer_sums.h"

#include <cmath>

#include "tilewise/plan/count.h"
#include "tilewise/select/as_float.h"

namespace tilewise::study {
namespace {

double ratio(double part, double whole) { return whole > 0 ? part / whole : kNoFigure; }

HeadFigures figures(const HeadSums& sums) {
  HeadFigures head;
  head.density = ratio(sums.reads, sums.dense_reads);
  head.allowed_density = ratio(sums.allowed, sums.dense_allowed);
  head.recall = ratio(sums.recall, sums.rows);
  head.output_error = std::sqrt(ratio(sums.error_square, sums.dense_square));
  return head;
}

/// One head of one batch entry. Everything in double and in order, so the figures do not depend on threads.
HeadSums compare_head(const TensorView& out, const TensorView& lse, const TensorView& dense_out, const TensorView& dense_lse, int64_t b, int head) {
  HeadSums sums;
  const int64_t head_dim = out.dim(3);
  for (int64_t s = 0; s < out.dim(2); ++s) {
    const float* ours = &out.at<const float>(b, head, s);
    const float* theirs = &dense_out.at<const float>(b, head, s);
    for (int64_t d = 0; d < head_dim; ++d) {
      const double difference = static_cast<double>(ours[d]) - static_cast<double>(theirs[d]);
      sums.error_square += difference * difference;
      sums.dense_square += static_cast<double>(theirs[d]) * static_cast<double>(theirs[d]);
    }
    const double dense = static_cast<double>(dense_lse.at<const float>(b, head, s));
    if (dense == -INFINITY) continue;  // a row that sees no key has nothing to recall
    sums.recall += std::exp(static_cast<double>(lse.at<const float>(b, head, s)) - dense);
    sums.rows += 1;
  }
  return sums;
}

}  // namespace

HeadSums& HeadSums::operator+=(const HeadSums& other) {
  reads += other.reads;
  dense_reads += other.dense_reads;
  allowed += other.allowed;
  dense_allowed += other.dense_allowed;
  recall += other.recall;
  rows += other.rows;
  error_square += other.error_square;
  dense_square += other.dense_square;
  return *this;
}

void LayerSums::add_plan(int layer, const Plan& plan, const Plan& dense) {
  add_plans(layer, std::vector<Plan>(static_cast<size_t>(heads_), plan), dense);
}

void LayerSums::add_plans(int layer, const std::vector<Plan>& head_plans, const Plan& dense) {
  has_run_[static_cast<size_t>(layer)] = true;
  for (int head = 0; head < heads_; ++head) {
    const Plan& plan = head_plans[static_cast<size_t>(head)];
    HeadSums sums;
    sums.reads = static_cast<double>(reads(plan, head));
    sums.dense_reads = dense_reads_of(plan, head);
    sums.allowed = static_cast<double>(allowed_pairs(plan, head));
    sums.dense_allowed = static_cast<double>(allowed_pairs(dense, head));
    at(layer, head) += sums;
  }
}

void LayerSums::add_outputs(int layer, const TensorView& out, const TensorView& lse, const TensorView& dense_out, const TensorView& dense_lse,
                            Context& context) {
  const select::AsFloat ours(out, context), theirs(dense_out, context);
  context.parallel_for(heads_, [&](int64_t head, int) {
    for (int64_t b = 0; b < out.dim(0); ++b)
      at(layer, static_cast<int>(head)) += compare_head(ours.view, lse, theirs.view, dense_lse, b, static_cast<int>(head));
  });
}

void LayerSums::write(MethodFigures& row) const {
  HeadSums all;
  double layer_errors = 0;
  int num_layers = 0;
  row.heads.clear();
  for (int layer = 0; layer < static_cast<int>(sums_.size()) / heads_; ++layer) {
    if (!has_run_[static_cast<size_t>(layer)]) continue;  // a layer of a model that has no attention
    ++num_layers;
    HeadSums of_layer;
    for (int head = 0; head < heads_; ++head) {
      const HeadSums& sums = at(layer, head);
      of_layer += sums;
      row.heads.push_back(figures(sums));
      row.heads.back().layer = layer;
      row.heads.back().head = head;
    }
    layer_errors += figures(of_layer).output_error;
    all += of_layer;
  }
  const HeadFigures mean = figures(all);
  row.density = mean.density;
  row.allowed_density = mean.allowed_density;
  row.recall = mean.recall;
  row.output_error = ratio(layer_errors, num_layers);
}

}  // namespace tilewise::study
