// SPDX-License-Identifier: Apache-2.0
// What every file of the repository must have, and must not.
#include <gtest/gtest.h>

#include <filesystem>
#include <regex>
#include <set>

#include "tests/repository/tree.h"

namespace tilewise::tests::repository {
namespace {

// Files that cannot hold a comment, or whose licence is not ours: NOTICE speaks for them.
bool is_exempt(const std::string& path) {
  for (const char* name : {"LICENSE", "NOTICE"})
    if (path == name) return true;
  for (const char* end : {".json", ".safetensors", ".png"})
    if (ends_with(path, end)) return true;
  return starts_with(path, "models/reference-lm/documents/");
}

TEST(Files, CarryTheirLicence) {
  const std::vector<std::string> files = tracked_files();
  EXPECT_GT(files.size(), 50u);
  for (const std::string& path : files) {
    if (is_exempt(path)) continue;
    const std::vector<std::string> lines = lines_of(read_text(path));
    const bool has_preamble = !lines.empty() && (starts_with(lines[0], "#!") || starts_with(lines[0], "<!doctype"));  // these must come first
    const size_t line = has_preamble ? 1 : 0;
    EXPECT_TRUE(lines.size() > line && lines[line].find("SPDX-License-Identifier: Apache-2.0") != std::string::npos)
        << path << ": its first line must name the licence (SPDX-License-Identifier: Apache-2.0), in a comment";
  }
}

TEST(Files, ExemptTextsAreNamedInNotice) {
  const std::string notice = read_text("NOTICE");
  for (const std::string& path : tracked_files()) {
    if (!starts_with(path, "models/") || ends_with(path, ".md")) continue;
    EXPECT_NE(notice.find(std::filesystem::path(path).filename().string()), std::string::npos) << path << ": say in NOTICE whose it is";
  }
}

TEST(Files, HaveUnixLineEndsAndALastNewline) {
  for (const std::string& path : tracked_files()) {
    if (ends_with(path, ".safetensors") || ends_with(path, ".png") || starts_with(path, "models/")) continue;
    const std::string text = read_text(path);
    if (text.empty()) continue;
    EXPECT_EQ(text.find('\r'), std::string::npos) << path;
    EXPECT_EQ(text.back(), '\n') << path << ": no newline at the end";
  }
}

// A path of one person's machine helps nobody else.
TEST(Files, NameNoHomeFolder) {
  const std::regex home("/(home|Users)/[a-z]+|/root/[a-z.]");
  for (const std::string& path : tracked_files()) {
    if (is_exempt(path) && !ends_with(path, ".json")) continue;
    const std::vector<std::string> lines = lines_of(read_text(path));
    for (size_t i = 0; i < lines.size(); ++i) {
      if (lines[i].find("const std::regex home(") != std::string::npos) continue;  // the line above
      EXPECT_FALSE(std::regex_search(lines[i], home)) << path << ":" << i + 1 << ": " << lines[i];
    }
  }
}

TEST(Documents, LinksPointToFilesThatExist) {
  const std::regex link("\\]\\(([^)#: ]+)(#[^)]*)?\\)");
  int checked = 0;
  for (const std::string& path : tracked_files()) {
    if (!ends_with(path, ".md")) continue;
    bool is_code = false;
    for (const std::string& line : lines_of(read_text(path))) {
      if (starts_with(line, "```")) is_code = !is_code;
      if (is_code) continue;
      for (auto match = std::sregex_iterator(line.begin(), line.end(), link); match != std::sregex_iterator(); ++match) {
        const std::filesystem::path target = std::filesystem::path(path).parent_path() / (*match)[1].str();
        EXPECT_TRUE(std::filesystem::exists(target)) << path << ": link to " << (*match)[1];
        ++checked;
      }
    }
  }
  EXPECT_GT(checked, 5);
}

TEST(Documents, EveryBlockSaysWhatItIs) {
  for (const Block& block : blocks_of_documents()) {
    // text: formulas and folders, which nobody runs.
    static const std::set<std::string> known = {"cpp", "json", "python", "sh", "text"};
    EXPECT_TRUE(known.count(block.language)) << block.where << ": ```" << block.language;
  }
}

TEST(Documents, CppBlocksAreExamples) {
  std::set<std::string> examples;  // programs that are compiled and run
  for (const std::string& path : tracked_files()) {
    if (!starts_with(path, "examples/") || !ends_with(path, ".cpp")) continue;
    const std::string text = read_text(path);
    examples.insert(text.substr(text.find('\n') + 1));  // without the licence line
  }
  bool is_in_readme = false;
  for (const Block& block : blocks_of_documents()) {
    if (block.language != "cpp") continue;
    EXPECT_TRUE(examples.count(block.text)) << block.where << " is no program of examples/, word for word";
    is_in_readme |= starts_with(block.where, "README.md:");
  }
  EXPECT_TRUE(is_in_readme) << "README.md shows no program";
}

TEST(Documents, VersionsAgree) {
  const std::string build = read_text("CMakeLists.txt"), citation = read_text("CITATION.cff"), changes = read_text("CHANGELOG.md");
  std::smatch match;
  ASSERT_TRUE(std::regex_search(build, match, std::regex("project\\(tilewise VERSION ([0-9]+\\.[0-9]+\\.[0-9]+)")));
  const std::string version = match[1];
  EXPECT_NE(citation.find("version: " + version + "\n"), std::string::npos) << "CITATION.cff must name version " << version;
  EXPECT_NE(changes.find("## " + version), std::string::npos) << "CHANGELOG.md must have a section for version " << version;
}

struct Golden {
  const char* path;
  uint64_t hash;  // FNV-1a of its bytes
};
// Files of formats that later versions must read, as the version that wrote them left them.
constexpr Golden kGolden[] = {
    {"tests/infer/golden_recipe.json", 0xb21fedd172135f1aULL},
    {"tests/infer/golden_recipe_searched.json", 0x70a73b0e47724af6ULL},
    {"tests/plan/golden_plan.safetensors", 0x9578eb43f8632aa4ULL},
    {"tests/plan/golden_plan_by_key.safetensors", 0x8fe9da015490a8f1ULL},
    {"tests/plan/golden_plan_of_batches.safetensors", 0x7f10b562987b8dd2ULL},
    {"tests/plan/golden_plan_of_grids.safetensors", 0x5930bf354079b7f5ULL},
    {"tests/study/golden_compare.json", 0x105cc3c4f5acca57ULL},
    {"tests/study/golden_qkv.safetensors", 0x87d9d1c8fceebda4ULL},
};

TEST(Files, GoldenFilesStayAsTheyWereWritten) {
  std::set<std::string> known;
  for (const Golden& golden : kGolden) {
    uint64_t hash = 0xcbf29ce484222325ULL;
    for (const char byte : read_text(golden.path)) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3ULL;
    EXPECT_EQ(hash, golden.hash) << golden.path
                                 << ": a golden file stands for files that users have; a new form of the format is a new file beside it";
    known.insert(golden.path);
  }
  for (const std::string& path : tracked_files()) {
    if (path.find("/golden") == std::string::npos) continue;
    EXPECT_EQ(known.count(path), 1U) << path << ": list it here with its hash, and test that it is read";
  }
}

}  // namespace
}  // namespace tilewise::tests::repository
