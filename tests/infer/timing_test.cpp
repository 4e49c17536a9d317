// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/timing.h"

#include <gtest/gtest.h>

#include <vector>

#include "tiny_checkpoint.h"

namespace tilewise {
namespace {

TEST(TimeModel, SplitsOnePass) {
  TinyCheckpoint checkpoint;
  checkpoint.make(1);
  TemporaryFolder folder;
  checkpoint.write(folder.path());
  Context context;
  const Model model = Model::load(folder.path(), context);
  std::vector<int32_t> tokens(300);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * i % 50);
  const ModelTiming timing = time_model(model, tokens, 2, context);
  EXPECT_EQ(timing.tokens, 300);
  EXPECT_FALSE(timing.backend.empty());
  EXPECT_GT(timing.plan_ms, 0);
  EXPECT_GE(timing.attention_ms, timing.plan_ms);
  EXPECT_GE(timing.total_ms, timing.linear_ms + timing.attention_ms + timing.logits_ms);
  EXPECT_GT(timing.bits_per_token, 0);
  EXPECT_EQ(timing.flops.total(), model_flops(model.config(), 300, 0, 300).total());
  EXPECT_GT(timing.gflops(), 0);
  EXPECT_EQ(error_of([&] { time_model(model, tokens, 0, context); }).substr(0, 6), "value:");
  EXPECT_EQ(error_of([&] { time_model(model, std::vector<int32_t>{1}, 1, context); }).substr(0, 6), "value:");
}

}  // namespace
}  // namespace tilewise
