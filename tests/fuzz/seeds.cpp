// SPDX-License-Identifier: Apache-2.0
// fuzz_seeds DIR: a small corpus for each target, in DIR/<target>/. Run from the root of the tree: the golden files are part of it.
#include <filesystem>
#include <iostream>
#include <random>
#include <string>

#include "tests/attend/random_plan.h"
#include "tilewise/base/file.h"
#include "tilewise/plan/complete.h"
#include "tilewise/plan/file.h"
#include "tilewise/plan/make.h"

namespace {

using namespace tilewise;

void write_plans(const std::string& folder) {
  Context context;
  for (uint64_t seed = 0; seed < 24; ++seed) {
    attend::testing::Rng rng(seed);
    attend::testing::PlanOptions o;
    o.seqlen_q = attend::testing::uniform(rng, 1, 60);
    o.seqlen_k = attend::testing::uniform(rng, 1, 60);
    o.tile = 16;
    o.heads_q = 2;
    o.groups = 1 + static_cast<int>(seed % 2);
    o.mask = static_cast<attend::testing::MaskKind>(seed % 7);
    o.has_picked = seed % 2 == 0;
    o.has_rows = seed % 3 == 0;
    o.has_edges = seed % 4 == 1;
    o.is_spaced = seed % 5 == 1;
    o.has_order_k = seed % 6 == 2;
    if (seed % 8 == 3) o.pools = {8};
    o.is_by_key = seed % 6 == 5;
    const Plan plan = attend::testing::random_plan(rng, o).plan;
    save_plan(seed % 4 == 0 ? complete(plan, context, 16) : plan, folder + "/plan-" + std::to_string(seed));
  }
  save_plan(dense_plan({.seqlen_q = 100, .seqlen_k = 100, .tile = 64}), folder + "/dense");
}

void run(const std::string& root) {
  for (const char* target : {"plan_reader", "validator", "safetensors", "config", "recipe", "comparison"})
    std::filesystem::create_directories(root + "/" + target);
  write_plans(root + "/plan_reader");
  for (const auto& entry : std::filesystem::directory_iterator("tests/plan")) {
    if (entry.path().extension() == ".safetensors") std::filesystem::copy(entry.path(), root + "/plan_reader/" + entry.path().filename().string());
  }
  for (const auto& entry : std::filesystem::directory_iterator(root + "/plan_reader"))
    std::filesystem::copy(entry.path(), root + "/safetensors/" + entry.path().filename().string());
  std::filesystem::copy("tests/infer/golden_recipe.json", root + "/recipe/golden");
  write_file(root + "/recipe/small", R"({"schema":1,"model":{"layers":1,"heads_q":1,"heads_kv":1,"head_dim":8},"default":{"method":"dense"}})");
  std::filesystem::copy("tests/study/golden_compare.json", root + "/comparison/golden");
  std::filesystem::copy("models/reference-lm/config.json", root + "/config/reference");
  const std::string sizes =
      R"("hidden_act":"silu","vocab_size":50,"hidden_size":24,"intermediate_size":40,"num_hidden_layers":2,"num_attention_heads":6,"num_key_value_heads":2,)"
      R"("head_dim":8,"max_position_embeddings":4096,"rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":false)";
  write_file(root + "/config/llama3", R"({"architectures":["LlamaForCausalLM"],)" + sizes +
                                          R"(,"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,)"
                                          R"("original_max_position_embeddings":1024}})");
  write_file(root + "/config/qwen", R"({"architectures":["Qwen2ForCausalLM"],)" + sizes + R"(,"eos_token_id":[1,2],"use_sliding_window":false})");
  std::mt19937_64 rng(1);
  for (int i = 0; i < 64; ++i) {
    std::string bytes(200 + rng() % 2000, '\0');
    for (char& byte : bytes) byte = static_cast<char>(rng() % 250);
    write_file(root + "/validator/random-" + std::to_string(i), bytes);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: fuzz_seeds DIR\n";
    return 2;
  }
  try {
    run(argv[1]);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
