// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/app/synthetic.h"

namespace tilewise {
namespace {

using nlohmann::json;

TEST(CompareJson, HasEveryKeyOfTheSchema) {
  const Comparison comparison = app::synthetic_comparison("a");
  const json document = json::parse(to_json(comparison));
  EXPECT_EQ(document.at("schema"), 1);
  for (const char* key : {"version", "commit", "device", "threads", "created", "command"}) EXPECT_TRUE(document.contains(key)) << key;
  for (const char* key : {"model", "texts", "length", "needle_length", "num_layers", "heads_q", "heads_kv", "head_dim"}) {
    EXPECT_TRUE(document.at("input").contains(key)) << key;
  }
  for (const char* key : {"attend_ms", "model_ms", "bits_per_byte", "needle"}) EXPECT_FALSE(document.at("dense").at(key).is_null()) << key;
  ASSERT_EQ(document.at("methods").size(), comparison.methods.size());
  for (const json& row : document.at("methods")) {
    EXPECT_EQ(row.size(), 23u);
    for (const char* key : {"density", "recall", "output_error", "bits_per_byte", "plan_ms", "attend_ms", "total_ms", "model_ms", "speedup",
                            "peak_bytes", "needle", "backend"}) {
      EXPECT_EQ(row.at(key).is_null(), !row.at("refused").is_null()) << key;
    }
  }
  const json& first = document.at("methods")[0];
  EXPECT_EQ(first.at("options").at("stride"), 16);
  EXPECT_EQ(first.at("options").at("threshold"), .97);
  EXPECT_EQ(first.at("options").at("is_fast"), true);
  EXPECT_EQ(first.at("options").at("rule"), "sum");
  EXPECT_EQ(first.at("heads").size(), 48u);
  EXPECT_EQ(first.at("heads")[47].at("layer"), 7);
  EXPECT_EQ(first.at("needle").at("cells").size(), 5u);
  EXPECT_EQ(document.at("verdict").at("best"), 0);
}

TEST(CompareJson, WritesNullForWhatIsMissingAndSurvivesAnyPath) {
  Comparison comparison = app::synthetic_comparison(app::kHostile);
  comparison.input.needle_lengths.clear();
  comparison.dense.needle.reset();
  comparison.methods[0].recall = INFINITY;
  const json document = json::parse(to_json(comparison));
  EXPECT_TRUE(document.at("input").at("needle_length").is_null());
  EXPECT_TRUE(document.at("dense").at("needle").is_null());
  EXPECT_TRUE(document.at("methods")[0].at("recall").is_null());
  EXPECT_EQ(document.at("methods")[0].at("refused"), nullptr);
  const std::string model = document.at("input").at("model").get<std::string>();
  EXPECT_NE(model.find("</script>"), std::string::npos);
  EXPECT_NE(model.find("\xef\xbf\xbd"), std::string::npos);  // \xff is not UTF-8
}

}  // namespace
}  // namespace tilewise
