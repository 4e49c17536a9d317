// SPDX-License-Identifier: Apache-2.0
// Damaged config.json, recipe.json and documents of compare --json: refused with the path, or read as something that holds together.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/base/temporary_folder.h"
#include "tests/robustness/mutation.h"
#include "tilewise/base/file.h"
#include "tilewise/infer/config.h"
#include "tilewise/infer/recipe.h"
#include "tilewise/study/comparison.h"

namespace tilewise::testing {
namespace {

TEST(DamagedFiles, ConfigsAreRefusedOrHoldTogether) {
  const std::string good = read_file("models/reference-lm/config.json", 1 << 20);
  const TemporaryFolder folder;
  for (int i = 0; i < mutations(1000); ++i) {
    std::mt19937_64 rng(static_cast<uint64_t>(i));
    SCOPED_TRACE("seed " + std::to_string(i));
    TemporaryFolder::write(folder.file("config.json"), mutated(good, rng));
    try {
      const ModelConfig config = infer::read_config(folder.path());
      EXPECT_TRUE(config.num_layers >= 1 && config.hidden_size >= 1 && config.vocab_size >= 1 && config.head_dim >= 1);
      EXPECT_TRUE(config.heads_kv >= 1 && config.heads_q % config.heads_kv == 0);
    } catch (const Error& error) {
      EXPECT_TRUE(error.kind() == Error::Kind::io || error.kind() == Error::Kind::unsupported) << error.what();
      EXPECT_NE(std::string(error.what()).find("config.json"), std::string::npos) << error.what();
    }
  }
}

TEST(DamagedFiles, RecipesAreRefusedOrComeBack) {
  const std::string good = read_file("tests/infer/golden_recipe.json", 1 << 20);
  const TemporaryFolder folder;
  const std::string path = folder.file("recipe.json");
  for (int i = 0; i < mutations(1000); ++i) {
    std::mt19937_64 rng(static_cast<uint64_t>(i) + 500000);
    SCOPED_TRACE("seed " + std::to_string(i));
    TemporaryFolder::write(path, mutated(good, rng));
    try {
      const Recipe recipe = read_recipe(path);
      EXPECT_EQ(parse_recipe(format_recipe(recipe), path), recipe);
    } catch (const Error& error) {
      EXPECT_TRUE(error.kind() == Error::Kind::io || error.kind() == Error::Kind::value) << error.what();
      EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
    }
  }
}

TEST(DamagedFiles, ComparisonsAreRefusedOrComeBack) {
  const std::string good = read_file("tests/study/golden_compare.json", 1 << 20);
  const TemporaryFolder folder;
  const std::string path = folder.file("out.json");
  for (int i = 0; i < mutations(1000); ++i) {
    std::mt19937_64 rng(static_cast<uint64_t>(i) + 900000);
    SCOPED_TRACE("seed " + std::to_string(i));
    TemporaryFolder::write(path, mutated(good, rng));
    try {
      const std::string text = to_json(read_comparison(path));
      EXPECT_EQ(to_json(parse_comparison(text, path)), text);
    } catch (const Error& error) {
      EXPECT_TRUE(error.kind() == Error::Kind::io || error.kind() == Error::Kind::value) << error.what();
      EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace tilewise::testing
