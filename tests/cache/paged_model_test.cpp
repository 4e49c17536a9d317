// SPDX-License-Identifier: Apache-2.0
// Random scripts of operations on a paged cache, and beside it a model that keeps every row of every sequence in vectors and pages as shared pointers.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <set>

#include "tests/base/error_kind.h"
#include "tests/cache/paged_testing.h"

namespace tilewise::testing {
namespace {

struct ModelPage {
  explicit ModelPage(int64_t& count) : live(count) { ++live; }
  ModelPage(const ModelPage&) = delete;
  ModelPage& operator=(const ModelPage&) = delete;
  ~ModelPage() { --live; }
  int64_t& live;
};
using PagePointer = std::shared_ptr<ModelPage>;

struct ModelSequence {
  int64_t length = 0, reserved = 0;
  std::vector<std::vector<PagePointer>> pages;  // [page][layer * heads + head]; null: evicted
  std::vector<std::vector<std::vector<float>>> k, v;  // [layer * heads + head][token][D]
  std::vector<int64_t> written;
  std::map<int64_t, int> cuts;  // of full pages: how often
  bool is_pending = false;
};

class Script {
 public:
  Script(const PagedCacheOptions& options, uint64_t seed) : o_(options), rng_(seed), cache_(options, host_memory()) {}

  void run(int steps) {
    for (int i = 0; i < steps && !::testing::Test::HasFailure(); ++i) {
      step();
      expect_equal("step " + std::to_string(i));
    }
    while (!model_.empty()) {
      cache_.drop(model_.begin()->first);
      model_.erase(model_.begin());
    }
    EXPECT_EQ(cache_.free_pages(), o_.num_pages);
    EXPECT_EQ(cache_.num_sequences(), 0);
  }

  int full() const { return full_; }  // how often the pool was

 private:
  int64_t page() const { return o_.page_size; }
  int64_t lanes() const { return int64_t{o_.num_layers} * o_.heads_kv; }
  int64_t pages_for(int64_t tokens) const { return (tokens + page() - 1) / page(); }
  bool is_coded(const PagedStore& store) const { return store.dtype == Dtype::i8 || store.dtype == Dtype::u8; }

  static int64_t shared(const std::vector<PagePointer>& pages) {
    return std::count_if(pages.begin(), pages.end(), [](const PagePointer& p) { return p != nullptr && p.use_count() > 1; });
  }
  void unshare(std::vector<PagePointer>& pages) {
    for (PagePointer& p : pages) {
      if (p != nullptr && p.use_count() > 1) p = std::make_shared<ModelPage>(live_);
    }
  }
  // Whether something of a page that is cut behind `rows` is shared by rows on both sides of the cut.
  bool cut_matters(int64_t rows) const {
    const auto splits = [&](const PagedStore& s) {
      return is_coded(s) && s.scales.empty() && rows % (s.group.tokens == 0 ? page() : s.group.tokens) != 0;
    };
    return rows > 0 && ((o_.statistics_tokens > 0 && rows % o_.statistics_tokens != 0) || splits(o_.k) || splits(o_.v));
  }
  static void forget_pending(ModelSequence& m) {
    for (auto* side : {&m.k, &m.v}) {
      for (auto& rows : *side) rows.resize(static_cast<size_t>(m.length));
    }
    m.written.assign(m.written.size(), m.length);
    m.is_pending = false;
  }

  void step() {
    const int64_t what = draw(rng_, 0, 99);
    if (model_.empty() || (what < 5 && model_.size() < 4)) {
      ModelSequence m;
      m.k.resize(static_cast<size_t>(lanes()));
      m.v.resize(static_cast<size_t>(lanes()));
      m.written.assign(static_cast<size_t>(o_.num_layers), 0);
      model_[cache_.add()] = m;
      return;
    }
    auto it = model_.begin();
    std::advance(it, draw(rng_, 0, static_cast<int64_t>(model_.size()) - 1));
    const int64_t id = it->first;
    ModelSequence& m = it->second;
    if (what < 10) {
      cache_.drop(id);
      model_.erase(it);
      EXPECT_EQ(kind_of([&] { cache_.length(id); }), "value");
    } else if (what < 20 && model_.size() < 5) {
      fork(id, m);
    } else if (what < 28) {
      truncate(id, m);
    } else if (what < 33) {
      evict(id, m);
    } else {
      pass(id, m);
    }
  }

  void fork(int64_t id, ModelSequence& m) {
    const int64_t child = cache_.fork(id);
    forget_pending(m);
    ModelSequence copy = m;
    copy.pages.resize(static_cast<size_t>(pages_for(m.length)));
    copy.reserved = m.length;
    if (m.length % page() != 0) m.reserved = m.length;
    model_[child] = std::move(copy);
  }

  void truncate(int64_t id, ModelSequence& m) {
    const int64_t length = draw(rng_, 0, 3) == 0 ? m.length : draw(rng_, 0, m.length), rows = length % page(), at = length / page();
    const bool is_changed = m.is_pending || length < m.length;
    std::vector<PagePointer>* const last = rows > 0 ? &m.pages[static_cast<size_t>(at)] : nullptr;
    if (last != nullptr && length < m.length && std::find(last->begin(), last->end(), nullptr) != last->end()) {
      EXPECT_EQ(kind_of([&] { cache_.truncate(id, length); }), "value");
      return;
    }
    int64_t needed = 0, freed = 0;
    if (is_changed && cut_matters(rows)) {
      needed = shared(*last);
      for (auto p = static_cast<size_t>(pages_for(length)); p < m.pages.size(); ++p) {
        freed += std::count_if(m.pages[p].begin(), m.pages[p].end(), [](const PagePointer& one) { return one != nullptr && one.use_count() == 1; });
      }
    }
    const std::string kind = kind_of([&] { cache_.truncate(id, length); });
    if (needed > o_.num_pages - live_ + freed) {
      EXPECT_EQ(kind, "memory");
      ++full_;
      return;
    }
    EXPECT_EQ(kind, "none");
    m.pages.resize(static_cast<size_t>(pages_for(length)));
    if (needed > 0) unshare(m.pages[static_cast<size_t>(at)]);
    if (at < m.length / page() && rows > 0) ++m.cuts[at];
    m.cuts.erase(m.cuts.upper_bound(rows > 0 ? at : at - 1), m.cuts.end());
    m.length = m.reserved = length;
    forget_pending(m);
  }

  size_t lane_of(int layer, int head) const { return static_cast<size_t>(int64_t{layer} * o_.heads_kv + head); }

  void evict(int64_t id, ModelSequence& m) {
    const int64_t first = draw(rng_, 0, m.length), stop = draw(rng_, first, m.length);
    const int layer = static_cast<int>(draw(rng_, 0, o_.num_layers - 1)), head = static_cast<int>(draw(rng_, 0, o_.heads_kv - 1));
    cache_.evict(id, layer, head, first, stop);
    for (int64_t p = 0; p < static_cast<int64_t>(m.pages.size()); ++p) {
      if (p * page() >= first && (p + 1) * page() <= stop) m.pages[static_cast<size_t>(p)][lane_of(layer, head)] = nullptr;
    }
  }

  // reserve, write in pieces, perhaps begin a layer anew, advance by all or by less, or give up.
  void pass(int64_t id, ModelSequence& m) {
    const int64_t tokens = draw(rng_, 0, 2) == 0 ? draw(rng_, 0, 3 * page()) : draw(rng_, 0, 5), places = m.length + tokens;
    int64_t needed = 0;
    if (places > m.reserved) {
      needed = std::max<int64_t>(0, pages_for(places) - static_cast<int64_t>(m.pages.size())) * lanes();
      if (m.length % page() != 0) needed += shared(m.pages[static_cast<size_t>(m.length / page())]);
    }
    EXPECT_EQ(cache_.pages_needed(id, tokens), needed);
    const std::string kind = kind_of([&] { cache_.reserve(id, tokens); });
    if (needed > o_.num_pages - live_) {
      EXPECT_EQ(kind, "memory");
      ++full_;
      return;
    }
    EXPECT_EQ(kind, "none");
    if (places > m.reserved) {
      if (m.length % page() != 0) unshare(m.pages[static_cast<size_t>(m.length / page())]);
      while (static_cast<int64_t>(m.pages.size()) < pages_for(places)) {
        auto& lane = m.pages.emplace_back();
        for (int64_t i = 0; i < lanes(); ++i) lane.push_back(std::make_shared<ModelPage>(live_));
      }
      m.reserved = places;
    }
    EXPECT_EQ(cache_.reserved(id), m.reserved);
    EXPECT_EQ(kind_of([&] {
                const Tensor k = random_rows(rng_, o_.heads_kv, m.reserved - m.length + 1, o_.head_dim);
                const Tensor v = random_rows(rng_, o_.heads_kv, m.reserved - m.length + 1, cache_.options().head_dim_v);
                Context context;
                cache_.write(id, 0, m.length, k.view, v.view, context);
              }),
              "value");
    const int64_t counted = draw(rng_, 0, 5) == 0 ? draw(rng_, 0, tokens) : tokens;
    const bool is_given_up = draw(rng_, 0, 7) == 0;
    for (int layer = 0; layer < o_.num_layers; ++layer) {
      if (draw(rng_, 0, 4) == 0) write(id, m, layer, m.length, draw(rng_, 0, tokens));  // is begun anew below
      int64_t at = m.length;
      while (at < places) {
        const int64_t count = draw(rng_, 1, places - at);
        write(id, m, layer, at, count);
        at += count;
      }
      if (is_given_up && draw(rng_, 0, 1) == 0) break;
    }
    if (is_given_up) return;
    if (std::all_of(m.written.begin(), m.written.end(), [&](int64_t at) { return at == places; })) {
      EXPECT_EQ(kind_of([&] { cache_.advance(id, tokens + 1); }), "value");
    }
    cache_.advance(id, counted);
    m.length += counted;
    const int64_t at = m.length / page();
    if (counted < tokens && m.length % page() != 0 && places - 1 >= (at + 1) * page()) ++m.cuts[at];
    forget_pending(m);
  }

  void write(int64_t id, ModelSequence& m, int layer, int64_t first, int64_t count) {
    const Tensor k = random_rows(rng_, o_.heads_kv, count, o_.head_dim), v = random_rows(rng_, o_.heads_kv, count, cache_.options().head_dim_v);
    Context context;
    cache_.write(id, layer, first, k.view, v.view, context);
    for (int head = 0; head < o_.heads_kv; ++head) {
      const size_t lane = lane_of(layer, head);
      for (const bool is_key : {true, false}) {
        auto& rows = is_key ? m.k[lane] : m.v[lane];
        const TensorView& x = is_key ? k.view : v.view;
        rows.resize(static_cast<size_t>(first));
        for (int64_t t = 0; t < count; ++t) rows.emplace_back(&x.at<float>(0, head, t), &x.at<float>(0, head, t) + x.dim(3));
      }
    }
    m.written[static_cast<size_t>(layer)] = first + count;
    m.is_pending = m.is_pending || count > 0;
  }

  void expect_equal(const std::string& what) {
    SCOPED_TRACE(what);
    ASSERT_EQ(cache_.free_pages(), o_.num_pages - live_);
    ASSERT_EQ(cache_.num_sequences(), static_cast<int64_t>(model_.size()));
    std::vector<int64_t> ids;
    for (const auto& [id, m] : model_) {
      ids.push_back(id);
      ASSERT_EQ(cache_.length(id), m.length);
      ASSERT_EQ(cache_.reserved(id), m.reserved);
    }
    if (ids.empty()) return;
    const PagedBatch batch = cache_.batch(ids, 0, host_memory());
    for (size_t b = 0; b < ids.size(); ++b) {
      const ModelSequence& m = model_[ids[b]];
      ASSERT_EQ(batch.lengths.view.at<int32_t>(b), m.length);
      for (int layer = 0; layer < o_.num_layers; ++layer) {
        for (int head = 0; head < o_.heads_kv; ++head) expect_lane(batch, static_cast<int64_t>(b), m, layer, head);
      }
    }
  }

  void expect_lane(const PagedBatch& batch, int64_t b, const ModelSequence& m, int layer, int head) {
    const Paged &k = batch.k[static_cast<size_t>(layer)], &v = batch.v[static_cast<size_t>(layer)];
    const size_t lane = lane_of(layer, head);
    for (int64_t p = 0; p < k.table.dim(2); ++p) {
      const int32_t entry = k.table.at<int32_t>(b, head, p);
      const bool is_there = p < pages_for(m.length) && m.pages[static_cast<size_t>(p)][lane] != nullptr;
      ASSERT_EQ(entry >= 0, is_there) << "page " << p;
      ASSERT_EQ(v.table.at<int32_t>(b, head, p), entry);
      if (!is_there) continue;
      const int64_t first = p * page(), last = std::min(m.length, first + page());
      if (m.is_pending && last == m.length && m.length % page() != 0) continue;  // coded with what a pass has begun to write
      const auto cuts = m.cuts.find(p);
      const int times = cuts == m.cuts.end() ? 0 : cuts->second;
      for (const bool is_key : {true, false}) {
        const PagedStore& store = is_key ? o_.k : o_.v;
        const auto& rows = is_key ? m.k[lane] : m.v[lane];
        const std::vector<float> want = kept(store, layer, o_.page_size, rows, first, last);
        const auto channels = static_cast<int64_t>(rows[0].size());
        // Numbers of a page that was cut are those of the codes before, coded once more: each time half a scale off. Rows that went may have made the
        // scale. With a given scale the codes stay; what it saturates is off by more, in the statistics of such a page, too.
        const bool is_given = !store.scales.empty();
        const float half = is_given ? 0.0f : 24.0f / (store.dtype == Dtype::u8 ? 7.0f : 127.0f);
        const float bound = times == 0 || !is_coded(store) ? 0.0f : static_cast<float>(times + 1) * half;
        const float of_statistics = is_given && times > 0 ? 24.0f : bound;
        for (int64_t t = first; t < last; ++t) {
          for (int64_t d = 0; d < channels; ++d) {
            const float got = read_number(is_key ? k : v, b, head, t, d);
            const float from =
                bound == 0 ? want[static_cast<size_t>((t - first) * channels + d)] : rows[static_cast<size_t>(t)][static_cast<size_t>(d)];
            ASSERT_LE(std::abs(got - from), bound) << (is_key ? "k" : "v") << " of token " << t << ", channel " << d << ", cuts " << times;
          }
        }
        if (is_key && o_.statistics_tokens > 0)
          expect_statistics(k.statistics, entry, is_coded(store) ? std::vector<float>{} : want, rows, first, last, of_statistics);
      }
    }
  }

  void expect_statistics(const PageStatistics& s, int32_t entry, const std::vector<float>& numbers, const std::vector<std::vector<float>>& rows,
                         int64_t first, int64_t last, float bound) {
    ASSERT_EQ(s.tokens, o_.statistics_tokens);
    const auto channels = static_cast<int64_t>(rows[0].size());
    for (int64_t at = first; at < last; at += s.tokens) {
      for (int64_t d = 0; d < channels; ++d) {
        float least = INFINITY, most = -INFINITY, sum = 0;
        for (int64_t t = at; t < std::min(last, at + s.tokens); ++t) {
          const float x =
              numbers.empty() ? rows[static_cast<size_t>(t)][static_cast<size_t>(d)] : numbers[static_cast<size_t>((t - first) * channels + d)];
          least = std::min(least, x);
          most = std::max(most, x);
          sum = t == at ? x : sum + x;
        }
        const int64_t sub = (at - first) / s.tokens;
        ASSERT_LE(std::abs(s.min.at<float>(entry, sub, d) - least), bound);
        ASSERT_LE(std::abs(s.max.at<float>(entry, sub, d) - most), bound);
        ASSERT_LE(std::abs(s.sum.at<float>(entry, sub, d) - sum), bound * static_cast<float>(s.tokens));
      }
    }
  }

  PagedCacheOptions o_;
  Rng rng_;
  PagedKvCache cache_;
  int64_t live_ = 0;  // outlives the pages of the model
  std::map<int64_t, ModelSequence> model_;
  int full_ = 0;
};

TEST(PagedKvCacheModel, EqualsRowsInVectors) {
  Rng rng(5);
  const char* const text = std::getenv("TILEWISE_TEST_CASES");
  const int cases = text == nullptr ? 60 : std::atoi(text);
  int full = 0;
  for (int i = 0; i < cases; ++i) {
    const auto one_of = [&](std::initializer_list<int> values) { return *(values.begin() + draw(rng, 0, static_cast<int64_t>(values.size()) - 1)); };
    PagedCacheOptions o;
    o.num_layers = one_of({1, 2, 3});
    o.heads_kv = one_of({1, 2});
    o.head_dim = one_of({4, 6});
    o.head_dim_v = one_of({0, 8});
    o.page_size = one_of({1, 4, 16, 12});
    o.statistics_tokens = o.page_size == 1 ? one_of({0, 1}) : one_of({0, 2, 4, o.page_size});
    o.num_pages = int64_t{o.num_layers} * o.heads_kv * one_of({6, 12, 20});
    for (PagedStore* store : {&o.k, &o.v}) {
      store->dtype = static_cast<Dtype>(one_of({static_cast<int>(Dtype::f32), static_cast<int>(Dtype::bf16), static_cast<int>(Dtype::f16),
                                                static_cast<int>(Dtype::i8), static_cast<int>(Dtype::u8)}));
      if (store->dtype != Dtype::i8 && store->dtype != Dtype::u8) continue;
      if (one_of({0, 1, 2, 3}) == 0) {
        for (int layer = 0; layer < o.num_layers; ++layer) store->scales.push_back(0.05f * static_cast<float>(layer + 1));
        continue;
      }
      store->has_zero = one_of({0, 1}) == 1;
      store->group = {one_of({0, 0, 1, 3}), one_of({0, 0, 1, 4})};
    }
    Script script(o, rng());
    script.run(150);
    full += script.full();
    ASSERT_FALSE(HasFailure()) << "case " << i << ": page " << o.page_size << ", statistics of " << o.statistics_tokens << ", k " << name(o.k.dtype)
                               << ", v " << name(o.v.dtype) << ", layers " << o.num_layers << ", heads " << o.heads_kv;
  }
  EXPECT_GE(full, 5 * cases) << "the pool was hardly ever full";
}

}  // namespace
}  // namespace tilewise::testing
