// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/minference.h"

#include <algorithm>
#include <set>

#include "tests/methods/definition_testing.h"
#include "tilewise/attend/attend.h"
#include "tilewise/plan/count.h"
#include "tilewise/plan/validate.h"

namespace tilewise::method {
namespace {

using testing::Bits;
using testing::TestProblem;
using Options = MInferenceOptions;

Plan plan_of(const Problem& problem, const Options& options) {
  Context context;
  const Plan plan = minference(problem, options, context).plan;
  validate(plan, problem.mask);
  return plan;
}

// Every pair on a chosen line is read; what else is read lies in a tile's length of a slash, or aligned in a tile of keys that a query of the row needs.
TEST(MInference, ReadsTheLinesOfTheLastQueries) {
  const testing::OnReference on_reference;
  unsigned seed = 300;
  int64_t compared = 0, heads = 0;
  for (const testing::Sizes& s : std::vector<testing::Sizes>{
           {1, 4, 2, 300, 300, 16}, {2, 2, 1, 131, 131, 16}, {1, 2, 1, 65, 320, 16}, {1, 2, 2, 290, 260, 16}, {1, 2, 1, 1, 277, 16}}) {
    for (const bool aligned : {false, true}) {
      const TestProblem test(s, Dtype::f32, Mask::causal(), ++seed);
      Options options;
      options.vertical = 35;
      options.slash = 60;
      options.first = 3;
      options.nearest = 20;
      options.tile = 32;
      options.aligned = aligned;
      const Plan plan = plan_of(test.problem, options);
      Bits read = testing::bits_of(*plan, true);
      for (int64_t b = 0; b < s.batch; ++b) {
        for (int h = 0; h < s.heads_q; ++h) {
          const auto [vertical, slash, distance] = testing::last_query_lines(test, h, 64, 35, 60, 3, 20, b);
          ++heads;
          if (distance < 1e-6) continue;
          ++compared;
          for (int64_t q = 0; q < s.seqlen_q; ++q) {
            const int64_t token = q + s.seqlen_k - s.seqlen_q, end = token / 32 * 32 + 32;
            for (int64_t k = 0; k < s.seqlen_k; ++k) {
              const bool is_read = read.at(b, h, q, k) != 0;
              const bool is_on_line = token >= k && (vertical.count(k) != 0 || slash.count(token - k) != 0);
              if (is_on_line) {
                ASSERT_TRUE(is_read) << s << " head " << h << " query " << q << " key " << k;
              }
              if (!is_read || is_on_line) continue;
              ASSERT_GE(token, k);
              bool is_fill = false;
              for (const int64_t o : slash) {  // within a tile of what some query of the row reads over an offset
                is_fill |= !aligned && k >= end - 32 - o && k < std::max<int64_t>(end - o, 32) + 31;
                for (int64_t other = end - 32; aligned && other < end; ++other) is_fill |= other >= o && (other - o) / 32 == k / 32;
              }
              for (const int64_t line : vertical) is_fill |= aligned && line / 32 == k / 32;
              ASSERT_TRUE(is_fill) << s << " head " << h << " query " << q << " key " << k;
            }
          }
        }
      }
    }
  }
  EXPECT_GE(compared * 10, heads * 9);
}

TEST(MInference, ReadsASingleKeyWhereNoRunHoldsIt) {
  const TestProblem test({1, 1, 1, 600, 600, 16}, Dtype::f32, Mask::causal(), 8);
  Options options;
  options.vertical = 60;
  options.slash = 50;
  options.nearest = 50;
  options.first = 60;
  const Plan plan = plan_of(test.problem, options);  // keys 0 to 59 and offsets 0 to 49
  const plan::Runs picked = plan::runs_of(plan->by_query.picked, 0, 0, 1, 9), whole = plan::runs_of(plan->by_query.whole, 0, 0, 1, 9);
  EXPECT_EQ(picked.count, 60);
  EXPECT_EQ(whole.count, 0);
  EXPECT_EQ(plan::runs_of(plan->by_query.masked, 0, 0, 1, 9).start[0], 640 - 64 - 49) << "unaligned";
}

// Oracle 5: as many lines as there are, or as many tiles, is dense.
TEST(MInference, WithEverythingKeptIsDense) {
  const TestProblem test({1, 2, 1, 150, 150, 16}, Dtype::f32, Mask::causal(), 3);
  Context context;
  const Bits dense = testing::bits_of(*plan_with("dense", test.problem, {}, context).plan, true);
  for (const bool aligned : {false, true}) {
    Options options;
    options.aligned = aligned;
    options.vertical = 0;
    options.slash = 150;
    EXPECT_TRUE(testing::bits_of(*plan_of(test.problem, options), true) == dense);
    options.vertical = 150;
    options.slash = 50;
    EXPECT_TRUE(testing::bits_of(*plan_of(test.problem, options), true) == dense);
  }
  Options blocks;
  blocks.pattern = Options::Pattern::block_sparse;
  blocks.blocks = 3;
  EXPECT_TRUE(testing::bits_of(*plan_of(test.problem, blocks), true) == dense);
}

TEST(MInference, BlockSparseKeepsTheBestProducts) {
  unsigned seed = 900;
  for (const testing::Sizes& s : testing::problem_sizes()) {
    for (const int count : {0, 1, 3}) {
      const TestProblem test(s, Dtype::f32, Mask::causal(), ++seed);
      Options options;
      options.pattern = Options::Pattern::block_sparse;
      options.blocks = count;
      options.tile = 16;
      testing::expect_tiles(plan_of(test.problem, options), test, 16, [&](int64_t b, int h, size_t, int64_t q_first, int64_t q_last) {
        testing::Choice choice;
        const int64_t last_token = q_last - 1 + s.seqlen_k - s.seqlen_q;
        if (last_token < 0 || s.seqlen_k == 0) return choice;
        const auto mean = [&](const testing::TestTensor& x, int64_t head, int64_t first, int64_t last, int64_t d) {
          double sum = 0;
          for (int64_t t = first; t < last; ++t) sum += x.get(b, head, t, d);
          return sum / static_cast<double>(last - first);
        };
        std::vector<double> products;
        for (int64_t j = 0; j <= last_token / 16; ++j) {
          double dot = 0;
          for (int64_t d = 0; d < s.dim; ++d)
            dot += mean(test.q, h, q_first, q_last, d) * mean(test.k, test.head_kv(h), j * 16, std::min<int64_t>(s.seqlen_k, j * 16 + 16), d);
          products.push_back(dot);
        }
        choice.tiles = testing::best(products, count, 0, choice.distance);
        choice.tiles.insert(last_token / 16);
        return choice;
      });
    }
  }
}

TEST(MInference, GivesEachHeadItsPattern) {
  const TestProblem test({1, 4, 2, 300, 300, 16}, Dtype::f32, Mask::causal(), 4);
  const std::vector<Options::Head> heads = {{Options::Pattern::a_shape, {7, 90}},
                                            {Options::Pattern::vertical_slash, {40, 60}},
                                            {Options::Pattern::block_sparse, {2, 0}},
                                            {Options::Pattern::a_shape, {20, 33}}};
  Options mixed;
  mixed.tile = 32;
  mixed.nearest = 10;
  mixed.heads = heads;
  Bits together = testing::bits_of(*plan_of(test.problem, mixed), true);
  for (int h = 0; h < 4; ++h) {
    Options alone = mixed;
    alone.heads.assign(4, heads[static_cast<size_t>(h)]);
    Bits bits = testing::bits_of(*plan_of(test.problem, alone), true);
    for (int64_t q = 0; q < 300; ++q) {
      for (int64_t k = 0; k < 300; ++k) ASSERT_EQ(together.at(0, h, q, k), bits.at(0, h, q, k)) << h << " " << q << " " << k;
    }
  }
  for (int64_t q = 0; q < 300; ++q) {
    for (int64_t k = 0; k < 300; ++k) ASSERT_EQ(together.at(0, 0, q, k) != 0, q >= k && (q - k < 90 || k < 7));
  }
}

TEST(MInference, AShapeEqualsTheMethodOfThatName) {
  const TestProblem test({1, 2, 1, 300, 300, 16}, Dtype::f32, Mask::causal(), 4);
  Options options;
  options.pattern = Options::Pattern::a_shape;
  options.init = 9;
  options.local = 70;
  Context context;
  const Plan a_shape = plan_with("a_shape", test.problem, {{"init", int64_t{9}}, {"local", int64_t{70}}}, context).plan;
  const Plan plan = plan_of(test.problem, options);
  EXPECT_TRUE(testing::bits_of(*plan, true) == testing::bits_of(*a_shape, true));
  EXPECT_EQ(reads(plan), reads(a_shape));
  EXPECT_EQ(plan->dense_reads, a_shape->dense_reads);
}

TEST(MInference, RatioScalesTheSizes) {
  const TestProblem test({1, 2, 1, 400, 400, 16}, Dtype::f32, Mask::causal(), 4);
  Options doubled, plain;
  doubled.vertical = 40;
  doubled.slash = 70;
  doubled.ratio = 2;
  plain.vertical = 80;
  plain.slash = 140;
  EXPECT_TRUE(testing::bits_of(*plan_of(test.problem, doubled), true) == testing::bits_of(*plan_of(test.problem, plain), true));
}

// static_pattern: the lines of one prompt for another, and for a longer one.
TEST(MInference, TakesTheLinesOfAnEarlierCall) {
  const TestProblem first({2, 2, 1, 300, 300, 16}, Dtype::f32, Mask::causal(), 4), other({2, 2, 1, 300, 300, 16}, Dtype::f32, Mask::causal(), 5);
  Options options;
  options.vertical = 40;
  options.slash = 60;
  options.nearest = 20;
  options.tile = 32;
  Context context;
  const std::vector<select::Lines> lines = minference_lines(first.problem, options, context);
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_EQ(lines[3].vertical.size(), 40u);
  EXPECT_EQ(lines[3].slash.size(), 60u);
  Options given = options;
  given.lines = lines;
  EXPECT_TRUE(testing::bits_of(*plan_of(other.problem, given), true) == testing::bits_of(*plan_of(first.problem, options), true));
  EXPECT_FALSE(testing::bits_of(*plan_of(other.problem, given), true) == testing::bits_of(*plan_of(other.problem, options), true));

  // A chunk that continues a cache, of fewer or more keys: each pair on a line that there is, beside what a run reads more.
  for (const int64_t keys : {97, 470}) {
    const TestProblem chunk({2, 2, 1, 90, keys, 16}, Dtype::f32, Mask::causal(), 6);
    Bits read = testing::bits_of(*plan_of(chunk.problem, given), true);
    int64_t left_out = 0;
    for (int64_t b = 0; b < 2; ++b) {
      for (int h = 0; h < 2; ++h) {
        const select::Lines& of = lines[static_cast<size_t>(b * 2 + h)];
        for (int64_t q = 0; q < 90; ++q) {
          for (int64_t k = 0; k < keys; ++k) {
            const int64_t back = q + keys - 90 - k;
            const auto holds = [](const std::vector<int32_t>& list, int64_t x) {
              return std::binary_search(list.begin(), list.end(), static_cast<int32_t>(x));
            };
            if (back >= 0 && (holds(of.vertical, k) || holds(of.slash, back))) {
              ASSERT_NE(read.at(b, h, q, k), 0) << keys << " " << q << " " << k;
            }
            left_out += back >= 0 && read.at(b, h, q, k) == 0 ? 1 : 0;
          }
        }
      }
    }
    EXPECT_EQ(left_out > 0, keys == 470);
  }

  // One set for all batch entries; heads of other patterns have none.
  given.lines = {lines[0], lines[1]};
  Bits shared = testing::bits_of(*plan_of(other.problem, given), true);
  for (int64_t k = 0; k < 300; ++k) ASSERT_EQ(shared.at(0, 1, 299, k), shared.at(1, 1, 299, k));
  options.pattern = Options::Pattern::block_sparse;
  EXPECT_TRUE(minference_lines(first.problem, options, context)[0].slash.empty());
}

TEST(MInference, RefusesLinesThatDoNotFit) {
  const TestProblem test({2, 2, 1, 40, 40, 16}, Dtype::f32, Mask::causal(), 4);
  Context context;
  for (const std::vector<select::Lines>& lines : std::vector<std::vector<select::Lines>>{{{{0}, {0}}},
                                                                                         {{{0}, {0}}, {{0}, {0}}, {{0}, {0}}},
                                                                                         {{{0}, {0}}, {{3, 3}, {0}}},
                                                                                         {{{0}, {0}}, {{3}, {4, 0}}},
                                                                                         {{{-1, 0}, {0}}, {{3}, {0}}}}) {
    Options options;
    options.lines = lines;
    try {
      minference(test.problem, options, context);
      ADD_FAILURE() << "passed";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), Error::Kind::value);
      EXPECT_EQ(std::string(error.what()).rfind("minference: option lines", 0), 0u) << error.what();
    }
  }
}

TEST(MInference, RefusesHeadsThatDoNotFit) {
  const TestProblem test({1, 2, 1, 40, 40, 16}, Dtype::f32, Mask::causal(), 4);
  Context context;
  const auto kind_of = [&](const std::vector<Options::Head>& heads) {
    Options options;
    options.heads = heads;
    try {
      minference(test.problem, options, context);
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).rfind("minference: ", 0), 0u) << error.what();
      return error.kind();
    }
    return Error::Kind::io;
  };
  EXPECT_EQ(kind_of({{}}), Error::Kind::value);
  EXPECT_EQ(kind_of({{}, {Options::Pattern::a_shape, {4, 0}}}), Error::Kind::value);
  EXPECT_EQ(kind_of({{}, {Options::Pattern::vertical_slash, {-1, 9}}}), Error::Kind::value);
  EXPECT_EQ(kind_of({{}, {}}), Error::Kind::io) << "good ones pass";
}

}  // namespace
}  // namespace tilewise::method
