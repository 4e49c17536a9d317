// SPDX-License-Identifier: Apache-2.0
// Memory of the context that runs out at each place in turn, in infer/. operator new is left alone here: a JSON value of nlohmann-json takes memory to
// destroy itself, and ends the program where there is none.
#include <gtest/gtest.h>

#include <span>
#include <string>
#include <vector>

#include "tests/infer/tiny_checkpoint.h"
#include "tests/robustness/sites.h"
#include "tilewise/cache/contiguous.h"
#include "tilewise/infer/recipe.h"

namespace tilewise::testing {
namespace {

TEST(Allocation, EachSiteOfModelsMayFail) {
  TemporaryFolder folder;
  TinyCheckpoint checkpoint;
  checkpoint.make(1);
  checkpoint.write(folder.path());
  int64_t sites = 0;
  sites += fail_each_site("Model::load", [&](Context& c) { Model::load(folder.path(), c); }, {}, 100, Which::context);
  Context plain;
  const Model model = Model::load(folder.path(), plain);
  const ModelConfig& config = model.config();
  std::vector<int32_t> tokens(40, 3);
  const AttentionFunction attention = method_attention("a_shape", {{"tile", int64_t{16}}});
  sites += fail_each_site(
      "Model::forward",
      [&](Context& c) {
        KvCache cache(config.num_layers, config.heads_kv, 64, config.head_dim, c.memory);
        model.forward(tokens, cache, {.attention = attention}, c);
      },
      {}, 100, Which::context);
  // A pass that fails leaves the cache as it was.
  KvCache cache(config.num_layers, config.heads_kv, 64, config.head_dim, plain.memory);
  model.forward(tokens, cache, {.attention = attention}, plain);
  sites += fail_each_site(
      "Model::forward behind a cache",
      [&](Context& c) {
        cache.truncate(40);
        model.forward(std::span(tokens).first(5), cache, {.attention = attention}, c);
        cache.truncate(40);
      },
      [&] { return std::to_string(cache.length()); }, 100, Which::context);
  EXPECT_GE(sites, 30);
}

}  // namespace
}  // namespace tilewise::testing
