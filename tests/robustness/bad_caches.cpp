// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "tests/robustness/bad_call.h"
#include "tilewise/cache/contiguous.h"
#include "tilewise/cache/paged.h"

namespace tilewise::testing {
namespace {

using Kind = Error::Kind;

KvCache contiguous() { return {2, 2, 10, 8, host_memory()}; }

/// A paged cache with two sequences of 10 tokens: 0, and 1, which shares its pages. One page of 16 tokens for each of two layers and two heads.
struct Pages {
  PagedKvCache cache;
  Tensor rows = zeros(Dtype::f32, {1, 2, 10, 8});
  Context context;

  explicit Pages(int64_t num_pages = 8, Dtype dtype = Dtype::i8)
      : cache({.num_layers = 2, .heads_kv = 2, .head_dim = 8, .num_pages = num_pages, .page_size = 16, .k = {.dtype = dtype}}, host_memory()) {
    cache.add();
    cache.reserve(0, 10);
    for (int layer = 0; layer < 2; ++layer) cache.write(0, layer, 0, rows.view, rows.view, context);
    cache.advance(0, 10);
    cache.fork(0);
  }
};

void make(const std::function<void(PagedCacheOptions&)>& spoil) {
  PagedCacheOptions options{.num_layers = 2, .heads_kv = 2, .head_dim = 8, .num_pages = 8, .page_size = 16};
  spoil(options);
  PagedKvCache cache(options, host_memory());
}

/// A call on a cache in which 6 places behind sequence 0 are reserved.
void on_pages(const std::function<void(Pages&)>& call) {
  Pages pages;
  pages.cache.reserve(0, 6);
  call(pages);
}
void write_pages(const std::function<TensorView(const TensorView&)>& spoil_k, const std::function<TensorView(const TensorView&)>& spoil_v = {}) {
  on_pages([&](Pages& p) {
    const TensorView good = p.rows.view.slice(2, 0, 2);
    p.cache.write(0, 0, 10, spoil_k(good), spoil_v ? spoil_v(good) : good, p.context);
  });
}

std::vector<BadCall> of_contiguous() {
  static const Tensor f = zeros(Dtype::f32, {1, 2, 10, 8}), long_one = zeros(Dtype::f32, {1, 2, 11, 8}), i = zeros(Dtype::i32, {1, 2, 10, 8});
  static const Tensor three = zeros(Dtype::f32, {1, 3, 10, 8}), half = zeros(Dtype::bf16, {1, 2, 10, 8}), narrow = zeros(Dtype::f32, {1, 2, 10, 4});
  return {
      {"KvCache: layers", Kind::value, {"KvCache", "layers", "got 0"}, [] { KvCache(0, 1, 1, 8, host_memory()); }},
      {"KvCache: heads", Kind::value, {"KvCache", "heads", "-2"}, [] { KvCache(1, -2, 1, 8, host_memory()); }},
      {"KvCache: capacity", Kind::value, {"KvCache", "capacity", "-1"}, [] { KvCache(1, 1, -1, 8, host_memory()); }},
      {"KvCache: head_dim", Kind::value, {"KvCache", "head_dim", " 0"}, [] { KvCache(1, 1, 1, 0, host_memory()); }},
      {"KvCache: too large", Kind::shape, {"Tensor"}, [] { KvCache(1, 1, int64_t{1} << 61, 8, host_memory()); }},
      {"KvCache: dtype", Kind::dtype, {"KvCache", "i32"}, [] { KvCache(1, 1, 1, 8, host_memory(), Dtype::i32); }},
      {"KvCache: k of a layer", Kind::value, {"KvCache", "layer 5"}, [] { contiguous().k(5, 1); }},
      {"KvCache: v of a layer below 0", Kind::value, {"KvCache", "layer -1"}, [] { contiguous().v(-1, 1); }},
      {"KvCache: v of tokens", Kind::value, {"KvCache", "11 tokens"}, [] { contiguous().v(0, 11); }},
      {"KvCache: advance", Kind::value, {"advance", "11 tokens"}, [] { contiguous().advance(11); }},
      {"KvCache: advance below 0", Kind::value, {"advance", "-1 tokens"}, [] { contiguous().advance(-1); }},
      {"KvCache: truncate", Kind::value, {"truncate", "2 tokens"}, [] { contiguous().truncate(2); }},
      {"KvCache: write heads", Kind::shape, {"write", "[1, 3, 10, 8]"}, [] { contiguous().write(0, 0, three.view, three.view); }},
      {"KvCache: write D", Kind::shape, {"write", "[1, 2, 10, 4]"}, [] { contiguous().write(0, 0, narrow.view, narrow.view); }},
      {"KvCache: write v unlike k", Kind::shape, {"write", "[1, 2, 11, 8]"}, [] { contiguous().write(0, 0, f.view, long_one.view); }},
      {"KvCache: write dtype", Kind::dtype, {"write", "i32"}, [] { contiguous().write(0, 0, i.view, i.view); }},
      {"KvCache: write two dtypes", Kind::dtype, {"write", "bf16"}, [] { contiguous().write(0, 0, f.view, half.view); }},
      {"KvCache: write stride",
       Kind::shape,
       {"write", "contiguous"},
       [] {
         const TensorView turned = zeros(Dtype::f32, {1, 2, 8, 8}).view.permute({0, 1, 3, 2});
         contiguous().write(0, 0, turned, turned);
       }},
      {"KvCache: write layer", Kind::value, {"layer 2"}, [] { contiguous().write(2, 0, f.view, f.view); }},
      {"KvCache: write capacity", Kind::value, {"write", "[1, 11)"}, [] { contiguous().write(0, 1, f.view, f.view); }},
      {"KvCache: write what is filled",
       Kind::value,
       {"write", "place 2", "filled up to 3"},
       [] {
         KvCache cache = contiguous();
         cache.advance(3);
         cache.write(0, 2, f.view.slice(2, 0, 1), f.view.slice(2, 0, 1));
       }},
  };
}

std::vector<BadCall> of_options() {
  return {
      {"PagedKvCache: layers", Kind::value, {"PagedKvCache", "num_layers is 0"}, [] { make([](auto& o) { o.num_layers = 0; }); }},
      {"PagedKvCache: heads", Kind::value, {"PagedKvCache", "heads_kv is -1"}, [] { make([](auto& o) { o.heads_kv = -1; }); }},
      {"PagedKvCache: head_dim", Kind::value, {"PagedKvCache", "head_dim is 0"}, [] { make([](auto& o) { o.head_dim = 0; }); }},
      {"PagedKvCache: head_dim_v", Kind::value, {"PagedKvCache", "head_dim_v is -8"}, [] { make([](auto& o) { o.head_dim_v = -8; }); }},
      {"PagedKvCache: pages", Kind::value, {"PagedKvCache", "num_pages is -1"}, [] { make([](auto& o) { o.num_pages = -1; }); }},
      {"PagedKvCache: pages above i32", Kind::value, {"num_pages is 2147483648"}, [] { make([](auto& o) { o.num_pages = int64_t{1} << 31; }); }},
      {"PagedKvCache: page", Kind::value, {"page_size is 0"}, [] { make([](auto& o) { o.page_size = 0; }); }},
      {"PagedKvCache: page above", Kind::value, {"page_size is 257"}, [] { make([](auto& o) { o.page_size = 257; }); }},
      {"PagedKvCache: statistics below 0", Kind::value, {"statistics_tokens is -1"}, [] { make([](auto& o) { o.statistics_tokens = -1; }); }},
      {"PagedKvCache: statistics of more", Kind::value, {"statistics_tokens is 32"}, [] { make([](auto& o) { o.statistics_tokens = 32; }); }},
      {"PagedKvCache: statistics that do not divide",
       Kind::value,
       {"statistics_tokens is 5"},
       [] { make([](auto& o) { o.statistics_tokens = 5; }); }},
      {"PagedKvCache: dtype", Kind::dtype, {"k.dtype is i64"}, [] { make([](auto& o) { o.k.dtype = Dtype::i64; }); }},
      {"PagedKvCache: dtype of v", Kind::dtype, {"v.dtype is f64"}, [] { make([](auto& o) { o.v.dtype = Dtype::f64; }); }},
      {"PagedKvCache: INT4 of odd D", Kind::value, {"for v", "got 7"}, [] { make([](auto& o) { o.v.dtype = Dtype::u8, o.head_dim_v = 7; }); }},
      {"PagedKvCache: group", Kind::value, {"k.group is -1 tokens"}, [] { make([](auto& o) { o.k = {.dtype = Dtype::i8, .group = {-1, 0}}; }); }},
      {"PagedKvCache: channels", Kind::value, {"-3 channels"}, [] { make([](auto& o) { o.v = {.dtype = Dtype::i8, .group = {0, -3}}; }); }},
      {"PagedKvCache: scales of numbers", Kind::value, {"k has scales", "f32"}, [] { make([](auto& o) { o.k.scales = {1, 1}; }); }},
      {"PagedKvCache: zero of numbers", Kind::value, {"zero", "f32"}, [] { make([](auto& o) { o.v.has_zero = true; }); }},
      {"PagedKvCache: scales of too few layers",
       Kind::value,
       {"1 scales", "2 layers"},
       [] { make([](auto& o) { o.k = {.dtype = Dtype::i8, .scales = {1}}; }); }},
      {"PagedKvCache: a scale NaN",
       Kind::value,
       {"scale of k is nan"},
       [] { make([](auto& o) { o.k = {.dtype = Dtype::i8, .scales = {1, NAN}}; }); }},
      {"PagedKvCache: a scale of 0", Kind::value, {"scale of v is 0"}, [] { make([](auto& o) { o.v = {.dtype = Dtype::u8, .scales = {1, 0}}; }); }},
      {"PagedKvCache: given scales with groups",
       Kind::value,
       {"given scales", "groups"},
       [] { make([](auto& o) { o.k = {.dtype = Dtype::i8, .group = {1, 0}, .scales = {1, 1}}; }); }},
      {"PagedKvCache: too large",
       Kind::memory,
       {"bytes"},
       [] { make([](auto& o) { o.num_pages = INT32_MAX, o.page_size = 256, o.head_dim = 1 << 20; }); }},
  };
}

std::vector<BadCall> of_sequences() {
  const auto unknown = [](const char* function, const std::function<void(Pages&)>& call) {
    return BadCall{
        std::string("PagedKvCache: ") + function + " of no sequence", Kind::value, {function, "no sequence 7"}, [call] { on_pages(call); }};
  };
  return {
      unknown("fork", [](Pages& p) { p.cache.fork(7); }),
      unknown("drop", [](Pages& p) { p.cache.drop(7); }),
      unknown("length", [](Pages& p) { p.cache.length(7); }),
      unknown("reserved", [](Pages& p) { p.cache.reserved(7); }),
      unknown("pages_needed", [](Pages& p) { p.cache.pages_needed(7, 1); }),
      unknown("reserve", [](Pages& p) { p.cache.reserve(7, 1); }),
      unknown("write", [](Pages& p) { p.cache.write(7, 0, 0, p.rows.view, p.rows.view, p.context); }),
      unknown("advance", [](Pages& p) { p.cache.advance(7, 1); }),
      unknown("truncate", [](Pages& p) { p.cache.truncate(7, 0); }),
      unknown("evict", [](Pages& p) { p.cache.evict(7, 0, 0, 0, 0); }),
      unknown("batch", [](Pages& p) { p.cache.batch(std::vector<int64_t>{0, 7}, 0, host_memory()); }),
      {"PagedKvCache: a sequence that was dropped",
       Kind::value,
       {"length", "no sequence 1"},
       [] {
         on_pages([](Pages& p) {
           p.cache.drop(1);
           p.cache.length(1);
         });
       }},
      {"PagedKvCache: reserve below 0", Kind::value, {"reserve", "-1 tokens"}, [] { on_pages([](Pages& p) { p.cache.reserve(0, -1); }); }},
      {"PagedKvCache: reserve above i32",
       Kind::value,
       {"reserve", "2147483647 tokens"},
       [] { on_pages([](Pages& p) { p.cache.reserve(0, INT32_MAX); }); }},
      {"PagedKvCache: reserve of a full pool",
       Kind::memory,
       {"reserve", "needs 16 pages", "0 of 8"},
       [] { on_pages([](Pages& p) { p.cache.reserve(0, 70); }); }},
      {"PagedKvCache: pages_needed below 0",
       Kind::value,
       {"pages_needed", "-5 tokens"},
       [] { on_pages([](Pages& p) { p.cache.pages_needed(0, -5); }); }},
      {"PagedKvCache: advance below 0", Kind::value, {"advance", "-1 tokens"}, [] { on_pages([](Pages& p) { p.cache.advance(0, -1); }); }},
      {"PagedKvCache: advance of what a layer has not written",
       Kind::value,
       {"advance", "layer 1 has written 0"},
       [] {
         on_pages([](Pages& p) {
           p.cache.write(0, 0, 10, p.rows.view.slice(2, 0, 2), p.rows.view.slice(2, 0, 2), p.context);
           p.cache.advance(0, 2);
         });
       }},
      {"PagedKvCache: truncate to more", Kind::value, {"truncate", "to 11 tokens"}, [] { on_pages([](Pages& p) { p.cache.truncate(0, 11); }); }},
      {"PagedKvCache: truncate below 0", Kind::value, {"truncate", "to -1 tokens"}, [] { on_pages([](Pages& p) { p.cache.truncate(0, -1); }); }},
      {"PagedKvCache: truncate of shared pages in a full pool",
       Kind::memory,
       {"truncate", "4 pages that others share", "0 of 4"},
       [] { Pages(4).cache.truncate(0, 5); }},
      {"PagedKvCache: truncate within what was evicted",
       Kind::value,
       {"truncate", "token 4", "evicted page"},
       [] {
         Pages p(20);
         p.cache.reserve(0, 10);
         for (int layer = 0; layer < 2; ++layer) p.cache.write(0, layer, 10, p.rows.view, p.rows.view, p.context);
         p.cache.advance(0, 10);
         p.cache.evict(0, 1, 0, 0, 20);
         p.cache.truncate(0, 5);
       }},
      {"PagedKvCache: evict layer", Kind::value, {"evict", "layer 2"}, [] { on_pages([](Pages& p) { p.cache.evict(0, 2, 0, 0, 1); }); }},
      {"PagedKvCache: evict head", Kind::value, {"evict", "head -1"}, [] { on_pages([](Pages& p) { p.cache.evict(0, 0, -1, 0, 1); }); }},
      {"PagedKvCache: evict tokens reversed", Kind::value, {"evict", "[3, 2)"}, [] { on_pages([](Pages& p) { p.cache.evict(0, 0, 0, 3, 2); }); }},
      {"PagedKvCache: evict tokens that are not there",
       Kind::value,
       {"evict", "[0, 11)"},
       [] { on_pages([](Pages& p) { p.cache.evict(0, 0, 0, 0, 11); }); }},
      {"PagedKvCache: batch of none", Kind::value, {"batch", "no sequence"}, [] { on_pages([](Pages& p) { p.cache.batch({}, 0, host_memory()); }); }},
      {"PagedKvCache: batch below 0",
       Kind::value,
       {"batch", "ahead is -1"},
       [] { on_pages([](Pages& p) { p.cache.batch(std::vector<int64_t>{0}, -1, host_memory()); }); }},
      {"PagedKvCache: batch ahead of what is reserved",
       Kind::value,
       {"batch", "ahead is 7"},
       [] { on_pages([](Pages& p) { p.cache.batch(std::vector<int64_t>{0}, 7, host_memory()); }); }},
  };
}

std::vector<BadCall> of_writes() {
  const auto view = [](const TensorView& x, Dtype dtype, const Shape& shape) { return TensorView(x.raw(), dtype, shape); };
  return {
      {"PagedKvCache: write heads of k",
       Kind::shape,
       {"write", "k has shape [1, 3, 2, 8]"},
       [=] { write_pages([=](const auto& x) { return view(x, Dtype::f32, {1, 3, 2, 8}); }); }},
      {"PagedKvCache: write batch",
       Kind::shape,
       {"write", "[2, 2, 2, 8]"},
       [=] { write_pages([=](const auto& x) { return view(x, Dtype::f32, {2, 2, 2, 8}); }); }},
      {"PagedKvCache: write rank",
       Kind::shape,
       {"write", "[2, 8]"},
       [=] { write_pages([=](const auto& x) { return view(x, Dtype::f32, {2, 8}); }); }},
      {"PagedKvCache: write no k", Kind::shape, {"write", "k has shape []"}, [=] { write_pages([=](const auto&) { return TensorView(); }); }},
      {"PagedKvCache: write tokens of v",
       Kind::shape,
       {"write", "v has shape [1, 2, 3, 8]"},
       [=] { write_pages([](const auto& x) { return x; }, [=](const auto& x) { return view(x, Dtype::f32, {1, 2, 3, 8}); }); }},
      {"PagedKvCache: write D of v",
       Kind::shape,
       {"write", "v has shape [1, 2, 2, 4]"},
       [=] { write_pages([](const auto& x) { return x; }, [=](const auto& x) { return view(x, Dtype::f32, {1, 2, 2, 4}); }); }},
      {"PagedKvCache: write dtype of k",
       Kind::dtype,
       {"write", "k is i8"},
       [=] { write_pages([=](const auto& x) { return view(x, Dtype::i8, {1, 2, 2, 8}); }); }},
      {"PagedKvCache: write dtype of v",
       Kind::dtype,
       {"write", "v is bf16", "takes f32"},
       [=] { write_pages([](const auto& x) { return x; }, [=](const auto& x) { return view(x, Dtype::bf16, {1, 2, 2, 8}); }); }},
      {"PagedKvCache: write stride",
       Kind::shape,
       {"write", "last axis of k has stride 2"},
       [] { write_pages([](const auto& x) { return TensorView(x.raw(), Dtype::f32, {1, 2, 2, 8}, {64, 32, 16, 2, 0}); }); }},
      {"PagedKvCache: write device",
       Kind::device,
       {"write", "k is on"},
       [] { write_pages([](const auto& x) { return TensorView(x.raw(), Dtype::f32, x.shape(), {Device::Type::cuda, 0}); }); }},
      {"PagedKvCache: write no memory",
       Kind::value,
       {"write", "k has a null pointer"},
       [=] { write_pages([](const auto& x) { return TensorView(nullptr, Dtype::f32, x.shape()); }); }},
      {"PagedKvCache: write layer",
       Kind::value,
       {"write", "layer 2"},
       [] { on_pages([](Pages& p) { p.cache.write(0, 2, 10, p.rows.view, p.rows.view, p.context); }); }},
      {"PagedKvCache: write over what is there",
       Kind::value,
       {"write", "first is 9"},
       [] { on_pages([](Pages& p) { p.cache.write(0, 0, 9, p.rows.view, p.rows.view, p.context); }); }},
      {"PagedKvCache: write with a gap",
       Kind::value,
       {"write", "first is 11"},
       [] { on_pages([](Pages& p) { p.cache.write(0, 0, 11, p.rows.view, p.rows.view, p.context); }); }},
      {"PagedKvCache: write past what is reserved",
       Kind::value,
       {"write", "[10, 20)", "reserved up to 16"},
       [] { on_pages([](Pages& p) { p.cache.write(0, 0, 10, p.rows.view, p.rows.view, p.context); }); }},
      {"PagedKvCache: write after a fork",
       Kind::value,
       {"write", "reserved up to 10"},
       [] {
         Pages p;
         p.cache.write(0, 0, 10, p.rows.view, p.rows.view, p.context);
       }},
  };
}

}  // namespace

std::vector<BadCall> bad_caches() {
  std::vector<BadCall> all;
  for (const auto& calls : {of_contiguous(), of_options(), of_sequences(), of_writes()}) all.insert(all.end(), calls.begin(), calls.end());
  return all;
}

}  // namespace tilewise::testing
