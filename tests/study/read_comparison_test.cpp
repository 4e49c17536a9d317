// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "tests/app/synthetic.h"
#include "tests/base/temporary_folder.h"
#include "tilewise/base/error.h"

namespace tilewise {
namespace {

using nlohmann::json;

/// A model behind a tokenizer, and one that predicts no tokens.
Comparison synthetic_tokens(InputFigures::Reads reads) {
  Comparison comparison = app::synthetic_comparison("a");
  comparison.input.reads = reads;
  comparison.input.mask = "windows";
  comparison.input.dtype = "bf16";
  comparison.dense.peak_bytes = 0;
  comparison.dense.bits_per_token = 3.25;
  const bool has_bytes = reads == InputFigures::Reads::text;
  if (!has_bytes) comparison.dense.bits_per_byte = kNoFigure;
  for (MethodFigures& row : comparison.methods) {
    row.bits_per_token = 3.5;
    row.peak_bytes = 0;
    if (!has_bytes) row.bits_per_byte = kNoFigure;
    for (TextFigures& text : row.texts) {
      text.bits_per_token = 3.5;
      text.dense_bits_per_token = 3.25;
      if (!has_bytes) text.bits_per_byte = text.dense_bits_per_byte = kNoFigure;
    }
  }
  return comparison;
}

TEST(ReadComparison, GivesBackWhatWasWritten) {
  using Reads = InputFigures::Reads;
  for (const Comparison& comparison :
       {Comparison(), app::synthetic_comparison("a"), app::synthetic_comparison(app::kHostile), app::synthetic_tensors(app::kHostile),
        synthetic_tokens(Reads::text), synthetic_tokens(Reads::tokens), synthetic_tokens(Reads::other)}) {
    const std::string text = to_json(comparison);
    const Comparison back = parse_comparison(text, "out.json");
    EXPECT_EQ(to_json(back), text);
    EXPECT_EQ(back.input.reads, comparison.input.reads);
    EXPECT_EQ(verdict_of(back).best, verdict_of(comparison).best);
    ASSERT_EQ(back.methods.size(), comparison.methods.size());
    for (size_t i = 0; i < back.methods.size(); ++i) {
      EXPECT_EQ(back.methods[i].options, comparison.methods[i].options);
      for (size_t h = 0; h < back.methods[i].heads.size(); ++h) EXPECT_EQ(back.methods[i].heads[h].map.kept, comparison.methods[i].heads[h].map.kept);
    }
  }
}

TEST(ReadComparison, BitsAreOfWhatTheInputIs) {
  const Comparison tokens = synthetic_tokens(InputFigures::Reads::tokens), other = synthetic_tokens(InputFigures::Reads::other);
  EXPECT_NE(verdict_of(tokens).text.find("bits per token"), std::string::npos) << verdict_of(tokens).text;
  EXPECT_NE(verdict_of(other).text.find("output error"), std::string::npos) << verdict_of(other).text;
  const json document = json::parse(to_json(other));
  EXPECT_TRUE(document.at("input").at("reads").is_null());
  EXPECT_TRUE(document.at("verdict").at("max_error").is_number());
  EXPECT_TRUE(document.at("dense").at("peak_bytes").is_null());
  EXPECT_EQ(json::parse(to_json(tokens)).at("input").at("reads"), "tokens");
}

TEST(ReadComparison, TakesTheFirstDocumentsOfTheSchemaAndLeavesNewKeysAlone) {
  const Comparison golden = read_comparison("tests/study/golden_compare.json");
  EXPECT_EQ(golden.input.length_k, golden.input.length) << "came later";
  EXPECT_EQ(golden.input.needle_lengths, std::vector<int64_t>{4096});
  EXPECT_EQ(golden.input.reads, InputFigures::Reads::bytes);
  json document = json::parse(to_json(golden));
  document["of_a_later_version"] = {1, 2};
  document["methods"][0]["colour"] = "red";
  document["methods"][0]["heads"][0]["smell"] = nullptr;
  EXPECT_EQ(to_json(parse_comparison(document.dump(), "new.json")), to_json(golden));
}

TEST(ReadComparison, NamesWhatIsMissingOrWrong) {
  struct Fault {
    std::function<void(json&)> make;
    const char* text;
  };
  const std::vector<Fault> faults = {
      {[](json& d) { d = json::array(); }, "takes an object"},
      {[](json& d) { d["schema"] = 2; }, "schema 2 is not known; this version reads 1"},
      {[](json& d) { d.erase("schema"); }, "schema is missing"},
      {[](json& d) { d.erase("version"); }, "version is missing"},
      {[](json& d) { d.erase("input"); }, "input is missing"},
      {[](json& d) { d.erase("methods"); }, "methods is missing"},
      {[](json& d) { d["methods"] = 3; }, "methods is 3; takes a list"},
      {[](json& d) { d["dense"].erase("attend_ms"); }, "dense: attend_ms is missing"},
      {[](json& d) { d["dense"]["attend_ms"] = "8"; }, "dense: attend_ms is \"8\"; takes a number or null"},
      {[](json& d) { d["dense"]["attend_ms"] = -1; }, "dense: attend_ms is -1; takes 0 to 1e+12"},
      {[](json& d) { d["dense"]["peak_bytes"] = -5; }, "dense: peak_bytes is -5"},
      {[](json& d) { d["input"]["length"] = 1.5; }, "input: length is 1.5; takes a whole number"},
      {[](json& d) { d["input"]["reads"] = "words"; }, "input: reads is \"words\"; takes bytes, text, tokens or null"},
      {[](json& d) { d["methods"][1].erase("label"); }, "methods[1]: label is missing"},
      {[](json& d) { d["methods"][1]["options"]["stride"] = nullptr; }, "methods[1]: option stride is null"},
      {[](json& d) { d["methods"][1]["density"] = 1e9; }, "methods[1]: density"},
      {[](json& d) { d["methods"][2]["heads"][3]["map"]["kept"] = "AAAA"; }, "methods[2]: heads[3]: map: kept is not 2080 bytes in base64"},
      {[](json& d) { d["methods"][2]["heads"][3]["map"]["kept"].get_ref<std::string&>()[7] = '!'; }, "map: kept is not 2080 bytes in base64"},
      {[](json& d) { d.erase("map"); }, "the document has no map that says its size"},
      {[](json& d) { d["map"]["side_k"] = 63; }, "map: is a triangle of 64 by 63 cells"},
      {[](json& d) { d["map"]["side_q"] = 0; }, "map: side_q is 0; takes 1 to 4096"},
      {[](json& d) { d["methods"][0]["worst_tiles"][0]["keys"] = {5}; }, "worst_tiles[0]: keys is [5]; takes two numbers"},
      {[](json& d) { d["methods"][0]["worst_tiles"][0]["keys"] = {5, 4}; }, "worst_tiles[0]: keys is 4; takes 5 to"},
      {[](json& d) { d["methods"][0]["needle"]["correct"] = 11; }, "needle: correct is 11; takes 0 to 10"},
      {[](json& d) { d["tune"]["curves"][0]["chosen"] = 4; }, "curves[0]: chosen is 4; takes 0 to 3"},
      {[](json& d) { d["tune"]["curves"][0]["points"][0]["outcome"] = "good"; }, "outcome is \"good\""},
      {[](json& d) { d["methods"][6]["notes"][0] = 3; }, "notes[0] is 3; takes a string"},
  };
  const json good = json::parse(to_json(app::synthetic_comparison("a")));
  for (const Fault& fault : faults) {
    json document = good;
    fault.make(document);
    try {
      parse_comparison(document.dump(), "some.json");
      ADD_FAILURE() << "was taken: " << fault.text;
    } catch (const Error& error) {
      const std::string text = error.what();
      EXPECT_EQ(text.find("some.json"), 0u) << text;
      EXPECT_NE(text.find(fault.text), std::string::npos) << text << "\nwanted: " << fault.text;
      EXPECT_LT(text.size(), 400u) << text;
    }
  }
  for (const std::string& text :
       {std::string(), std::string("{\"schema\": 1, \"schema\": 1}"), good.dump().substr(0, 2000), std::string(1 << 20, '[')})
    EXPECT_THROW(parse_comparison(text, "some.json"), Error);
  EXPECT_THROW(read_comparison("nothing.json"), Error);
}

}  // namespace
}  // namespace tilewise
