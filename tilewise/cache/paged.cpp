// SPDX-License-Identifier: Apache-2.0
#include "tilewise/cache/paged.h"

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <optional>

#include "tilewise/base/error.h"
#include "tilewise/cache/page_store.h"
#include "tilewise/cache/rows.h"

namespace tilewise::cache {
namespace {

using Kind = Error::Kind;

constexpr int32_t kNone = -1;
constexpr int64_t kMostTokens = std::numeric_limits<int32_t>::max();

PagedCacheOptions checked(const PagedCacheOptions& o) {
  const auto in_range = [](const char* name, int64_t value, int64_t least, int64_t most) {
    check(value >= least && value <= most, Kind::value, "PagedKvCache: ", name, " is ", value, ", takes ", least, " to ", most);
  };
  in_range("num_layers", o.num_layers, 1, 1 << 20);
  in_range("heads_kv", o.heads_kv, 1, 1 << 20);
  in_range("head_dim", o.head_dim, 1, 1 << 20);
  in_range("head_dim_v", o.head_dim_v, 0, 1 << 20);
  in_range("num_pages", o.num_pages, 0, kMostTokens);
  in_range("page_size", o.page_size, 1, 256);
  in_range("statistics_tokens", o.statistics_tokens, 0, o.page_size);
  check(o.statistics_tokens == 0 || o.page_size % o.statistics_tokens == 0, Kind::value, "PagedKvCache: statistics_tokens is ", o.statistics_tokens,
        ", takes a divisor of the page_size ", o.page_size, ", or 0 for none");
  return o;
}

/// The unquantised numbers of up to two pages of each layer of a sequence: the one that its length lies in, and the one that was written last.
struct Staging {
  Tensor k, v;  // [2, layers, Hkv, page, D] f32; absent where they are kept as numbers

  Tensor& of(bool is_key) { return is_key ? k : v; }
};

struct Sequence {
  int64_t length = 0, reserved = 0;
  std::vector<int32_t> table;           // [pages, layers, heads]; kNone: evicted
  std::vector<int64_t> written;         // of each layer, where its last write ended
  std::vector<int64_t> touched;         // of each layer, the furthest place that a write since the last settle may have touched
  std::shared_ptr<Staging> staging;     // copied before it is written where another sequence has it, too
  std::vector<std::array<int64_t, 2>> staged;  // of each layer, the pages that are in it, or -1
};

}  // namespace
}  // namespace tilewise::cache

TILEWISE_BEGIN_PUBLIC

struct PagedKvCache::State {
  using Sequence = cache::Sequence;
  using Kind = Error::Kind;

  PagedCacheOptions options;
  std::shared_ptr<Memory> memory;
  cache::PageStore k, v;  // first: what is too large fails here
  std::optional<cache::PageSums> sums;
  cache::PageCounts counts;
  std::map<int64_t, Sequence> sequences;
  int64_t next = 0;

  State(const PagedCacheOptions& given, const std::shared_ptr<Memory>& from)
      : options(cache::checked(given)),
        memory(from),
        k("k", given.k, given, given.head_dim, from),
        v("v", given.v, given, given.head_dim_v == 0 ? given.head_dim : given.head_dim_v, from),
        counts(given.num_pages) {
    options.head_dim_v = v.channels();
    if (options.statistics_tokens > 0) {
      sums.emplace(options.num_pages, options.page_size, options.statistics_tokens, options.head_dim, memory);
    }
  }

  int64_t page_size() const { return options.page_size; }
  int64_t lanes() const { return int64_t{options.num_layers} * options.heads_kv; }  // tables of a sequence
  int64_t pages_for(int64_t tokens) const { return (tokens + page_size() - 1) / page_size(); }
  bool is_quantised() const { return k.is_quantised() || v.is_quantised(); }

  Sequence& find(const char* function, int64_t sequence) {
    const auto it = sequences.find(sequence);
    check(it != sequences.end(), Kind::value, "PagedKvCache::", function, ": there is no sequence ", sequence,
          "; takes a number that add or fork gave, until drop");
    return it->second;
  }
  const Sequence& find(const char* function, int64_t sequence) const { return const_cast<State*>(this)->find(function, sequence); }
  void check_layer(const char* function, int layer) const {
    check(layer >= 0 && layer < options.num_layers, Kind::value, "PagedKvCache::", function, ": layer ", layer, " is not in [0, ", options.num_layers,
          ")");
  }

  int32_t& page_at(Sequence& s, int64_t page, int64_t layer, int64_t head) const {
    return s.table[static_cast<size_t>((page * options.num_layers + layer) * options.heads_kv + head)];
  }
  /// The pages that hold places from `first` on.
  std::span<int32_t> tail(Sequence& s, int64_t first) const { return std::span(s.table).subspan(static_cast<size_t>(pages_for(first) * lanes())); }
  /// The pages of the page number `page`, of all layers and heads; it is there.
  std::span<int32_t> lanes_of(Sequence& s, int64_t page) const {
    return std::span(s.table).subspan(static_cast<size_t>(page * lanes()), static_cast<size_t>(lanes()));
  }
  int64_t count_shared(std::span<const int32_t> pages) const {
    return std::count_if(pages.begin(), pages.end(), [&](int32_t page) { return page != cache::kNone && counts.is_shared(page); });
  }
  void release(std::span<int32_t> pages) noexcept {
    for (int32_t& page : pages) {
      if (page != cache::kNone) counts.release(page);
      page = cache::kNone;
    }
  }
  /// Gives a sequence copies of its own of pages that are shared; count_shared of them are free.
  void unshare(std::span<int32_t> pages) noexcept {
    for (int32_t& page : pages) {
      if (page == cache::kNone || !counts.is_shared(page)) continue;
      const int32_t copy = counts.take();
      k.copy_page(page, copy);
      v.copy_page(page, copy);
      if (sums) sums->copy_page(page, copy);
      counts.release(page);
      page = copy;
    }
  }

  Tensor new_staging(const cache::PageStore& store) const {
    if (!store.is_quantised()) return {};
    return Tensor(memory, Dtype::f32, {2, options.num_layers, options.heads_kv, page_size(), store.channels()});
  }
  /// Staging that no other sequence has, where the cache needs one.
  std::shared_ptr<cache::Staging> own_staging(const Sequence& s) const {
    if (!is_quantised() || (s.staging != nullptr && s.staging.use_count() == 1)) return s.staging;
    auto staging = std::make_shared<cache::Staging>(cache::Staging{new_staging(k), new_staging(v)});
    if (s.staging == nullptr) return staging;
    for (const bool is_key : {true, false}) {
      const TensorView& to = staging->of(is_key).view;
      if (to.has_value()) std::copy_n(s.staging->of(is_key).view.data<float>(), to.numel(), to.data<float>());
    }
    return staging;
  }
  /// Numbers of a page of one head in a place of the staging, [1, 1, page, D].
  TensorView staged_rows(const Sequence& s, bool is_key, int64_t place, int64_t layer, int64_t head) const {
    const TensorView& all = s.staging->of(is_key).view;
    return TensorView(all.data<float>() + all.offset(place, layer, head), Dtype::f32, {1, 1, page_size(), all.dim(4)});
  }
  /// The place of the staging that holds page number `page` of a layer; if none does, one that is not needed is given to it, with `rows` of what the
  /// codes stand for.
  int64_t stage(Sequence& s, int layer, int64_t page, int64_t rows) {
    auto& staged = s.staged[static_cast<size_t>(layer)];
    for (const size_t place : {0u, 1u}) {
      if (staged[place] == page) return static_cast<int64_t>(place);
    }
    const size_t place = staged[0] == s.length / page_size() ? 1 : 0;
    staged[place] = page;
    for (int64_t head = 0; head < options.heads_kv; ++head) {
      for (const bool is_key : {true, false}) {
        const cache::PageStore& store = is_key ? k : v;
        if (store.is_quantised())
          store.decode(layer, page_at(s, page, layer, head), staged_rows(s, is_key, static_cast<int64_t>(place), layer, head), rows);
      }
    }
    return static_cast<int64_t>(place);
  }

  /// Codes and statistics of a page whose rows [first, last) are new and which ends there.
  void finish(Sequence& s, int layer, int64_t head, int64_t page, int64_t place, int64_t first, int64_t last) const {
    const int32_t entry = page_at(s, page, layer, head);
    for (const bool is_key : {true, false}) {
      const cache::PageStore& store = is_key ? k : v;
      const TensorView rows = store.is_quantised() ? staged_rows(s, is_key, place, layer, head) : store.numbers(entry);
      if (store.is_quantised()) store.code(layer, entry, rows, store.first_of_group(first), last);
      if (is_key && sums) sums->take(entry, rows, sums->first_of_group(first), last);
    }
  }
  /// Forgets what is behind `length`, which is the sequence's from now on, also in codes and statistics of the page that it lies in. Those pages are
  /// its own.
  void settle(Sequence& s, int64_t length) {
    const int64_t rows = length % page_size(), page = length / page_size(), before = s.length;
    s.length = length;
    for (int layer = 0; layer < options.num_layers; ++layer) {
      int64_t& touched = s.touched[static_cast<size_t>(layer)];
      const bool is_cut = std::max(touched, before) > length && rows > 0;
      touched = length;
      s.written[static_cast<size_t>(layer)] = length;
      if (!is_cut) continue;
      const int64_t place = is_quantised() ? stage(s, layer, page, rows) : 0;
      for (int64_t head = 0; head < options.heads_kv; ++head) finish(s, layer, head, page, place, rows, rows);
    }
  }
  bool has_pending(const Sequence& s) const {
    return std::any_of(s.touched.begin(), s.touched.end(), [&](int64_t touched) { return touched > s.length; });
  }
  /// Whether a cut at `rows` of a page changes anything in what is left of it.
  bool cut_matters(int64_t rows) const {
    return rows > 0 && ((sums && sums->first_of_group(rows) != rows) || (k.is_quantised() && k.first_of_group(rows) != rows) ||
                        (v.is_quantised() && v.first_of_group(rows) != rows));
  }
  int64_t pages_needed(Sequence& s, int64_t tokens) const {
    const int64_t places = s.length + tokens;
    int64_t needed = std::max<int64_t>(0, pages_for(places) * lanes() - static_cast<int64_t>(s.table.size()));
    if (tokens > 0 && s.length % page_size() != 0) needed += count_shared(lanes_of(s, s.length / page_size()));
    return needed;
  }
  Sequence empty_sequence() const {
    Sequence s;
    const auto layers = static_cast<size_t>(options.num_layers);
    s.written.assign(layers, 0);
    s.touched.assign(layers, 0);
    s.staged.assign(layers, {-1, -1});
    return s;
  }

  void write_pages(Sequence& s, int layer, int64_t head, int64_t first, const TensorView& from_k, const TensorView& from_v,
                   std::span<const int64_t> places);
};

// Of one head; `places`: of the staging, for each page that is touched.
void PagedKvCache::State::write_pages(Sequence& s, int layer, int64_t head, int64_t first, const TensorView& from_k, const TensorView& from_v,
                                      std::span<const int64_t> places) {
  const int64_t stop = first + from_k.dim(2), first_page = first / page_size();
  for (int64_t page = first_page; page * page_size() < stop; ++page) {
    const int64_t begin = std::max(first, page * page_size()), end = std::min(stop, (page + 1) * page_size());
    const int64_t place = places[static_cast<size_t>(page - first_page)];
    for (const bool is_key : {true, false}) {
      const cache::PageStore& store = is_key ? k : v;
      const TensorView rows = store.is_quantised() ? staged_rows(s, is_key, place, layer, head) : store.numbers(page_at(s, page, layer, head));
      for (int64_t t = begin; t < end; ++t) cache::copy_row(is_key ? from_k : from_v, head, t - first, rows, 0, t - page * page_size());
    }
    finish(s, layer, head, page, place, begin - page * page_size(), end - page * page_size());
  }
}

PagedKvCache::PagedKvCache(const PagedCacheOptions& options, const std::shared_ptr<Memory>& memory)
    : state_(std::make_unique<State>(options, memory)) {}
PagedKvCache::PagedKvCache(PagedKvCache&&) noexcept = default;
PagedKvCache& PagedKvCache::operator=(PagedKvCache&&) noexcept = default;
PagedKvCache::~PagedKvCache() = default;

const PagedCacheOptions& PagedKvCache::options() const { return state_->options; }
int64_t PagedKvCache::free_pages() const { return state_->counts.num_free(); }
int64_t PagedKvCache::num_sequences() const { return static_cast<int64_t>(state_->sequences.size()); }
int64_t PagedKvCache::length(int64_t sequence) const { return state_->find("length", sequence).length; }
int64_t PagedKvCache::reserved(int64_t sequence) const { return state_->find("reserved", sequence).reserved; }

int64_t PagedKvCache::add() {
  state_->sequences.emplace(state_->next, state_->empty_sequence());
  return state_->next++;
}

int64_t PagedKvCache::fork(int64_t sequence) {
  State& state = *state_;
  State::Sequence& parent = state.find("fork", sequence);
  State::Sequence child = state.empty_sequence();
  const auto held = static_cast<std::ptrdiff_t>(state.pages_for(parent.length) * state.lanes());
  child.table.assign(parent.table.begin(), parent.table.begin() + held);
  child.length = child.reserved = parent.length;
  child.written.assign(child.written.size(), parent.length);
  child.touched = child.written;
  const bool is_within_page = parent.length % state.page_size() != 0;
  auto& made = state.sequences.emplace(state.next, std::move(child)).first->second;
  if (state.has_pending(parent)) state.settle(parent, parent.length);
  if (is_within_page) {
    parent.reserved = parent.length;
    made.staging = parent.staging;
    made.staged = parent.staged;
  }
  for (const int32_t page : made.table) {
    if (page != cache::kNone) state.counts.share(page);
  }
  return state.next++;
}

void PagedKvCache::drop(int64_t sequence) {
  State::Sequence& s = state_->find("drop", sequence);
  state_->release(s.table);
  state_->sequences.erase(sequence);
}

int64_t PagedKvCache::pages_needed(int64_t sequence, int64_t tokens) const {
  State::Sequence& s = state_->find("pages_needed", sequence);
  check(tokens >= 0 && tokens <= cache::kMostTokens - s.length, Error::Kind::value, "PagedKvCache::pages_needed: ", tokens, " tokens behind ",
        s.length, ", takes 0 or more, 2^31 - 1 in all");
  return state_->pages_needed(s, tokens);
}

void PagedKvCache::reserve(int64_t sequence, int64_t tokens) {
  State& state = *state_;
  State::Sequence& s = state.find("reserve", sequence);
  check(tokens >= 0 && tokens <= cache::kMostTokens - s.length, Error::Kind::value, "PagedKvCache::reserve: ", tokens, " tokens behind ", s.length,
        ", takes 0 or more, 2^31 - 1 in all");
  if (tokens == 0 || s.length + tokens <= s.reserved) return;
  const int64_t needed = state.pages_needed(s, tokens), places = s.length + tokens;
  check(needed <= state.counts.num_free(), Error::Kind::memory, "PagedKvCache::reserve: sequence ", sequence, " needs ", needed, " pages for ",
        tokens, " tokens behind ", s.length, ", and ", state.counts.num_free(), " of ", state.options.num_pages,
        " are free; drop or truncate a sequence, or make a larger pool");
  const auto held = static_cast<int64_t>(s.table.size()), wanted = std::max(held, state.pages_for(places) * state.lanes());
  auto staging = state.own_staging(s);
  s.table.reserve(static_cast<size_t>(wanted));
  // From here on nothing fails.
  s.staging = std::move(staging);
  if (s.length % state.page_size() != 0) state.unshare(state.lanes_of(s, s.length / state.page_size()));
  // Lane by lane, so that tokens which come together lie together: what reads a head goes through memory from front to back.
  s.table.resize(static_cast<size_t>(wanted));
  for (int64_t lane = 0; lane < state.lanes(); ++lane) {
    for (int64_t i = held + lane; i < wanted; i += state.lanes()) s.table[static_cast<size_t>(i)] = state.counts.take();
  }
  s.reserved = places;
}

void PagedKvCache::write(int64_t sequence, int layer, int64_t first, const TensorView& k, const TensorView& v, Context& context) {
  State& state = *state_;
  State::Sequence& s = state.find("write", sequence);
  state.check_layer("write", layer);
  const int heads = state.options.heads_kv;
  for (const bool is_key : {true, false}) {
    const TensorView& x = is_key ? k : v;
    const cache::PageStore& store = is_key ? state.k : state.v;
    const char* const name = is_key ? "k" : "v";
    check(x.rank() == 4 && x.dim(0) == 1 && x.dim(1) == heads && x.dim(2) == k.dim(2) && x.dim(3) == store.channels(), Error::Kind::shape,
          "PagedKvCache::write: ", name, " has shape ", x.shape(), ", takes [1, ", heads, ", n, ", store.channels(), "], n alike in k and v");
    const bool is_float = x.dtype() == Dtype::f32 || x.dtype() == Dtype::bf16 || x.dtype() == Dtype::f16;
    check(is_float && (store.is_quantised() || x.dtype() == Dtype::f32 || x.dtype() == store.dtype()), Error::Kind::dtype,
          "PagedKvCache::write: ", name, " is ", x.dtype(), ", takes f32", store.is_quantised() ? ", bf16 or f16" : "",
          store.is_quantised() || store.dtype() == Dtype::f32 ? "" : " or the store's ",
          store.is_quantised() || store.dtype() == Dtype::f32 ? "" : tilewise::name(store.dtype()));
    check(x.device().type == Device::Type::cpu, Error::Kind::device, "PagedKvCache::write: ", name, " is on ", x.device(), ", the cache on the CPU");
    check(x.dim(3) == 1 || x.stride(3) == 1, Error::Kind::shape, "PagedKvCache::write: the last axis of ", name, " has stride ", x.stride(3),
          ", takes 1; copy the tensor so that it is contiguous");
    check(x.numel() == 0 || x.raw() != nullptr, Error::Kind::value, "PagedKvCache::write: ", name, " has a null pointer; give it memory");
  }
  const int64_t tokens = k.dim(2);
  int64_t &written = s.written[static_cast<size_t>(layer)], &touched = s.touched[static_cast<size_t>(layer)];
  check(first == written || first == s.length, Error::Kind::value, "PagedKvCache::write: first is ", first, ", takes ", written,
        ", where the layer's last write ended, or the length ", s.length, " to begin anew");
  check(tokens == 0 || tokens <= s.reserved - first, Error::Kind::value, "PagedKvCache::write: places [", first, ", ", first + tokens,
        ") of sequence ", sequence, " are reserved up to ", s.reserved, "; reserve first");
  context.check_cancel();
  if (tokens == 0) {
    written = first;
    return;
  }
  const int64_t first_page = first / state.page_size(), pages = state.pages_for(first + tokens) - first_page;
  std::vector<int64_t> places(static_cast<size_t>(pages), 0);
  written = s.length;  // if the work is cancelled, the layer begins anew
  touched = std::max(touched, first + tokens);
  if (state.is_quantised()) {
    // All pages but the first pass through one place of the staging, a head's one after another.
    for (int64_t i = 0; i < pages; ++i) {
      places[static_cast<size_t>(i)] = state.stage(s, layer, first_page + i, i == 0 ? first - first_page * state.page_size() : 0);
    }
  }
  context.parallel_for(heads, [&](int64_t head, int) { state.write_pages(s, layer, head, first, k, v, places); });
  written = first + tokens;
}

void PagedKvCache::advance(int64_t sequence, int64_t tokens) {
  State::Sequence& s = state_->find("advance", sequence);
  check(tokens >= 0, Error::Kind::value, "PagedKvCache::advance: ", tokens, " tokens, takes 0 or more");
  for (size_t layer = 0; layer < s.written.size(); ++layer) {
    check(tokens <= s.written[layer] - s.length, Error::Kind::value, "PagedKvCache::advance: ", tokens, " tokens behind ", s.length, ", layer ",
          layer, " has written ", s.written[layer] - s.length, "; write them first");
  }
  state_->settle(s, s.length + tokens);
}

void PagedKvCache::truncate(int64_t sequence, int64_t length) {
  State& state = *state_;
  State::Sequence& s = state.find("truncate", sequence);
  check(length >= 0 && length <= s.length, Error::Kind::value, "PagedKvCache::truncate: to ", length, " tokens, sequence ", sequence, " holds ",
        s.length);
  const int64_t rows = length % state.page_size();
  std::span<int32_t> last;
  if (rows > 0) last = state.lanes_of(s, length / state.page_size());
  check(length == s.length || std::find(last.begin(), last.end(), cache::kNone) == last.end(), Error::Kind::value, "PagedKvCache::truncate: token ",
        length - 1, " of sequence ", sequence, " lies in an evicted page; truncate to a multiple of ", state.page_size(), " or further down");
  const bool is_changed = state.has_pending(s) || length < s.length;
  std::shared_ptr<cache::Staging> staging = s.staging;
  const std::span<int32_t> freed = state.tail(s, length);
  if (is_changed && state.cut_matters(rows)) {
    const int64_t needed = state.count_shared(last);
    const int64_t free = state.counts.num_free() + std::count_if(freed.begin(), freed.end(),
                                                                 [&](int32_t page) { return page != cache::kNone && !state.counts.is_shared(page); });
    check(needed <= free, Error::Kind::memory, "PagedKvCache::truncate: sequence ", sequence, " is cut within ", needed,
          " pages that others share, and ", free, " of ", state.options.num_pages, " are free for their copies; cut at a multiple of ",
          state.page_size());
    staging = state.own_staging(s);
  }
  s.staging = std::move(staging);
  state.release(freed);
  s.table.resize(static_cast<size_t>(state.pages_for(length) * state.lanes()));
  if (is_changed && state.cut_matters(rows)) {
    state.unshare(state.lanes_of(s, length / state.page_size()));
    state.settle(s, length);
  } else {
    s.length = length;
    s.written.assign(s.written.size(), length);
    s.touched.assign(s.touched.size(), length);
  }
  s.reserved = length;
}

void PagedKvCache::evict(int64_t sequence, int layer, int head, int64_t first, int64_t stop) {
  State& state = *state_;
  State::Sequence& s = state.find("evict", sequence);
  state.check_layer("evict", layer);
  check(head >= 0 && head < state.options.heads_kv, Error::Kind::value, "PagedKvCache::evict: head ", head, " is not in [0, ", state.options.heads_kv,
        ")");
  check(first >= 0 && first <= stop && stop <= s.length, Error::Kind::value, "PagedKvCache::evict: tokens [", first, ", ", stop, ") of sequence ",
        sequence, ", which holds ", s.length);
  for (int64_t page = state.pages_for(first); (page + 1) * state.page_size() <= stop; ++page)
    state.release(std::span(&state.page_at(s, page, layer, head), 1));
}

PagedBatch PagedKvCache::batch(std::span<const int64_t> sequences, int64_t ahead, const std::shared_ptr<Memory>& memory) const {
  State& state = *state_;
  check(!sequences.empty(), Error::Kind::value, "PagedKvCache::batch: there is no sequence; takes one or more");
  check(ahead >= 0, Error::Kind::value, "PagedKvCache::batch: ahead is ", ahead, ", takes 0 or more tokens");
  int64_t pages = 1;
  for (const int64_t sequence : sequences) {
    const State::Sequence& s = state.find("batch", sequence);
    check(ahead == 0 || ahead <= s.reserved - s.length, Error::Kind::value, "PagedKvCache::batch: ahead is ", ahead, " behind ", s.length,
          ", sequence ", sequence, " has reserved up to ", s.reserved, "; reserve first");
    pages = std::max(pages, state.pages_for(s.length + ahead));
  }
  const auto size = static_cast<int64_t>(sequences.size());
  const int layers = state.options.num_layers, heads = state.options.heads_kv;
  PagedBatch batch;
  batch.lengths = Tensor(memory, Dtype::i32, {size});
  batch.tables = Tensor(memory, Dtype::i32, {layers, size, heads, pages});
  std::fill_n(batch.tables.view.data<int32_t>(), batch.tables.view.numel(), cache::kNone);
  for (int64_t b = 0; b < size; ++b) {
    State::Sequence& s = state.find("batch", sequences[static_cast<size_t>(b)]);
    batch.lengths.view.at<int32_t>(b) = static_cast<int32_t>(s.length + ahead);
    for (int64_t page = 0; page < state.pages_for(s.length + ahead); ++page) {
      for (int64_t layer = 0; layer < layers; ++layer) {
        for (int64_t head = 0; head < heads; ++head) batch.tables.view.at<int32_t>(layer, b, head, page) = state.page_at(s, page, layer, head);
      }
    }
  }
  for (int layer = 0; layer < layers; ++layer) {
    const TensorView& all = batch.tables.view;
    const TensorView table(all.data<int32_t>() + all.offset(layer), Dtype::i32, {size, heads, pages});
    batch.k.push_back({.pool = state.k.pool(layer), .table = table, .statistics = state.sums ? state.sums->view() : PageStatistics{}});
    batch.v.push_back({.pool = state.v.pool(layer), .table = table, .statistics = {}});
  }
  return batch;
}

TILEWISE_END_PUBLIC
