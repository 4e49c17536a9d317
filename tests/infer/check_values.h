// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tilewise/cache/contiguous.h"
#include "tilewise/infer/model.h"
#include "tilewise/machine/cpu/thread_pool.h"

namespace tilewise {

/// A row of the table in models/reference-lm/README.md.
struct CheckValue {
  const char* document;
  int64_t length;
  double bits_per_byte;
  float logits[4];  // of bytes 10, 32, 101, 116, at the last position
  int argmax;
};

/// Dense attention must give the card's figures, which are f32's: to 1e-4 bits per byte in f32, in bf16 to what rounding weights and operands costs.
inline void expect_check_value(const CheckValue& expected, Dtype dtype = Dtype::f32) {
  SCOPED_TRACE(testing::Message() << expected.document << " at " << expected.length << " in " << dtype);
  Context context;
  context.executor = make_thread_pool(2);
  const Model model = Model::load("models/reference-lm", context, {.dtype = dtype});
  ASSERT_TRUE(model.config().reads_bytes);
  std::ifstream in(std::string("models/reference-lm/documents/") + expected.document, std::ios::binary);
  const std::string text(std::istreambuf_iterator<char>(in), {});
  ASSERT_GE(static_cast<int64_t>(text.size()), expected.length);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < expected.length; ++i) tokens.push_back(static_cast<unsigned char>(text[static_cast<size_t>(i)]));
  const auto cache = model.make_cache(expected.length, context);
  const ForwardResult result = model.forward(tokens, *cache, {.has_bits = true}, context);
  ASSERT_EQ(result.predictions, expected.length - 1);
  // The card rounds to five places.
  EXPECT_NEAR(result.bits / static_cast<double>(result.predictions), expected.bits_per_byte, dtype == Dtype::f32 ? 1e-4 : 3e-3);
  const float* logits = result.logits.view.data<float>();
  const int bytes[4] = {10, 32, 101, 116};
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(logits[bytes[i]], expected.logits[i], dtype == Dtype::f32 ? 5e-3 : .25) << "byte " << bytes[i];
  EXPECT_EQ(std::max_element(logits, logits + 256) - logits, expected.argmax);
  EXPECT_GE(result.total_ms, result.linear_ms + result.attention_ms + result.logits_ms);
}

}  // namespace tilewise
