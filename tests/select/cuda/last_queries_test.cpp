// SPDX-License-Identifier: Apache-2.0
// The kernels of last_query_sums() on a GPU, run on the CPU line by line, against plain loops in f64.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tests/machine/cuda/host_block.h"
#include "tests/plan/cuda/device_plan_testing.h"
#include "tests/select/cuda/last_queries_testing.h"
#include "tests/select/testing.h"

namespace tilewise::select::cuda {
namespace {

TEST(DeviceLastQueries, AddsUpAsDefined) {
  std::mt19937_64 engine(1);
  const auto uniform = [&](int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); };
  for (unsigned seed = 0; seed < 24; ++seed) {
    const int64_t batch = uniform(1, 2), heads_kv = uniform(1, 2), heads_q = heads_kv * uniform(1, 2);
    const int64_t seqlen_q = uniform(1, 300), seqlen_k = uniform(1, seed % 4 == 0 ? 900 : 300),
                  count = std::array<int64_t, 4>{1, 64, 100, 200}[seed % 4];
    const int64_t dim = std::array<int64_t, 4>{8, 20, 64, 136}[static_cast<size_t>(uniform(0, 3))];
    const Dtype dtype = std::array{Dtype::bf16, Dtype::f16, Dtype::f32}[seed % 3];
    const testing::TestTensor q = testing::random_tensor(dtype, batch, heads_q, seqlen_q, dim, seed, 2),
                              k = testing::random_tensor(dtype, batch, heads_kv, seqlen_k, dim, seed + 1000, 2);
    const Inputs inputs{.q = q.view,
                        .k = k.view,
                        .mask = Mask::causal(),
                        .softmax_scale = 1 / std::sqrt(static_cast<float>(dim)),
                        .softcap = seed % 5 == 4 ? 3.0f : 0.0f};
    LastQueriesLaunch sizes;
    plan::cuda::MemoryParts counted(nullptr);
    last_queries_workspace(inputs, count, counted, sizes);
    const testing::Guarded memory(counted.bytes());
    plan::cuda::MemoryParts parts(memory.data());
    const LastQueriesLaunch launch = last_queries_launch(inputs, count, parts);
    testing::run_last_queries(launch, seed);
    ASSERT_TRUE(memory.is_intact()) << seed;
    const int64_t queries = std::min(count, seqlen_q), offset = seqlen_k - seqlen_q;
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t h = 0; h < heads_q; ++h) {
        std::vector<double> key(static_cast<size_t>(seqlen_k), 0.0), distance(key);
        for (int64_t query = seqlen_q - queries; query < seqlen_q; ++query) {
          std::vector<double> x;
          double most = -HUGE_VAL, total = 0;
          for (int64_t j = 0; j <= query + offset; ++j) {
            double dot = 0;
            for (int64_t d = 0; d < dim; ++d) dot += q.get(b, h, query, d) * k.get(b, h * heads_kv / heads_q, j, d);
            dot *= static_cast<double>(inputs.softmax_scale);
            const auto cap = static_cast<double>(inputs.softcap);
            x.push_back(cap > 0 ? cap * std::tanh(dot / cap) : dot);
            most = std::max(most, x.back());
          }
          for (double& value : x) total += value = std::exp(value - most);
          for (size_t j = 0; j < x.size(); ++j) {
            key[j] += x[j] / total;
            distance[static_cast<size_t>(query + offset) - j] += x[j] / total;
          }
        }
        for (int64_t i = 0; i < seqlen_k; ++i) {
          const int64_t at = (b * heads_q + h) * seqlen_k + i;
          const auto of = static_cast<size_t>(i);
          ASSERT_NEAR(static_cast<double>(launch.args.key[at]), key[of], 1e-4 * key[of] + 1e-6) << seed << " key " << i;
          ASSERT_NEAR(static_cast<double>(launch.args.offset[at]), distance[of], 1e-4 * distance[of] + 1e-6) << seed << " distance " << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace tilewise::select::cuda
