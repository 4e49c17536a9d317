// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/rope.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tilewise/infer/config.h"

namespace tilewise::infer {
namespace {

// Frequencies of a head of 16 channels and the factor of cosine and sine, as Hugging Face transformers 5.24 computes them (f32).
struct Oracle {
  std::string rope;  // fields of config.json
  int64_t seqlen;
  double attention_factor;
  std::vector<double> frequencies;
};

ModelConfig config_with(const std::string& fields) {
  return parse_config(R"({"architectures": ["LlamaForCausalLM"], "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                          "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5, )" +
                          fields + "}",
                      "config.json");
}

const std::string kLongrope =
    R"("max_position_embeddings": 256, "original_max_position_embeddings": 64, "rope_scaling": {"type": "longrope", "rope_theta": 10000.0,
       "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7], "long_factor": [1.5, 2.2, 2.9, 3.6, 4.3, 5.0, 5.7, 6.4]})";

const std::vector<Oracle> kOracles = {
    {R"("max_position_embeddings": 64, "rope_theta": 10000.0)", 100, 1, {1, .31622776, .1, .031622779, .01, .0031622779, .001, .00031622779}},
    {R"("max_position_embeddings": 64, "rope_scaling": {"rope_type": "linear", "factor": 2.5})",
     100,
     1,
     {.4, .1264911, .04, .01264911, .004, .001264911, .0004, .0001264911}},
    {R"("max_position_embeddings": 64, "rope_scaling": {"type": "dynamic", "factor": 4.0})",
     64,
     1,
     {1, .31622776, .1, .031622779, .01, .0031622779, .001, .00031622779}},
    {R"("max_position_embeddings": 64, "rope_scaling": {"type": "dynamic", "factor": 4.0})",
     100,
     1,
     {1, .2672230, .07140812, .01908189, .005099120, .001362602, .0003641186, .00009730085}},
    {R"("max_position_embeddings": 256, "rope_theta": 500.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
         "high_freq_factor": 4.0, "original_max_position_embeddings": 32})",
     100,
     1,
     {1, .23748969, .031185457, .012156156, .0055901702, .0025707141, .0011821770, .00054363982}},
    {R"("max_position_embeddings": 256, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
         "rope_theta": 10000.0})",
     100,
     1.138629436111989,
     {1, .23717082, .05, .0079056947, .0025, .00079056947, .00025, .000079056947}},
    {R"("max_position_embeddings": 256, "rope_theta": 100.0, "rope_parameters": {"rope_type": "yarn", "factor": 8.0, "beta_fast": 8.0,
         "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 0.3, "truncate": false, "original_max_position_embeddings": 32})",
     100,
     1.0782934613857693,
     {1, .25931099, .039528470, .022228492, .0125, .0070292661, .0039528473, .0022228493}},
    {kLongrope, 64, 1.1547005383792517, {1, .28747976, .083333336, .024325214, .0071428572, .0021081853, .000625, .00018601633}},
    {kLongrope, 65, 1.1547005383792517, {.66666669, .14373988, .034482758, .0087841051, .0023255812, .00063245557, .00017543860, .000049410592}},
};

TEST(Rope, EqualsWhatTransformersComputes) {
  for (const Oracle& oracle : kOracles) {
    SCOPED_TRACE(oracle.rope);
    const ModelConfig config = config_with(oracle.rope);
    EXPECT_NEAR(config.rope.attention_factor, oracle.attention_factor, 1e-12);
    const auto frequencies = rope_frequencies(config, oracle.seqlen);
    ASSERT_EQ(frequencies.size(), oracle.frequencies.size());
    for (size_t i = 0; i < frequencies.size(); ++i) EXPECT_NEAR(frequencies[i] / oracle.frequencies[i], 1, 3e-7) << "pair " << i;
  }
}

}  // namespace
}  // namespace tilewise::infer
