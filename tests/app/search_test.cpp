// SPDX-License-Identifier: Apache-2.0
#include "tests/app/process.h"
#include "tests/study/tiny_model.h"
#include "tilewise/infer/recipe.h"

namespace tilewise::app {
namespace {

class SearchCommand : public ::testing::Test {
 protected:
  SearchCommand() {
    study::TinyModel().save(folder_.path());
    std::string text;
    for (int i = 0; i < 400; ++i) text += static_cast<char>('a' + splitmix64(static_cast<uint64_t>(i)) % 9);
    TemporaryFolder::write(folder_.file("text"), text);
  }
  Ended search(const std::string& method, std::vector<std::string> more) const {
    std::vector<std::string> arguments = {
        "search", method, "--model", folder_.path(), "--text", folder_.file("text"), "--out", folder_.file("recipe.json")};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_program(arguments);
  }
  TemporaryFolder folder_;
};

TEST_F(SearchCommand, WritesRecipesThatCompareRuns) {
  const std::vector<std::pair<std::string, std::vector<std::string>>> calls = {
      {"minference", {}},
      {"minference", {"--objective", "mass", "--vertical-slash"}},
      {"minference", {"--candidates", "paper", "--fit-cost", "--threads", "1"}},
      {"xattention", {"--tile", "32", "--stride", "8", "--coverage", ".8"}},
  };
  for (const auto& [method, more] : calls) {
    std::vector<std::string> arguments = more;
    arguments.insert(arguments.end(), {"--length", "300"});
    const Ended ended = search(method, arguments);
    ASSERT_EQ(ended.code, 0) << ended.err;
    EXPECT_EQ(ended.err, "") << "quiet when piped";
    EXPECT_NE(ended.out.find("recipe: " + folder_.file("recipe.json")), std::string::npos) << ended.out;
    const Recipe recipe = read_recipe(folder_.file("recipe.json"));
    EXPECT_EQ(recipe.layers.size(), static_cast<size_t>(study::TinyModel::kLayers));
    EXPECT_EQ(recipe.otherwise.method, method);
    const Ended compared = run_program(
        {"compare", "--model", folder_.path(), "--text", folder_.file("text"), "--length", "300", "--recipe", folder_.file("recipe.json")});
    EXPECT_EQ(compared.code, 0) << compared.err;
    EXPECT_EQ(compared.out.find("refused"), std::string::npos) << compared.out;
  }
}

TEST_F(SearchCommand, RefusesWrongCallsAndWritesNothing) {
  const int before = folder_.count();
  EXPECT_EQ(search("mean_pool", {}).code, 2);
  EXPECT_EQ(search("minference", {"--objective", "beauty"}).code, 2);
  EXPECT_EQ(search("minference", {"--text", folder_.file("text"), folder_.file("text")}).code, 2) << "one text";
  EXPECT_EQ(search("minference", {"--length", "401"}).code, 1) << "a text that is too short";
  EXPECT_EQ(search("xattention", {"--length", "300", "--tile", "30", "--stride", "8"}).code, 1) << "a tile that is no multiple of the stride";
  EXPECT_EQ(run_program({"search", "minference", "--model", folder_.file("none"), "--text", folder_.file("text"), "--length", "300", "--out",
                         folder_.file("r")})
                .code,
            1);
  EXPECT_EQ(run_program({"search", "minference", "--model", folder_.path(), "--text", folder_.file("text"), "--length", "300", "--out",
                         folder_.file("none/r")})
                .code,
            1);
  EXPECT_EQ(folder_.count(), before);
}

}  // namespace
}  // namespace tilewise::app
