// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <filesystem>

#include "tilewise/infer/model.h"
#include "tiny_checkpoint.h"

namespace tilewise {
namespace {

class Loading : public testing::Test {
 protected:
  Loading() {
    checkpoint.make(1);
    checkpoint.write(folder.path());
  }
  std::string load() const {
    Context context;
    return error_of([&] { Model::load(folder.path(), context); });
  }
  void expect_config(const std::string& from, const std::string& to, const char* kind, const char* message) const {
    std::string config = checkpoint.config();
    const size_t at = config.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    TemporaryFolder::write(folder.file("config.json"), config.replace(at, from.size(), to));
    const std::string error = load();
    EXPECT_EQ(error.substr(0, error.find(':')), kind) << error << " for " << to;
    EXPECT_NE(error.find(message), std::string::npos) << "'" << error << "' should say '" << message << "'";
    EXPECT_NE(error.find(folder.file("config.json")), std::string::npos) << error;
  }

  TemporaryFolder folder;
  TinyCheckpoint checkpoint;
};

TEST_F(Loading, ReadsConfigWithItsDefaults) {
  TemporaryFolder::write(folder.file("config.json"),
                         R"({"architectures":["LlamaForCausalLM"],"vocab_size":50,"hidden_size":24,"intermediate_size":40,"num_hidden_layers":2,
                             "num_attention_heads":6,"num_key_value_heads":2,"head_dim":8,"max_position_embeddings":4096,"rms_norm_eps":1e-5,
                             "rope_scaling":null,"rope_parameters":{"rope_type":"default","rope_theta":10000},"attention_bias":false})");
  Context context;
  const ModelConfig config = Model::load(folder.path(), context).config();
  EXPECT_EQ(config.architecture, "LlamaForCausalLM");
  EXPECT_EQ(config.rope_theta, 10000.0f);
  EXPECT_EQ(config.hash.size(), 16u);
  EXPECT_FALSE(config.is_tied);
  EXPECT_FALSE(config.reads_bytes);
}

TEST_F(Loading, RefusesEachFaultOfTheConfig) {
  expect_config("LlamaForCausalLM", "MambaForCausalLM", "unsupported", "architecture \"MambaForCausalLM\" is not known");
  expect_config("[\"LlamaForCausalLM\"]", "\"LlamaForCausalLM\"", "io", "a list of one name");
  expect_config("[\"LlamaForCausalLM\"]", "[]", "io", "a list of one name");
  expect_config("\"architectures\": [\"LlamaForCausalLM\"], ", "", "io", "architectures is missing");
  expect_config("{", "", "io", "is not JSON");
  expect_config("}", "", "io", "is not JSON");
  expect_config("\"hidden_size\": 24, ", "", "io", "hidden_size is missing");
  expect_config("\"hidden_size\": 24", "\"hidden_size\": \"24\"", "io", "takes a whole number");
  expect_config("\"hidden_size\": 24", "\"hidden_size\": 24.5", "io", "takes a whole number");
  expect_config("\"hidden_size\": 24", "\"hidden_size\": -24", "io", "takes a whole number from 1");
  expect_config("\"hidden_size\": 24", "\"hidden_size\": 99999999999999999999", "io", "takes a whole number");
  expect_config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 0", "io", "takes a whole number from 1 to 1024");
  expect_config("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4", "io", "does not divide");
  expect_config("\"head_dim\": 8", "\"head_dim\": 7", "io", "odd");
  expect_config("\"head_dim\": 8", "\"head_dim\": 0", "io", "takes a whole number from 2");
  expect_config("\"head_dim\": 8", "\"head_dim\": null, \"num_attention_heads\": 7, \"num_key_value_heads\": 7", "io", "does not divide hidden_size");
  expect_config("1e-5", "0", "io", "rms_norm_eps is 0");
  expect_config("1e-5", "null", "io", "rms_norm_eps is missing");
  expect_config("10000.0", "-1", "io", "rope_theta is -1");
  const auto expect_rope = [&](const std::string& fields, const char* kind, const char* message) {
    expect_config("10000.0", "10000.0, \"rope_scaling\": {" + fields + "}", kind, message);
  };
  expect_rope(R"("type": "linear")", "io", "rope_scaling.factor is missing");
  expect_rope(R"("type": "linear", "factor": 0.5)", "io", "rope_scaling.factor is 0.5; takes a number from 1");
  expect_rope(R"("type": "mrope", "factor": 2)", "unsupported", "rope_type \"mrope\" is not known; known are default, linear");
  expect_rope(R"("rope_type": "llama3", "factor": 8, "high_freq_factor": 4)", "io", "rope_scaling.low_freq_factor is missing");
  expect_rope(R"("rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4)", "io", "must lie below high_freq_factor 4");
  expect_rope(R"("rope_type": "longrope", "long_factor": [1, 1, 1, 1])", "io", "short_factor is missing; takes 4 numbers");
  expect_rope(R"("rope_type": "longrope", "short_factor": [1, 1], "long_factor": [1, 1, 1, 1])", "io", "short_factor is [1,1]; takes 4 numbers");
  expect_rope(R"("rope_type": "longrope", "short_factor": [1, 1, 0, 1], "long_factor": [1, 1, 1, 1])", "io", "short_factor holds 0");
  expect_rope(R"("rope_type": "yarn", "factor": 4, "truncate": 1)", "io", "truncate is 1; takes true or false");
  expect_rope(R"("rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 0)", "io", "original_max_position_embeddings is 0");
  expect_rope(R"("rope_type": "default", "partial_rotary_factor": 0.5)", "unsupported", "a head is rotated whole");
  expect_rope(R"("full_attention": {"rope_type": "default"})", "unsupported", "differ between layers");
  expect_config("10000.0", "10000.0, \"rope_scaling\": 3", "io", "takes an object or null");
  expect_config("10000.0", "10000.0, \"attention_bias\": 1", "io", "attention_bias is 1; takes true or false");
  expect_config("10000.0", "10000.0, \"layer_types\": [\"full_attention\", \"sliding_attention\"]", "unsupported", "\"sliding_attention\"");
  expect_config("10000.0", "10000.0, \"layer_types\": \"full_attention\"", "io", "takes a list");
  expect_config("10000.0", "10000.0, \"eos_token_id\": 50", "io", "takes a token below vocab_size, 50");
  expect_config("10000.0", "10000.0, \"eos_token_id\": [3, \"x\"]", "io", "or a list of them");
  expect_config("10000.0", "10000.0, \"sliding_window\": 4096", "unsupported", "use a_shape");
  expect_config("10000.0", "10000.0, \"quantization_config\": {\"bits\": 4}", "unsupported", "quantization_config");
  expect_config("\"silu\"", "\"gelu\"", "unsupported", "hidden_act is \"gelu\"");
  expect_config("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": 0", "io", "takes true or false");
}

TEST_F(Loading, RefusesWeightsThatAreNotThereOrInAnotherForm) {
  std::filesystem::remove(folder.file("model.safetensors"));
  EXPECT_NE(load().find("io: " + folder.path() + ": there is no model.safetensors"), std::string::npos) << load();
  TemporaryFolder::write(folder.file("pytorch_model.bin"), "x");
  EXPECT_NE(load().find("unsupported: " + folder.path() + ": the weights are a pickle"), std::string::npos) << load();
  std::filesystem::remove(folder.file("config.json"));
  EXPECT_NE(load().find("config.json': No such file"), std::string::npos) << load();
}

TEST_F(Loading, RefusesTensorsThatDoNotFitTheConfig) {
  const auto refusal = [&](auto&& change) {
    TinyCheckpoint other = checkpoint;
    change(other);
    other.write(folder.path());
    TemporaryFolder::write(folder.file("config.json"), checkpoint.config());
    return load();
  };
  const std::string up = "model.layers.1.mlp.up_proj.weight";
  EXPECT_NE(refusal([&](auto& c) { c.shapes.erase(up); }).find("io: " + folder.file("model.safetensors") + ": tensor " + up + " is missing"),
            std::string::npos);
  EXPECT_NE(refusal([&](auto& c) { c.shapes[up] = {24, 40}; }).find("is [24, 40], config.json asks for [40, 24]"), std::string::npos);
  EXPECT_NE(refusal([&](auto& c) { c.shapes[up] = {960}; }).find("is [960], config.json asks for [40, 24]"), std::string::npos);
  const auto with_bias = [&](auto& c) {
    c.shapes["model.layers.0.self_attn.q_proj.bias"] = {48};
    c.values["model.layers.0.self_attn.q_proj.bias"].resize(48);
  };
  EXPECT_NE(refusal(with_bias).find("unsupported: "), std::string::npos);
  EXPECT_NE(refusal(with_bias).find("q_proj.bias is no part of a LlamaForCausalLM"), std::string::npos);
  const auto with_frequencies = [&](auto& c) {
    c.shapes["model.layers.0.self_attn.rotary_emb.inv_freq"] = {4};
    c.values["model.layers.0.self_attn.rotary_emb.inv_freq"].resize(4);
  };
  EXPECT_EQ(refusal(with_frequencies), "no error");
  EXPECT_EQ(refusal([](auto&) {}), "no error");
}

TEST_F(Loading, ReadsTheIndexOfSeveralFiles) {
  const auto index = folder.file("model.safetensors.index.json");
  std::filesystem::remove(folder.file("model.safetensors"));
  checkpoint.files = 3;
  checkpoint.write(folder.path());
  EXPECT_EQ(load(), "no error");
  const std::string whole = TemporaryFolder::read(index);
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = whole;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    TemporaryFolder::write(index, text.replace(at, from.size(), to));
    return load();
  };
  EXPECT_NE(with("{", "").find("io: " + index + " is not an index of weights"), std::string::npos);
  EXPECT_NE(with("weight_map", "weight_mop").find("is not an index of weights"), std::string::npos);
  EXPECT_NE(with(checkpoint.part_name(1), "../x.safetensors").find("is not the name of a file beside it"), std::string::npos);
  EXPECT_NE(with(checkpoint.part_name(1), "gone.safetensors").find("gone.safetensors"), std::string::npos);
  EXPECT_NE(with(checkpoint.part_name(1), checkpoint.part_name(0)).find("is in " + checkpoint.part_name(0) + "; it is not"), std::string::npos);
  EXPECT_NE(with("model.norm.weight", "model.norm.other").find("weight_map says that model.norm.other"), std::string::npos);
  TemporaryFolder::write(index, whole);
  std::filesystem::copy_file(folder.file(checkpoint.part_name(0)), folder.file(checkpoint.part_name(2)),
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_NE(load().find("is also in"), std::string::npos) << load();
  TemporaryFolder::write(folder.file(checkpoint.part_name(2)), "short");
  EXPECT_EQ(load().substr(0, 3), "io:");
}

TEST_F(Loading, RefusesOtherDtypesAndDamagedFiles) {
  std::string bytes = TemporaryFolder::read(folder.file("model.safetensors"));
  const std::string whole = bytes;
  for (size_t at = bytes.find("\"F32\""); at != std::string::npos; at = bytes.find("\"F32\"", at)) bytes.replace(at, 5, "\"I32\"");
  TemporaryFolder::write(folder.file("model.safetensors"), bytes);
  EXPECT_NE(load().find("is I32; weights must be F32, BF16 or F16"), std::string::npos) << load();
  for (const size_t length : {size_t{0}, size_t{7}, size_t{100}, whole.size() / 2, whole.size() - 1}) {
    TemporaryFolder::write(folder.file("model.safetensors"), whole.substr(0, length));
    EXPECT_EQ(load().substr(0, 3), "io:") << length;
  }
  TemporaryFolder::write(folder.file("model.safetensors"), whole + "x");
  EXPECT_EQ(load().substr(0, 3), "io:");
  TemporaryFolder::write(folder.file("model.safetensors"), whole);
  EXPECT_EQ(load(), "no error");
}

TEST_F(Loading, StopsWhenAsked) {
  std::stop_source source;
  source.request_stop();
  Context context;
  context.cancel = source.get_token();
  EXPECT_EQ(error_of([&] { Model::load(folder.path(), context); }).substr(0, 10), "cancelled:");
}

}  // namespace
}  // namespace tilewise
