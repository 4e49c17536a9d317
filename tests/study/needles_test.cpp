// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/needles.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "tests/base/temporary_folder.h"
#include "tilewise/base/error.h"

namespace tilewise {
namespace {

/// A folder with one document, and a needles.json that holds `prompts`.
class Folder {
 public:
  explicit Folder(const std::string& json) {
    std::filesystem::create_directory(folder_.file("documents"));
    TemporaryFolder::write(folder_.file("documents/a.txt"), "0123456789");
    TemporaryFolder::write(folder_.file("needles.json"), json);
  }
  std::string message(int64_t length, Error::Kind kind) const {
    try {
      load_needles(folder_.path(), length);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      return error.what();
    }
    ADD_FAILURE() << "no error";
    return "";
  }
  const std::string& path() const { return folder_.path(); }

 private:
  TemporaryFolder folder_;
};

std::string prompts(const std::string& offset, const std::string& haystack, const std::string& insert, const std::string& document = "a.txt",
                    const std::string& length = "9") {
  return R"({"prompts": [{"length": )" + length + R"(, "depth": 0.5, "document": ")" + document + R"(", "offset": )" + offset + R"(, "haystack": )" +
         haystack + R"(, "insert": )" + insert + R"(, "note": "[n]", "ask": "?!", "answer": "77"}]})";
}

TEST(Needles, CutsPromptsAsTheFormatSays) {
  const Folder folder(prompts("2", "4", "1"));
  const auto needles = load_needles(folder.path(), 9);
  ASSERT_EQ(needles.size(), 1u);
  EXPECT_EQ(needles[0].prompt, "2[n]345?!");
  EXPECT_EQ(needles[0].answer, "77");
  EXPECT_EQ(needles[0].depth, .5);
}

TEST(Needles, RefusesDamagedFiles) {
  EXPECT_NE(Folder(prompts("2", "4", "1")).message(8, Error::Kind::value).find("lengths are 9"), std::string::npos);
  EXPECT_NE(Folder(R"({"prompts": []})").message(8, Error::Kind::value).find("lengths are none"), std::string::npos);
  Folder("not json").message(9, Error::Kind::io);
  Folder("{}").message(9, Error::Kind::io);
  Folder(R"({"prompts": [{"length": "9"}]})").message(9, Error::Kind::io);
  EXPECT_NE(Folder(prompts("8", "4", "1")).message(9, Error::Kind::io).find("which has 10 bytes"), std::string::npos);
  Folder(prompts("-1", "4", "1")).message(9, Error::Kind::io);
  Folder(prompts("2", "9223372036854775807", "1")).message(9, Error::Kind::io);
  Folder(prompts("2", "4", "5")).message(9, Error::Kind::io);
  EXPECT_NE(Folder(prompts("2", "5", "1")).message(9, Error::Kind::io).find("comes out as 10 bytes"), std::string::npos);
  EXPECT_NE(Folder(prompts("2", "4", "1", "../a.txt")).message(9, Error::Kind::io).find("not the name of a file"), std::string::npos);
  EXPECT_NE(Folder(prompts("2", "4", "1", "b.txt")).message(9, Error::Kind::io).find("b.txt"), std::string::npos);
  TemporaryFolder empty;
  EXPECT_THROW(load_needles(empty.path(), 9), Error);
}

TEST(Needles, TheShippedOnesAreWhole) {
  EXPECT_EQ(load_needles("models/reference-lm", 4096).size(), 10u);
  EXPECT_EQ(load_needles("models/reference-lm", 8192).size(), 40u);
  EXPECT_EQ(load_needles("models/reference-lm", 16384).size(), 10u);
  for (const NeedlePrompt& needle : load_needles("models/reference-lm", 4096)) EXPECT_EQ(needle.answer.size(), 7u);
}

}  // namespace
}  // namespace tilewise
