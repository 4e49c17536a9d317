// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "tests/app/process.h"
#include "tests/study/tiny_model.h"

namespace tilewise::app {
namespace {

class Generate : public testing::Test {
 protected:
  Generate() {
    study::TinyModel().save(folder.path());
    std::string text;
    for (int i = 0; i < 300; ++i) text += static_cast<char>('a' + splitmix64(static_cast<uint64_t>(i)) % 26);
    TemporaryFolder::write(folder.file("text"), text);
    TemporaryFolder::write(folder.file("start"), text.substr(0, 200));
  }
  Ended run(std::vector<std::string> more) const {
    std::vector<std::string> arguments = {"generate", "--model", folder.path(), "--threads", "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_program(arguments);
  }
  std::string made(const std::vector<std::string>& more) const {
    const Ended ended = run(more);
    EXPECT_EQ(ended.code, 0) << ended.err;
    return ended.out;
  }
  void expect_refused(const std::vector<std::string>& more, int code, const char* part) const {
    const Ended ended = run(more);
    EXPECT_EQ(ended.code, code) << ended.err;
    EXPECT_TRUE(ended.has_one_error_line()) << ended.err;
    EXPECT_NE(ended.err.find(part), std::string::npos) << ended.err;
    EXPECT_EQ(ended.out, "");
  }

  TemporaryFolder folder;
};

TEST_F(Generate, WritesTheBytesThatItMakesAndTellsWhatTheyCost) {
  const Ended ended = run({"--text", folder.file("text"), "--max-tokens", "6"});
  ASSERT_EQ(ended.code, 0) << ended.err;
  EXPECT_EQ(ended.out.size(), 7u) << "six bytes and the end of a line";
  EXPECT_EQ(ended.err.rfind("prompt 1: 300 tokens in ", 0), 0u) << ended.err;
  EXPECT_NE(ended.err.find("density 1.000); 6 tokens at "), std::string::npos) << ended.err;
  EXPECT_EQ(std::count(ended.err.begin(), ended.err.end(), '\n'), 1);
  EXPECT_EQ(made({"--text", folder.file("text"), "--max-tokens", "6", "--chunk", "64"}), ended.out);
}

TEST_F(Generate, ReadsLessWhereItIsTold) {
  EXPECT_EQ(made({"--text", folder.file("text"), "--length", "200", "--max-tokens", "6"}),
            made({"--text", folder.file("start"), "--max-tokens", "6"}));
}

TEST_F(Generate, PromptsFollowOneAnotherBehindTheirAnswers) {
  const Ended two = run({"--text", folder.file("text"), "--prompt", "ab", "--prompt", "cd", "--max-tokens", "3"});
  ASSERT_EQ(two.code, 0) << two.err;
  ASSERT_EQ(two.out.size(), 8u);
  EXPECT_NE(two.err.find("prompt 2: 3 tokens in "), std::string::npos) << "the last byte of the answer before, and two: " << two.err;
  const std::string all = TemporaryFolder::read(folder.file("text")) + "ab" + two.out.substr(0, 3) + "cd";
  TemporaryFolder::write(folder.file("all"), all);
  EXPECT_EQ(made({"--text", folder.file("all"), "--max-tokens", "3"}), two.out.substr(4));
}

TEST_F(Generate, ReadsPromptsWithAMethodOrARecipe) {
  const Ended ended = run({"--text", folder.file("text"), "--method", "a_shape:init=16,local=32,tile=16", "--decode", "same", "--max-tokens", "3"});
  ASSERT_EQ(ended.code, 0) << ended.err;
  EXPECT_EQ(ended.err.find("density 1.000"), std::string::npos) << ended.err;
  TemporaryFolder::write(folder.file("recipe.json"),
                         R"({"schema": 1, "model": {"layers": 2, "heads_q": 4, "heads_kv": 2, "head_dim": 16},
                             "default": {"method": "a_shape", "options": {"init": 16, "local": 32, "tile": 16}}, "layers": []})");
  EXPECT_EQ(made({"--text", folder.file("text"), "--recipe", folder.file("recipe.json"), "--decode", "same", "--max-tokens", "3"}), ended.out);
}

TEST_F(Generate, TakesAndPrintsTokenIds) {
  const std::string text = TemporaryFolder::read(folder.file("text"));
  std::string ids(text.size() * 4, '\0');
  for (size_t i = 0; i < text.size(); ++i) ids[4 * i] = text[i];
  TemporaryFolder::write(folder.file("ids"), ids);
  EXPECT_EQ(made({"--tokens", folder.file("ids"), "--max-tokens", "4"}), made({"--text", folder.file("text"), "--max-tokens", "4"}));
  TemporaryFolder::write(folder.file("tokenizer.json"), "{}");  // now a token is no byte
  const std::string printed = made({"--tokens", folder.file("ids"), "--max-tokens", "4"});
  EXPECT_EQ(std::count(printed.begin(), printed.end(), '\n'), 4) << printed;
  EXPECT_EQ(printed.find_first_not_of("0123456789\n"), std::string::npos) << printed;
  expect_refused({"--text", folder.file("text")}, 1, "give ids with --tokens");
}

TEST_F(Generate, DrawsWithASeed) {
  const auto draw = [&](const char* seed) {
    return made({"--text", folder.file("text"), "--max-tokens", "12", "--temperature", "2", "--top-k", "100", "--top-p", ".95", "--seed", seed});
  };
  EXPECT_EQ(draw("1"), draw("1"));
  EXPECT_NE(draw("1"), draw("2"));
}

TEST_F(Generate, RefusesBadCalls) {
  const std::string text = folder.file("text");
  expect_refused({}, 2, "nothing to continue");
  expect_refused({"--prompt", ""}, 2, "nothing to continue");
  expect_refused({"--text", text, "--tokens", text}, 2, "give one kind");
  expect_refused({"--text", text, "--recipe", "r", "--method", "dense"}, 2, "give one");
  expect_refused({"--text", text, "--method", "dense,a_shape"}, 2, "--method takes one method");
  expect_refused({"--text", text, "--method", "nothing"}, 2, "nothing");
  expect_refused({"--text", text, "--decode", "a_shape:x=1"}, 2, "there is no option x");
  expect_refused({"--text", text, "--temperature", "nan"}, 2, "take numbers");
  expect_refused({"--text", text, "--dtype", "f16"}, 2, "f16");
  expect_refused({"--text", text, "--length", "301"}, 1, "more than the 300 tokens");
  expect_refused({"--text", folder.file("gone")}, 1, "gone");
  expect_refused({"--text", text, "--recipe", folder.file("gone")}, 1, "gone");
  expect_refused({"--text", text, "--max-tokens", "100000000"}, 1, "the model was made for");
  TemporaryFolder::write(folder.file("odd"), "12345");
  expect_refused({"--tokens", folder.file("odd")}, 1, "has 5 bytes");
}

}  // namespace
}  // namespace tilewise::app
