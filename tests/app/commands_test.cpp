// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "app/command.h"
#include "tests/app/process.h"
#include "tests/study/tiny_model.h"
#include "tilewise/base/hash.h"
#include "tilewise/base/safetensors.h"

namespace tilewise::app {
namespace {

using nlohmann::json;

TEST(Commands, CompareWritesTableJsonAndReport) {
  TemporaryFolder folder;
  study::TinyModel().save(folder.path());
  std::string text;
  for (int i = 0; i < 400; ++i) text += static_cast<char>('a' + splitmix64(static_cast<uint64_t>(i)) % 9);
  TemporaryFolder::write(folder.file("text one"), text);
  TemporaryFolder::write(folder.file("text two"), text.substr(100) + text.substr(0, 100));
  const int before = folder.count();
  const Ended ended = run_program({"compare", "--model", folder.path(), "--text", folder.file("text one"), folder.file("text two"), "--length", "256",
                                   "--methods", "xattention:stride=16,threshold=.97,tile=64,a_shape", "--methods", "random", "--threads", "1",
                                   "--json", folder.file("out.json"), "--report", folder.file("report.html")});
  ASSERT_EQ(ended.code, 0) << ended.err;
  EXPECT_EQ(ended.err, "") << "quiet when piped";
  EXPECT_EQ(ended.out.find('\033'), std::string::npos) << "no colour when piped";
  EXPECT_NE(ended.out.find("xattention tile=64,threshold=0.97"), std::string::npos) << ended.out;
  EXPECT_NE(ended.out.find("report: " + folder.file("report.html")), std::string::npos) << ended.out;
  EXPECT_EQ(folder.count(), before + 2) << "nothing is left beside the two files";
  const json document = json::parse(TemporaryFolder::read(folder.file("out.json")));
  EXPECT_EQ(document.at("schema"), 1);
  EXPECT_EQ(document.at("threads"), 1);
  EXPECT_EQ(document.at("input").at("texts").size(), 2u);
  EXPECT_EQ(document.at("input").at("texts")[0].at("bytes"), 400);
  EXPECT_EQ(document.at("methods").size(), 3u);
  for (const json& row : document.at("methods")) {
    EXPECT_TRUE(row.at("refused").is_null());
    EXPECT_EQ(row.at("heads").size(), 8u);
    EXPECT_GT(row.at("density").get<double>(), 0);
    EXPECT_LE(row.at("recall").get<double>(), 1.0001);
    EXPECT_DOUBLE_EQ(row.at("total_ms").get<double>(), row.at("plan_ms").get<double>() + row.at("attend_ms").get<double>());
  }
  EXPECT_NE(document.at("command").get<std::string>().find("'" + folder.file("text one") + "'"), std::string::npos);
  const std::string page = TemporaryFolder::read(folder.file("report.html"));
  EXPECT_NE(page.find("</html>"), std::string::npos);

  // The saved figures give the same page and the same table.
  const Ended again = run_program({"report", folder.file("out.json"), "--out", folder.file("again.html")});
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(TemporaryFolder::read(folder.file("again.html")), page);
  EXPECT_EQ(again.out.substr(0, again.out.find("report: ")), ended.out.substr(0, ended.out.find("report: ")));
  EXPECT_EQ(run_program({"report", folder.file("out.json")}).code, 0);
  EXPECT_EQ(TemporaryFolder::read(folder.file("out.html")), page) << "beside the figures where --out is left away";
}

TEST(Commands, ReportRefusesWhatItCannotRead) {
  TemporaryFolder folder;
  TemporaryFolder::write(folder.file("broken.json"), R"({"schema": 1, "version": "0.1.0", "input": {)");
  TemporaryFolder::write(folder.file("page.html"), "old");
  TemporaryFolder::write(folder.file("huge.json"), "{");
  std::filesystem::resize_file(folder.file("huge.json"), uintmax_t{1} << 30);
  const std::pair<std::vector<std::string>, const char*> calls[] = {
      {{"report", folder.file("huge.json")}, "at most"},
      {{"report"}, "file is required"},
      {{"report", folder.file("nothing.json")}, "nothing.json"},
      {{"report", folder.path()}, folder.path().c_str()},
      {{"report", folder.file("broken.json"), "--out", folder.file("page.html")}, "broken.json is not JSON"},
      {{"report", folder.file("page.html")}, "would write over the file that is read"},
      {{"report", "tests/study/golden_compare.json", "--out", folder.file("no/where.html")}, "no/where.html"}};
  for (const auto& [arguments, text] : calls) {
    const Ended ended = run_program(arguments);
    EXPECT_GT(ended.code, 0);
    EXPECT_TRUE(ended.has_one_error_line()) << ended.err;
    EXPECT_NE(ended.err.find(text), std::string::npos) << ended.err;
  }
  EXPECT_EQ(folder.count(), 3);
  EXPECT_EQ(TemporaryFolder::read(folder.file("page.html")), "old");
}

TEST(Commands, CompareReadsTensorsAndSavesTheirPlans) {
  TemporaryFolder folder;
  const auto drawn = [](const Shape& shape, uint64_t seed) {
    Tensor tensor(host_memory(), Dtype::f32, shape);
    for (int64_t i = 0; i < shape.numel(); ++i)
      tensor.view.data<float>()[i] = static_cast<float>(splitmix64(seed + static_cast<uint64_t>(i)) % 1000) / 250 - 2;
    return tensor;
  };
  const Tensor q = drawn({1, 4, 300, 32}, 1), k = drawn({1, 2, 300, 32}, 5000), v = drawn({1, 2, 300, 32}, 90000);
  const NamedTensor tensors[] = {{"q", q.view}, {"k", k.view}, {"v", v.view}};
  write_safetensors(folder.file("tensors"), tensors, {});
  const int before = folder.count();
  const Ended ended = run_program({"compare", "--qkv", folder.file("tensors"), "--tune", "--max-error", ".4", "--methods", "random:tile=16,mean_pool",
                                   "--save-plans", folder.file("plans"), "--json", folder.file("out.json"), "--report", folder.file("out.html")});
  ASSERT_EQ(ended.code, 0) << ended.err;
  EXPECT_EQ(ended.err, "");
  EXPECT_NE(ended.out.find("taken as causal"), std::string::npos) << ended.out;
  EXPECT_EQ(folder.count(), before + 3);
  const json document = json::parse(TemporaryFolder::read(folder.file("out.json")));
  EXPECT_EQ(document.at("schema"), 1);
  EXPECT_TRUE(document.at("input").at("model").is_null());
  EXPECT_EQ(document.at("input").at("qkv"), folder.file("tensors"));
  EXPECT_TRUE(document.at("input").at("is_mask_assumed").get<bool>());
  EXPECT_TRUE(document.at("dense").at("bits_per_byte").is_null());
  EXPECT_TRUE(document.at("dense").at("model_ms").is_null());
  ASSERT_EQ(document.at("methods").size(), 2u);
  EXPECT_EQ(document.at("tune").at("curves").size(), 2u);
  for (const json& row : document.at("methods")) {
    ASSERT_TRUE(row.at("refused").is_null());
    for (const char* key : {"bits_per_byte", "max_extra_bits", "model_ms", "needle"}) EXPECT_TRUE(row.at(key).is_null()) << key;
    for (const char* key : {"density", "recall", "output_error", "total_ms", "speedup"}) EXPECT_TRUE(row.at(key).is_number()) << key;
  }
  EXPECT_EQ(run_program({"plan", "check", folder.file("plans/1-random-layer0.safetensors"), "--allowed", "causal"}).code, 0);
  EXPECT_EQ(run_program({"plan", "show", folder.file("plans/2-mean_pool-layer0.safetensors")}).code, 0);
  // What fails leaves no folder behind.
  TemporaryFolder::write(folder.file("broken"), "{}");
  EXPECT_EQ(run_program({"compare", "--qkv", folder.file("broken"), "--save-plans", folder.file("new")}).code, 1);
  EXPECT_EQ(folder.count(), before + 4);
}

TEST(Commands, PlansAreSavedShownCheckedAndConverted) {
  TemporaryFolder folder;
  study::TinyModel().save(folder.path());
  TemporaryFolder::write(folder.file("text"), std::string(200, 'a'));
  const Ended made = run_program({"compare", "--model", folder.path(), "--text", folder.file("text"), "--length", "150", "--methods",
                                  "a_shape:local=40,tile=32", "--save-plans", folder.file("plans")});
  ASSERT_EQ(made.code, 0) << made.err;
  const std::string file = folder.file("plans/1-a_shape-text1-layer1.safetensors");
  const Ended shown = run_program({"plan", "show", file});
  EXPECT_EQ(shown.code, 0) << shown.err;
  for (const char* part : {"150 queries, 150 keys", "4 heads", "density", "fill", "pairs read"})
    EXPECT_NE(shown.out.find(part), std::string::npos) << part;
  EXPECT_EQ(run_program({"plan", "check", file}).code, 0);
  EXPECT_EQ(run_program({"plan", "check", file, "--allowed", "causal"}).code, 0);
  const Ended converted = run_program({"plan", "convert", file, "--to", "dense", "--out", folder.file("bits")});
  EXPECT_EQ(converted.code, 0) << converted.err;
  const SafetensorsFile bits(folder.file("bits"));
  const Tensor tensor = bits.load("bits", host_memory());
  ASSERT_EQ(tensor.view.shape(), (Shape{1, 4, 150, 150}));
  for (int64_t q = 0; q < 150; ++q) {
    for (int64_t k = 0; k < 150; ++k) {
      ASSERT_EQ(tensor.view.at<bool>(0, 3, q, k), k <= q && (q - k < 40 || k < 64)) << q << " " << k;
    }
  }
  const Ended refused = run_program({"plan", "convert", file, "--to", "bsr", "--out", folder.file("bsr")});
  EXPECT_EQ(refused.code, 1);
  EXPECT_TRUE(refused.has_one_error_line()) << refused.err;
  EXPECT_NE(refused.err.find("query 0 of head 0 reads 1 of the 32 keys of block 0"), std::string::npos) << refused.err;
  EXPECT_EQ(run_program({"plan", "convert", file, "--to", "bsr", "--pooled", "--out", folder.file("bsr")}).code, 2);
  EXPECT_EQ(run_program({"plan", "convert", file, "--to", "dense", "--block-q", "8", "--out", folder.file("bsr")}).code, 2);
  const Ended blocks = run_program({"plan", "convert", file, "--to", "bsr", "--mask", "--block-k", "16", "--out", folder.file("bsr")});
  EXPECT_EQ(blocks.code, 0) << blocks.err;
  const SafetensorsFile bsr(folder.file("bsr"));
  EXPECT_EQ(bsr.metadata().at("block_q"), "32");
  EXPECT_EQ(bsr.metadata().at("block_k"), "16");
  const Tensor indptr = bsr.load("indptr", host_memory()), indices = bsr.load("indices", host_memory()), mask = bsr.load("mask", host_memory());
  const Tensor bytes(host_memory(), Dtype::boolean, {1, 4, 150, 150});
  bytes.fill_zero();
  for (int64_t head = 0; head < 4; ++head) {
    const int64_t group = head * indptr.view.dim(1) / 4;
    for (int64_t row = 0; row < 5; ++row) {
      for (int64_t i = indptr.view.at<int32_t>(0, group, row); i < indptr.view.at<int32_t>(0, group, row + 1); ++i) {
        for (int64_t q = 0; q < 32 && row * 32 + q < 150; ++q) {
          for (int64_t k = 0; k < 16; ++k) {
            const int64_t key = indices.view.at<int32_t>(i) * 16 + k;
            if (mask.view.at<bool>(i, q, k)) bytes.view.at<bool>(0, head, row * 32 + q, key) = true;
          }
        }
      }
    }
  }
  EXPECT_EQ(std::memcmp(bytes.view.raw(), tensor.view.raw(), 4 * 150 * 150), 0);
  std::string damaged = TemporaryFolder::read(file);
  damaged[damaged.size() - 5] = static_cast<char>(damaged[damaged.size() - 5] ^ 0x40);
  TemporaryFolder::write(file, damaged);
  EXPECT_EQ(run_program({"plan", "check", file}).code, 1);
}

TEST(Commands, MethodsListsAndExplains) {
  const Ended all = run_program({"methods"});
  EXPECT_EQ(all.code, 0);
  for (const char* name : {"dense", "a_shape", "xattention", "mean_pool", "random", "oracle"})
    EXPECT_NE(all.out.find(name), std::string::npos) << name;
  const Ended one = run_program({"methods", "xattention"});
  EXPECT_EQ(one.code, 0);
  for (const char* part : {"2503.16428", "stride", "1 to 64", "0.9", "threshold"}) EXPECT_NE(one.out.find(part), std::string::npos) << part;
}

TEST(Commands, HelpAndVersionExitWithZero) {
  for (const char* command : {"compare", "methods", "plan", "doctor"}) {
    const Ended ended = run_program({command, "--help"});
    EXPECT_EQ(ended.code, 0) << command;
    EXPECT_NE(ended.out.find("--help"), std::string::npos) << command;
  }
  const Ended version = run_program({"--version"});
  EXPECT_EQ(version.code, 0);
  EXPECT_EQ(version.out.rfind("tilewise 0.", 0), 0u) << version.out;
}

TEST(Commands, DoctorIsGreenHere) {
  const Ended ended = run_program({"doctor"});
  EXPECT_EQ(ended.code, 0) << ended.out << ended.err;
  EXPECT_NE(ended.out.find("ok    model: reference LM reads 1024 bytes at 0.961"), std::string::npos) << ended.out;
  for (const char* part : {"target", "kernels, f32", "kernels, bf16", "threads", "oneDNN"}) {
    EXPECT_NE(ended.out.find(std::string("ok    ") + part), std::string::npos) << part << "\n" << ended.out;
  }
}

TEST(Commands, DoctorFailsOnWrongWeights) {
  TemporaryFolder folder;
  study::TinyModel().save(folder.path());
  const Ended ended = run_program({"doctor", "--model", folder.path()});
  EXPECT_EQ(ended.code, 1) << ended.out;
  EXPECT_NE(ended.out.find("fail  model"), std::string::npos) << ended.out;
  EXPECT_EQ(run_program({"doctor", "--model", folder.file("nothing")}).code, 0) << "a missing reference LM is a note";
}

TEST(Commands, DevicesByTheirSpelling) {
  EXPECT_EQ(parse_device("cpu"), Device{});
  EXPECT_EQ(parse_device("cuda"), (Device{Device::Type::cuda, 0}));
  EXPECT_EQ(parse_device("cuda:0"), (Device{Device::Type::cuda, 0}));
  EXPECT_EQ(parse_device("cuda:12"), (Device{Device::Type::cuda, 12}));
  for (const char* text : {"", "cpu:0", "gpu", "cuda:", "cuda:-1", "cuda:1 ", "cuda:99999999999"})
    EXPECT_THROW(parse_device(text), UsageError) << text;
}

// A folder with config.json alone, of a vocabulary that no byte fills: the same seed draws the same model.
TEST(Commands, RandomWeightsNeedOnlyAShape) {
  TemporaryFolder folder;
  study::TinyModel().save(folder.path());
  std::filesystem::remove(folder.file("model.safetensors"));
  std::string config = TemporaryFolder::read(folder.file("config.json"));
  const std::string vocabulary = "\"vocab_size\": 256";
  TemporaryFolder::write(folder.file("config.json"), config.replace(config.find(vocabulary), vocabulary.size(), "\"vocab_size\": 300"));
  TemporaryFolder::write(folder.file("text"), std::string(150, 'a') + std::string(150, 'b'));
  const auto figures = [&](const std::string& seed) {
    const Ended ended = run_program({"compare", "--model", folder.path(), "--text", folder.file("text"), "--length", "300", "--methods", "a_shape",
                                     "--random-weights", seed, "--json", folder.file("out.json")});
    EXPECT_EQ(ended.code, 0) << ended.err;
    EXPECT_NE(ended.out.find("weights are random"), std::string::npos) << ended.out;
    return json::parse(TemporaryFolder::read(folder.file("out.json")));
  };
  const json one = figures("1"), again = figures("1"), two = figures("2");
  const auto bits = [](const json& document) { return document.at("dense").at("bits_per_byte").get<double>(); };
  EXPECT_EQ(bits(one), bits(again));
  EXPECT_NE(bits(one), bits(two));
  EXPECT_GT(bits(one), 5);
  EXPECT_EQ(one.at("input").at("dtype"), "f32");
  const Ended without = run_program({"compare", "--model", folder.path(), "--text", folder.file("text"), "--length", "300"});
  EXPECT_EQ(without.code, 1) << "a checkpoint has weights";
}

TEST(Commands, ArgumentsAreQuotedForAShell) {
  EXPECT_EQ(quote_for_shell("a-b/c.txt:x=1,y=2"), "a-b/c.txt:x=1,y=2");
  EXPECT_EQ(quote_for_shell(""), "''");
  EXPECT_EQ(quote_for_shell("two words"), "'two words'");
  EXPECT_EQ(quote_for_shell("it's $HOME"), "'it'\\''s $HOME'");
}

}  // namespace
}  // namespace tilewise::app
