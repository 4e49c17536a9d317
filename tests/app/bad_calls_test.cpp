// SPDX-License-Identifier: Apache-2.0
#include <sys/stat.h>

#include <filesystem>
#include <functional>

#include "tests/app/process.h"
#include "tests/study/tiny_model.h"
#include "tilewise/machine/device.h"

namespace tilewise::app {
namespace {

class BadCalls : public ::testing::Test {
 protected:
  BadCalls() {
    study::TinyModel().save(folder_.path());
    TemporaryFolder::write(folder_.file("text"), std::string(300, 'a'));
    TemporaryFolder::write(folder_.file("empty"), "");
    base_ = {"compare", "--model", folder_.path(), "--text", folder_.file("text"), "--length", "64"};
  }
  std::vector<std::string> compare(const std::vector<std::string>& more) const {
    std::vector<std::string> all = base_;
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  /// One error line that holds `part`, this exit code, nothing on standard output, and no file that was not there.
  void refuses(const std::vector<std::string>& arguments, int code, const std::string& part,
               const std::vector<std::pair<std::string, std::string>>& environment = {}) {
    std::string call;
    for (const std::string& argument : arguments) call += argument + " ";
    SCOPED_TRACE(call);
    const int before = folder_.count();
    const Ended ended = run_program(arguments, environment);
    EXPECT_EQ(ended.code, code);
    EXPECT_TRUE(ended.has_one_error_line()) << ended.err;
    EXPECT_NE(ended.err.find(part), std::string::npos) << ended.err;
    EXPECT_EQ(ended.out, "");
    EXPECT_EQ(folder_.count(), before);
  }

  TemporaryFolder folder_;
  std::vector<std::string> base_;
};

TEST_F(BadCalls, UsageExitsWithTwo) {
  refuses({}, 2, "subcommand is required");
  refuses({"nothing"}, 2, "");
  refuses({"--nothing"}, 2, "");
  refuses({"compare"}, 2, "--model");
  refuses({"compare", "--text", folder_.file("text")}, 2, "--model");
  refuses({"compare", "--qkv", folder_.file("text"), "--model", folder_.path()}, 2, "--model goes with a model");
  refuses({"compare", "--qkv", folder_.file("text"), "--text", folder_.file("text")}, 2, "--text goes with a model");
  refuses({"compare", "--qkv", folder_.file("text"), "--needle", "64"}, 2, "--needle goes with a model");
  refuses({"compare", "--qkv", folder_.file("text"), "--recipe", folder_.file("text")}, 2, "--recipe goes with a model");
  refuses({"compare", "--qkv", folder_.file("text"), "--mask", "other"}, 2, "--mask");
  refuses(compare({"--mask", "causal"}), 2, "--mask is for --qkv");
  refuses(compare({"--tune", "--density", ".1"}), 2, "--tune");
  refuses({"compare", "--qkv", folder_.file("text"), "--length", "64"}, 2, "--length goes with a model");
  refuses({"compare", "--qkv", folder_.file("text"), "--max-bits", ".1"}, 2, "--max-bits goes with a model");
  refuses({"compare", "--qkv", folder_.file("text"), "--json", folder_.path() + "/./text"}, 2, "would write over a file that is read");
  refuses(compare({"--report", folder_.path() + "//text"}), 2, "would write over a file that is read");
  refuses(compare({"--max-error", ".1"}), 2, "--max-error is for --qkv");
  refuses(compare({"--max-error", "-1"}), 2, "--max-error");
  refuses(compare({"--max-error", "nan"}), 2, "--max-error");
  refuses({"compare", "--model", folder_.path()}, 2, "--text");
  refuses(compare({"--nothing"}), 2, "--nothing");
  refuses(compare({"--length", "1"}), 2, "--length");
  refuses(compare({"--length", "-5"}), 2, "--length");
  refuses(compare({"--length", "many"}), 2, "--length");
  refuses(compare({"--length", "99999999999999999999"}), 2, "--length");
  refuses(compare({"--threads", "-1"}), 2, "--threads");
  refuses(compare({"--threads", "1025"}), 2, "--threads");
  refuses(compare({"--density", "1.5"}), 2, "--density");
  refuses(compare({"--density", "nan"}), 2, "--density");
  refuses(compare({"--max-bits", "-1"}), 2, "--max-bits");
  refuses(compare({"--needle", "0"}), 2, "--needle");
  refuses(compare({"--seed", "-1"}), 2, "--seed");
  for (const char* device : {"gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "CUDA", ""}) refuses(compare({"--device", device}), 2, "--device");
  refuses(compare({"--device", "cuda", "--tune"}), 2, "--tune counts CPU time");
  refuses(compare({"--dtype", "f16"}), 2, "--dtype");
  refuses(compare({"--random-weights", "-1"}), 2, "--random-weights");
  refuses(compare({"--random-weights", "1", "--needle", "64"}), 2, "has learnt nothing");
  refuses({"compare", "--qkv", folder_.file("text"), "--dtype", "bf16"}, 2, "--dtype goes with a model");
  refuses({"compare", "--qkv", folder_.file("text"), "--random-weights", "1"}, 2, "--random-weights goes with a model");
  refuses(compare({"--methods", "no_such_method"}), 2, "no_such_method");
  refuses(compare({"--methods", "xatention"}), 2, "did you mean xattention");
  refuses(compare({"--methods", ""}), 2, "without a name");
  refuses(compare({"--methods", "random,,a_shape"}), 2, "without a name");
  refuses(compare({"--methods", "tile=64,random"}), 2, "before any method");
  refuses(compare({"--methods", "all:tile=64"}), 2, "takes no options");
  refuses(compare({"--methods", "a_shape:nothing=1"}), 2, "nothing");
  refuses(compare({"--methods", "a_shape:tile=1"}), 2, "16 to 256");
  refuses(compare({"--methods", "a_shape:tile=many"}), 2, "many");
  refuses(compare({"--methods", "a_shape:tile=64,tile=32"}), 2, "twice");
  refuses(compare({"--methods", "a_shape:tile"}), 2, "name=value");
  refuses(compare({"--report", folder_.file("same"), "--json", folder_.file("same")}), 2, "same file");
  refuses(compare({"--report", folder_.file("same"), "--json",
                   folder_.path() + "/../" + std::filesystem::path(folder_.path()).filename().string() + "/./same"}),
          2, "same file");
  refuses(compare({}), 2, "TILEWISE_THREADS", {{"TILEWISE_THREADS", "many"}});
  refuses({"methods", "no_such_method"}, 2, "no_such_method");
  refuses({"methods", "dense", "more"}, 2, "more");
  refuses({"plan"}, 2, "subcommand is required");
  refuses({"plan", "show"}, 2, "file");
  refuses({"doctor", "--threads", "many"}, 2, "--threads");
}

TEST_F(BadCalls, EverythingElseExitsWithOne) {
  refuses({"compare", "--model", folder_.file("nothing"), "--text", folder_.file("text"), "--length", "64"}, 1, folder_.file("nothing"));
  refuses({"compare", "--model", folder_.path(), "--text", folder_.file("nothing"), "--length", "64"}, 1, "No such file");
  refuses({"compare", "--model", folder_.path(), "--text", folder_.path(), "--length", "64"}, 1, "is a directory");
  refuses({"compare", "--model", folder_.path(), "--text", folder_.file("empty"), "--length", "64"}, 1, "has 0 bytes; bits per byte need at least 2");
  refuses({"compare", "--model", folder_.file("text"), "--text", folder_.file("text"), "--length", "64"}, 1,
          "there is no such folder; give the one that holds config.json");
  refuses({"compare", "--model", folder_.path(), "--text", folder_.file("text"), "--length", "301"}, 1,
          "has 300 bytes, which is less than --length 301");
  refuses({"compare", "--model", folder_.path(), "--text", folder_.file("text")}, 1, "has 300 bytes");
  refuses(compare({"--needle", "4096"}), 1, "needles.json");
  refuses(compare({"--recipe", folder_.file("nothing")}), 1, "nothing");
  refuses(compare({"--report", folder_.file("nowhere/report.html")}), 1, "nowhere");
  refuses(compare({"--json", folder_.file("nowhere/out.json")}), 1, "nowhere");
  refuses(compare({"--report", folder_.path()}), 1, "directory");
  refuses({"compare", "--qkv", folder_.file("nothing")}, 1, "No such file");
  refuses({"compare", "--qkv", folder_.file("text")}, 1, "safetensors");
  refuses(compare({"--save-plans", folder_.file("text/plans")}), 1, "--save-plans");
  refuses({"plan", "show", folder_.file("nothing")}, 1, "No such file");
  refuses({"plan", "check", folder_.file("text")}, 1, "text");
  refuses({"plan", "convert", folder_.file("nothing"), "--to", "dense", "--out", folder_.file("out")}, 1, "No such file");
  TemporaryFolder::write(folder_.file("long"), std::string(5000, 'a'));
  refuses({"compare", "--model", folder_.path(), "--text", folder_.file("long"), "--length", "5000"}, 1, "4096");
}

TEST_F(BadCalls, DamagedModels) {
  const std::string config = TemporaryFolder::read(folder_.file("config.json"));
  TemporaryFolder::write(folder_.file("config.json"), "{");
  refuses(compare({}), 1, "config.json");
  std::string other = config;
  other.replace(other.find("LlamaForCausalLM"), 16, "GPTNeoXForCausal");
  TemporaryFolder::write(folder_.file("config.json"), other);
  refuses(compare({}), 1, "GPTNeoXForCausal");
  TemporaryFolder::write(folder_.file("config.json"), config);
  TemporaryFolder::write(folder_.file("tokenizer.json"), "{}");
  refuses(compare({}), 1, "tokenizer.json");
  std::filesystem::remove(folder_.file("tokenizer.json"));
  const std::string weights = TemporaryFolder::read(folder_.file("model.safetensors"));
  TemporaryFolder::write(folder_.file("model.safetensors"), weights.substr(0, weights.size() - 1));
  refuses(compare({}), 1, "model.safetensors");
  std::filesystem::remove(folder_.file("model.safetensors"));
  refuses(compare({}), 1, "model.safetensors");
}

// Where a GPU cannot be used it is said before anything is read, with the reason that the library gives.
TEST_F(BadCalls, NoGpu) {
  const auto reason = machine::refusal_of({Device::Type::cuda, 0});
  if (!reason) GTEST_SKIP() << "there is a GPU";
  refuses(compare({"--device", "cuda"}), 1, "cuda:0: " + *reason);
  refuses(compare({"--device", "cuda:3"}), 1, "cuda:3: ");
  refuses({"compare", "--qkv", folder_.file("text"), "--device", "cuda"}, 1, "cuda:0: " + *reason);
  const Ended doctor = run_program({"doctor", "--model", folder_.file("nothing")});
  EXPECT_NE(doctor.out.find("note  GPU: " + *reason), std::string::npos) << doctor.out;
}

}  // namespace
}  // namespace tilewise::app
