// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "bench/attend/cpu/inputs.h"
#include "bench/runner.h"
#include "tilewise/attend/decode.h"
#include "tilewise/machine/cpu/peak.h"

// Decode's rows of `tilewise bench`: so many caches that none is found in the processor's own, against plain reading of the same memory by the same threads.
namespace tilewise::bench {

/// Pages of 2 MB where the system has them: with those of 4 KB, how fast memory is read depends on where the system had some left.
class LargePages final : public Memory {
 public:
  void* allocate(size_t bytes) override {
    void* const data = std::aligned_alloc(kPage, padded(bytes));
    check(data != nullptr, Error::Kind::memory, "bench: ", bytes, " bytes could not be allocated; free memory");
#if defined(MADV_HUGEPAGE)
    madvise(data, padded(bytes), MADV_HUGEPAGE);
#endif
    return data;
  }
  void release(void* data, size_t) noexcept override { std::free(data); }

 private:
  static constexpr size_t kPage = size_t{2} << 20;
  static size_t padded(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }
};

/// How keys and values lie.
enum class CacheLayout : uint8_t {
  contiguous,
  pages,  // in the order in which a pool gives them to caches that are filled one after another, head by head
  drawn_pages,  // anywhere: a pool that has given and taken for long
};

/// Caches of one layer each, in one piece of memory for keys and one for values, which serves every layout.
struct Caches {
  static constexpr int kHeads = 8, kHeadsKv = 2, kPage = 64;
  static constexpr size_t kLeastBytes = size_t{256} << 20;

  int64_t keys, head_dim, count;
  Tensor q, k, v, out;  // [count, Hq, 1, D], [count * Hkv * keys / kPage, 1, kPage, D]
  Tensor table, drawn_k, drawn_v;  // [count, Hkv, keys / kPage]

  Caches(Dtype dtype, int64_t keys_, int64_t head_dim_, Context& context) : keys(keys_ / kPage * kPage), head_dim(head_dim_) {
    const size_t bytes_each = 2 * static_cast<size_t>(kHeadsKv * keys * head_dim) * size_of(dtype);
    count = static_cast<int64_t>((kLeastBytes + bytes_each - 1) / bytes_each);
    const int64_t pages = count * kHeadsKv * keys / kPage;
    for (Tensor* const tensor : {&q, &out}) *tensor = Tensor(context.memory, dtype, {count, kHeads, 1, head_dim});
    for (Tensor* const tensor : {&k, &v}) *tensor = Tensor(std::make_shared<LargePages>(), dtype, {pages, 1, kPage, head_dim});
    for (Tensor* const tensor : {&table, &drawn_k, &drawn_v}) *tensor = Tensor(context.memory, Dtype::i32, {count, kHeadsKv, keys / kPage});
    uint64_t seed = 1;
    for (const Tensor* const tensor : {&q, &k, &v}) fill(*tensor, seed++, context);
    std::mt19937_64 generator(3);
    for (const Tensor* const tensor : {&table, &drawn_k, &drawn_v}) {
      auto* const entries = tensor->view.data<int32_t>();
      std::iota(entries, entries + pages, 0);
      if (tensor != &table) std::shuffle(entries, entries + pages, generator);
    }
  }

  double bytes() const { return 2.0 * static_cast<double>(k.view.numel()) * static_cast<double>(size_of(k.view.dtype())); }
  std::string shape() const { return "[1, 8, 1, " + std::to_string(head_dim) + "], " + std::to_string(keys) + " keys"; }

  DecodeParams params(int64_t cache, CacheLayout layout) const {
    DecodeParams p{.q = part(q, cache, {1, kHeads, 1, head_dim}), .dense_band = Mask::Band{.right = 0}};
    p.out = part(out, cache, p.q.shape());
    const Shape whole{1, kHeadsKv, keys, head_dim}, tables{1, kHeadsKv, keys / kPage};
    switch (layout) {
      case CacheLayout::contiguous:
        p.k = part(k, cache, whole);
        p.v = part(v, cache, whole);
        break;
      case CacheLayout::pages:
      case CacheLayout::drawn_pages:
        p.k = Paged{.pool = k.view, .table = part(layout == CacheLayout::pages ? table : drawn_k, cache, tables)};
        p.v = Paged{.pool = v.view, .table = part(layout == CacheLayout::pages ? table : drawn_v, cache, tables)};
    }
    return p;
  }

  void run(CacheLayout layout, Context& context) const {
    for (int64_t cache = 0; cache < count; ++cache) attend_decode(params(cache, layout), context);
  }

  /// Reads all keys and values, and nothing else, in pieces of about 1 MB that the threads take: front to back, or page by page as drawn.
  void read(machine::cpu::Target target, CacheLayout layout, Context& context) const {
    const int64_t pages = k.view.dim(0), page_bytes = kPage * head_dim * static_cast<int64_t>(size_of(k.view.dtype()));
    const int64_t floats = page_bytes / static_cast<int64_t>(sizeof(float)), together = (int64_t{1} << 20) / page_bytes;
    for (const auto& [tensor, drawn] : {std::pair{&k, &drawn_k}, {&v, &drawn_v}}) {
      const auto* const data = static_cast<const float*>(tensor->view.raw());
      const auto* const order = drawn->view.data<int32_t>();
      std::atomic<float> sink = 0;
      context.parallel_for((pages + together - 1) / together, [&](int64_t piece, int) {
        const int64_t first = piece * together, last = std::min(pages, first + together);
        if (layout == CacheLayout::drawn_pages) {
          for (int64_t page = first; page < last; ++page) sink = machine::cpu::sum(target, data + order[page] * floats, floats);
        } else {
          sink = machine::cpu::sum(target, data + first * floats, (last - first) * floats);
        }
      });
    }
  }

  /// Holds two heads of the first and of the last cache against f64.
  std::string fault(CacheLayout layout) const {
    const double scale = 1 / std::sqrt(static_cast<double>(head_dim)), bound = q.view.dtype() == Dtype::f32 ? 1e-5 : 1e-2;
    for (const int64_t cache : {int64_t{0}, count - 1}) {
      for (const int head : {0, kHeads - 1}) {
        const int64_t head_kv = cache * kHeadsKv + head / (kHeads / kHeadsKv), query = (cache * kHeads + head) * head_dim;
        const auto row_of = [&](const Tensor& drawn, int64_t key) {
          if (layout != CacheLayout::drawn_pages) return (head_kv * keys + key) * head_dim;
          return (drawn.view.data<int32_t>()[head_kv * (keys / kPage) + key / kPage] * kPage + key % kPage) * head_dim;
        };
        std::vector<double> exact(static_cast<size_t>(head_dim), 0.0);
        double sum = 0;
        for (int64_t key = 0; key < keys; ++key) {
          double s = 0;
          for (int64_t d = 0; d < head_dim; ++d) s += value_at(q.view, query + d) * value_at(k.view, row_of(drawn_k, key) + d);
          const double p = std::exp(s * scale);
          sum += p;
          for (int64_t d = 0; d < head_dim; ++d) exact[static_cast<size_t>(d)] += p * value_at(v.view, row_of(drawn_v, key) + d);
        }
        for (int64_t d = 0; d < head_dim; ++d) {
          const double right = exact[static_cast<size_t>(d)] / sum, got = value_at(out.view, query + d);
          if (!(std::fabs(got - right) <= bound * (std::fabs(right) + (q.view.dtype() == Dtype::f32 ? 1 : 0.01)))) {
            return "cache " + std::to_string(cache) + " head " + std::to_string(head) + " channel " + std::to_string(d) + ": " + std::to_string(got) +
                   ", exact " + std::to_string(right);
          }
        }
      }
    }
    return "";
  }

 private:
  // The part of a tensor that belongs to one of `count` caches.
  TensorView part(const Tensor& tensor, int64_t cache, const Shape& shape) const {
    auto* const data = static_cast<std::byte*>(tensor.view.raw());
    return TensorView(data + cache * shape.numel() * static_cast<int64_t>(size_of(tensor.view.dtype())), tensor.view.dtype(), shape);
  }

  // Uniform numbers of variance 1, a seed for each piece.
  static void fill(const Tensor& tensor, uint64_t seed, Context& context) {
    constexpr int64_t kPiece = int64_t{1} << 16;
    const int64_t numel = tensor.view.numel();
    context.parallel_for((numel + kPiece - 1) / kPiece, [&](int64_t piece, int) {
      std::minstd_rand generator(static_cast<uint32_t>(seed << 20 | static_cast<uint64_t>(piece)));
      for (int64_t i = piece * kPiece; i < std::min(numel, (piece + 1) * kPiece); ++i) {
        const float x = (static_cast<float>(generator()) * 0x1p-30f - 1) * 1.7320508f;
        if (tensor.view.dtype() == Dtype::f32) {
          static_cast<float*>(tensor.view.raw())[i] = x;
        } else {
          static_cast<bf16*>(tensor.view.raw())[i] = bf16(x);
        }
      }
    });
  }
};

/// Appends the rows to the group. `keys`: of each cache.
inline void add_decode_rows(Group& group, Dtype dtype, int64_t head_dim, int64_t keys, Context& context) {
  const auto caches = std::make_shared<Caches>(dtype, keys, head_dim, context);
  const auto add = [&](const char* name, Row::Figure figure, int against, double bar, std::function<void()> run) {
    Row row;
    row.name = name;
    row.shape = caches->shape();
    row.bytes = caches->bytes();
    row.figure = figure;
    row.against = against;
    row.bar = bar;
    row.repeats = 10;
    row.run = std::move(run);
    group.rows.push_back(std::move(row));
  };
  const auto add_layout = [&](const char* name, Row::Figure figure, int against, double bar, CacheLayout layout) {
    add(name, figure, against, bar, [caches, layout, &context] { caches->run(layout, context); });
    group.rows.back().fault = [caches, layout] { return caches->fault(layout); };
  };
  const auto add_reading = [&](const char* name, CacheLayout layout) {
    add(name, Row::Figure::none, -1, 0, [caches, layout, target = group.target, &context] { caches->read(target, layout, context); });
    return static_cast<int>(group.rows.size()) - 1;
  };
  const int reading = add_reading("read the caches", CacheLayout::contiguous);
  add_layout("decode", Row::Figure::of_reading, reading, 0.70, CacheLayout::contiguous);
  add_layout("decode pages of 64", Row::Figure::of_contiguous, reading + 1, 0.90, CacheLayout::pages);
  const int drawn = add_reading("read drawn pages", CacheLayout::drawn_pages);
  add_layout("decode drawn pages of 64", Row::Figure::of_reading, drawn, 0.70, CacheLayout::drawn_pages);
}

}  // namespace tilewise::bench
