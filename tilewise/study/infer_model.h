// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/study/compare.h"
#include "tilewise/study/studied_model.h"

namespace tilewise::study {

/// A checkpoint that infer/ runs, over the texts and needles of a request. Its tokens are bytes.
class InferModel : public StudiedModel {
 public:
  /// Errors: value (no text, texts of different lengths or too short, a recipe of another model).
  InferModel(const Model& model, const CompareRequest& request);

  InputFigures input() const override;
  bool counts_memory() const override { return true; }
  size_t num_texts() const override { return request_.texts.size(); }
  std::string text_name(size_t text) const override { return request_.texts[text].name; }
  double linear_work(double length) const override;
  StudiedPass read(size_t text, const StudiedAttention& attention, Context& context) override;
  bool answers(size_t needle, const StudiedAttention& attention, Context& context) override;

 private:
  const Model& model_;
  const ModelConfig& config_;
  const CompareRequest& request_;
};

}  // namespace tilewise::study
