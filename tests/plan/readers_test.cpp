// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "tilewise/plan/axis.h"
#include "tilewise/plan/mask.h"
#include "tilewise/plan/rows.h"

namespace tilewise::plan {
namespace {

/// Views of numbers that nobody reads: only shapes count here.
TensorView shape_alone(const Shape& shape) {
  static int64_t number = 0;
  return {&number, Dtype::i64, shape};
}

TEST(DistinctReaders, AreThoseOfEveryHeadAndBatchEntryCounted) {
  for (unsigned seed = 1; seed <= 300; ++seed) {
    std::mt19937 engine(seed);
    const auto below = [&](int most) { return std::uniform_int_distribution<int>(0, most - 1)(engine); };
    PlanData data;
    data.batch = 1 + below(3);
    data.heads_q = std::vector<int>{1, 4, 6, 12}[static_cast<size_t>(below(4))];
    const auto view = [&] {
      int groups = 1 + below(data.heads_q);
      while (data.heads_q % groups != 0) --groups;
      return shape_alone({below(2) == 0 ? data.batch : 1, groups, 3});
    };
    for (RunList* list : {&data.by_query.whole, &data.by_query.masked, &data.by_query.picked}) {
      if (below(2) == 0) continue;
      list->begin = view();
      list->count = view();
    }
    if (below(3) == 0) data.order_q.token = view();
    data.mask.bands.resize(2);
    if (below(2) == 0) {
      for (int head = 0; head < data.heads_q; ++head) data.mask.head_class.push_back(static_cast<uint8_t>(below(2)));
    }
    std::map<std::vector<int64_t>, std::tuple<int64_t, int, int64_t>> expected;
    for (int64_t b = 0; b < data.batch; ++b) {
      for (int head = 0; head < data.heads_q; ++head) {
        std::vector<int64_t> key{head_class(data.mask, head)};
        for (const RunList* list : {&data.by_query.whole, &data.by_query.masked, &data.by_query.picked}) {
          for (const TensorView* of : {&list->begin, &list->count}) {
            if (of->has_value()) key.insert(key.end(), {batch_index(*of, b), group_index(*of, head, data.heads_q)});
          }
        }
        const TensorView& token = data.order_q.token;
        if (token.has_value()) key.insert(key.end(), {batch_index(token, b), group_index(token, head, data.heads_q)});
        ++std::get<2>(expected.try_emplace(key, b, head, 0).first->second);
      }
    }
    std::map<std::pair<int64_t, int>, int64_t> times;
    for (const auto& [key, reader] : expected) times[{std::get<0>(reader), std::get<1>(reader)}] = std::get<2>(reader);
    const std::vector<Reader> readers = distinct_readers(data, data.by_query);
    EXPECT_EQ(readers.size(), times.size()) << "seed " << seed;
    for (const Reader& reader : readers) EXPECT_EQ(reader.times, (times[{reader.b, reader.head}])) << "seed " << seed;
  }
}

// A file may say so; what it costs to find out is that of its arrays, not of its heads.
TEST(DistinctReaders, OfVeryManyHeadsThatShareOneListAreOne) {
  PlanData data;
  data.batch = 1 << 10;
  data.heads_q = 1 << 14;
  data.by_query.whole.begin = data.by_query.whole.count = shape_alone({1, 1, 3});
  const std::vector<Reader> readers = distinct_readers(data, data.by_query);
  ASSERT_EQ(readers.size(), 1U);
  EXPECT_EQ(readers.front().times, int64_t{1} << 24);
}

}  // namespace
}  // namespace tilewise::plan
