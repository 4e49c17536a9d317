// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

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
    EXPECT_EQ(row.size(), 25u);
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

/// Every key of `want` is in `got`, with a value of the same type or null.
void expect_keys(const json& want, const json& got, const std::string& where) {
  if (want.is_array() && !want.empty() && got.is_array()) {
    ASSERT_FALSE(got.empty()) << where;
    expect_keys(want[0], got[0], where + "[0]");
  }
  if (!want.is_object()) {
    EXPECT_TRUE(want.is_null() || got.is_null() || (want.is_number() ? got.is_number() : want.type() == got.type()))
        << where << " is a " << got.type_name();
    return;
  }
  for (const auto& [key, value] : want.items()) {
    ASSERT_TRUE(got.contains(key)) << where << "." << key << " is gone: that raises the schema";
    if (key != "options") expect_keys(value, got.at(key), std::string(where).append(".").append(key));
  }
}

// A document of schema 1: what reads one today reads every later version's.
TEST(CompareJson, HasEveryKeyOfTheGoldenFile) {
  std::ifstream file("tests/study/golden_compare.json");
  ASSERT_TRUE(file.good());
  const json golden = json::parse(file), document = json::parse(to_json(app::synthetic_comparison("a")));
  EXPECT_EQ(document.at("schema"), golden.at("schema"));
  expect_keys(golden, document, "");
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
