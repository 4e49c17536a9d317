// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>
#include <regex>

#include "tests/app/process.h"
#include "tests/app/synthetic.h"
#include "tests/repository/tree.h"
#include "tests/study/tiny_model.h"
#include "tilewise/base/hash.h"
#include "tilewise/infer/recipe.h"

// Shell and JSON blocks of the documents are run, or read by what reads them. Those of C++ are tests/repository's, those of Python tests/python/test_docs.py's.
namespace tilewise::app {
namespace {

using nlohmann::json;
using tests::repository::Block;

std::vector<Block> blocks_in(const std::string& language) {
  std::vector<Block> blocks = tests::repository::blocks_of_documents();
  std::erase_if(blocks, [&](const Block& block) { return block.language != language; });
  return blocks;
}

/// A tiny model and texts under the names that stand in the documents, so that their commands run in this folder in seconds.
class DocumentedCommands : public ::testing::Test {
 protected:
  DocumentedCommands() {
    std::filesystem::create_directory(folder_.file("DIR"));
    study::TinyModel().save(folder_.file("DIR"));
    for (const char* name : {"FILE", "OTHER"}) {
      std::string text;
      for (uint64_t i = 0; i < 700; ++i) text += static_cast<char>('a' + splitmix64(i + (name[0] == 'F' ? 0 : 9000)) % 9);
      TemporaryFolder::write(folder_.file(name), text);
    }
    // One hidden note, of the length that every command is given.
    std::filesystem::create_directory(folder_.file("DIR/documents"));
    TemporaryFolder::write(folder_.file("DIR/documents/haystack.txt"), std::string(400, 'a'));
    TemporaryFolder::write(folder_.file("DIR/needles.json"),
                           R"({"prompts": [{"length": 256, "depth": 0.5, "document": "haystack.txt", "offset": 0, "haystack": 240, "insert": 100, )"
                           R"("note": " note 7 ", "ask": "recall: ", "answer": "7"}]})");
    Tensor tensor(host_memory(), Dtype::f32, {1, 2, 300, 32});
    for (int64_t i = 0; i < tensor.view.numel(); ++i)
      tensor.view.data<float>()[i] = static_cast<float>(splitmix64(static_cast<uint64_t>(i)) % 1000) / 250 - 2;
    const NamedTensor tensors[] = {{"q", tensor.view}, {"k", tensor.view}, {"v", tensor.view}};
    write_safetensors(folder_.file("tensors.safetensors"), tensors, {});
  }
  Ended run(const std::string& line) const {
    std::string command = std::regex_replace(line, std::regex("^(build/cpu/app/)?tilewise "), std::string("'") + TILEWISE_PROGRAM + "' ");
    command = std::regex_replace(command, std::regex("(--length|--needle) [0-9]+"), "$1 256");
    if (command.find("--model DIR") != std::string::npos && command.find("--length") == std::string::npos &&
        command.find(" generate ") == std::string::npos)
      command = std::regex_replace(command, std::regex("--model DIR"), "--model DIR --length 256");
    return Process({"/bin/sh", "-c", "cd '" + folder_.path() + "' && " + command}).wait();
  }
  TemporaryFolder folder_;
};

TEST_F(DocumentedCommands, ShellBlocksRun) {
  std::string presets = tests::repository::read_text("CMakePresets.json");
  int ran = 0;
  for (const Block& block : blocks_in("sh")) {
    for (const std::string& whole : tests::repository::lines_of(block.text)) {
      const std::string line = std::regex_replace(whole, std::regex(" +#.*$"), "");
      SCOPED_TRACE(block.where + ": " + line);
      std::smatch match;
      if (std::regex_search(line, match, std::regex("^(build/cpu/app/)?tilewise "))) {
        const Ended ended = run(line);
        EXPECT_EQ(ended.code, 0) << ended.err;
        ++ran;
      } else if (std::regex_match(line, match, std::regex("make ([a-z-]+)"))) {
        EXPECT_EQ(Process({"make", "-n", match[1]}).wait().code, 0);
      } else if (std::regex_match(line, match, std::regex("cmake --preset ([a-z]+) && cmake --build build/([a-z]+)"))) {
        EXPECT_EQ(match[1], match[2]);
        EXPECT_NE(presets.find("\"name\": \"" + match[1].str() + "\""), std::string::npos);
      } else {
        EXPECT_TRUE(line.starts_with("pip install ")) << "neither a command of ours nor one that only a network can run";
      }
    }
  }
  EXPECT_GT(ran, 6);
}

/// Every key of `shown` is in `real`, at the same place; of lists the first entries are compared, and what is null in one may be anything in the other.
void expect_keys(const json& shown, const json& real, const std::string& at) {
  if (shown.is_null() || real.is_null() || at.ends_with("/options")) return;
  EXPECT_EQ(shown.type_name(), std::string(real.type_name())) << at;
  if (shown.is_object() && real.is_object()) {
    for (const auto& [key, value] : shown.items()) {
      std::string place = at;
      place.append("/").append(key);
      EXPECT_TRUE(real.contains(key)) << place;
      if (real.contains(key)) expect_keys(value, real.at(key), place);
    }
    for (const auto& [key, value] : real.items()) EXPECT_TRUE(shown.contains(key)) << at << "/" << key << " is not shown";
  } else if (shown.is_array() && !shown.empty() && real.is_array() && !real.empty()) {
    expect_keys(shown[0], real[0], at + "/0");
  }
}

TEST(Documents, JsonBlocksAreWhatIsWrittenAndRead) {
  const TemporaryFolder folder;
  int seen = 0;
  for (const Block& block : blocks_in("json")) {
    SCOPED_TRACE(block.where);
    if (block.where.starts_with("docs/formats/recipe.md")) {
      TemporaryFolder::write(folder.file("recipe.json"), block.text);
      EXPECT_EQ(read_recipe(folder.file("recipe.json")).otherwise.method, json::parse(block.text).at("default").at("method").get<std::string>());
    } else {
      ASSERT_TRUE(block.where.starts_with("docs/formats/compare.md")) << "no reader is named here for this block";
      expect_keys(json::parse(block.text), json::parse(to_json(synthetic_comparison("a"))), "");
    }
    ++seen;
  }
  EXPECT_EQ(seen, 2);
}

}  // namespace
}  // namespace tilewise::app
