// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "tilewise/base/context.h"
#include "tilewise/plan/rows.h"
#include "tilewise/plan/visible.h"
#include "tilewise/select/inputs.h"

// Tensors and plain definitions that the tests of select/, methods/ and conformance/ share.
namespace tilewise::testing {

/// An executor that hands items to "workers" in an order of its own: nothing may depend on who runs what.
class ShuffledExecutor final : public Executor {
 public:
  explicit ShuffledExecutor(int workers) : workers_(workers) {}
  int concurrency() const override { return workers_; }
  void run(int64_t count, FunctionRef<void(int64_t item, int worker)> body) override {
    for (int64_t first = 0; first < workers_; ++first) {
      for (int64_t item = first; item < count; item += workers_) body(item, static_cast<int>((item * 7 + first) % workers_));
    }
  }

 private:
  int workers_;
};

/// A tensor with room between its rows: [B, H, S, D] as a permuted [B, S, H, D + 8], to catch code that takes strides for granted.
struct TestTensor {
  std::vector<unsigned char> bytes;
  TensorView view;

  double get(int64_t b, int64_t h, int64_t s, int64_t d) const {
    if (view.dtype() == Dtype::f32) return static_cast<double>(view.at<float>(b, h, s, d));
    if (view.dtype() == Dtype::bf16) return static_cast<double>(static_cast<float>(view.at<bf16>(b, h, s, d)));
    return static_cast<double>(static_cast<float>(view.at<f16>(b, h, s, d)));
  }
  void set(int64_t b, int64_t h, int64_t s, int64_t d, float value) {
    if (view.dtype() == Dtype::f32)
      view.at<float>(b, h, s, d) = value;
    else if (view.dtype() == Dtype::bf16)
      view.at<bf16>(b, h, s, d) = bf16(value);
    else
      view.at<f16>(b, h, s, d) = f16(value);
  }
};

inline TestTensor make_tensor(Dtype dtype, int64_t batch, int64_t heads, int64_t seqlen, int64_t dim) {
  TestTensor tensor;
  const int64_t wide = dim + 8;
  tensor.bytes.assign(static_cast<size_t>(batch * seqlen * heads * wide) * size_of(dtype) + 64, 0);
  tensor.view = TensorView(tensor.bytes.data(), dtype, {batch, heads, seqlen, dim}, {seqlen * heads * wide, wide, heads * wide, 1, 0});
  return tensor;
}

inline TestTensor random_tensor(Dtype dtype, int64_t batch, int64_t heads, int64_t seqlen, int64_t dim, unsigned seed, float spread = 1) {
  TestTensor tensor = make_tensor(dtype, batch, heads, seqlen, dim);
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0, spread);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t s = 0; s < seqlen; ++s) {
        for (int64_t d = 0; d < dim; ++d) tensor.set(b, h, s, d, normal(engine));
      }
    }
  }
  return tensor;
}

/// One head, one channel, from numbers.
inline TestTensor tensor_of(const std::vector<float>& values) {
  TestTensor tensor = make_tensor(Dtype::f32, 1, 1, static_cast<int64_t>(values.size()), 1);
  for (size_t i = 0; i < values.size(); ++i) tensor.set(0, 0, static_cast<int64_t>(i), 0, values[i]);
  return tensor;
}

/// [B, Hq, Sq, Sk] bits, one byte each.
struct Bits {
  int64_t batch, heads, seqlen_q, seqlen_k;
  std::vector<uint8_t> values;

  Bits(int64_t b, int64_t h, int64_t sq, int64_t sk)
      : batch(b), heads(h), seqlen_q(sq), seqlen_k(sk), values(static_cast<size_t>(b * h * sq * sk), 0) {}
  uint8_t& at(int64_t b, int64_t h, int64_t q, int64_t k) { return values[static_cast<size_t>(((b * heads + h) * seqlen_q + q) * seqlen_k + k)]; }
  int64_t count() const { return std::count(values.begin(), values.end(), uint8_t{1}); }
  bool operator==(const Bits&) const = default;
};

/// Whether the mask itself allows a pair of tokens (bands and spans).
inline bool mask_allows(const Mask& mask, int head, int64_t b, int64_t query, int64_t offset, int64_t k) {
  const int index = plan::head_class(mask, head);
  if (mask.spans.has_value()) {
    const auto bound = [&](int i) { return mask.spans.at<int32_t>(index, mask.spans.dim(1) == 1 ? 0 : b, query, i); };
    return (k >= bound(0) && k < bound(1)) || (k >= bound(2) && k < bound(3));
  }
  return plan::band_allows(mask.bands[static_cast<size_t>(index)], query + offset, k);
}

/// Pairs of slots that by_query reads; with `is_tested` only those that its mask lets through. Orders are resolved to tokens.
inline Bits bits_of(const PlanData& data, bool is_tested) {
  Bits bits(data.batch, data.heads_q, data.seqlen_q, data.seqlen_k);
  const auto token = [&](const Order& order, int64_t b, int h, int64_t slot) -> int64_t {
    if (!order.token.has_value()) return slot;
    return order.token.at<int32_t>(plan::batch_index(order.token, b), plan::group_index(order.token, h, data.heads_q), slot);
  };
  const Lists& lists = data.by_query;
  for (int64_t b = 0; b < data.batch; ++b) {
    for (int h = 0; h < data.heads_q; ++h) {
      for (int64_t row = 0; row < plan::num_rows(lists, plan::slots_q(data)); ++row) {
        for (const RunList* list : {&lists.whole, &lists.masked, &lists.picked}) {
          const plan::Runs runs = plan::runs_of(*list, b, h, data.heads_q, row);
          for (int i = 0; i < runs.count; ++i) {
            for (int64_t k_slot = runs.start[i]; k_slot < plan::run_stop(runs, i, list->grain, plan::slots_k(data)); ++k_slot) {
              for (int64_t q_slot = plan::row_first(lists, row); q_slot < plan::row_last(lists, row, plan::slots_q(data)); ++q_slot) {
                const int64_t q = token(data.order_q, b, h, q_slot), k = token(data.order_k, b, h, k_slot);
                if (q < 0 || k < 0) continue;
                const bool is_allowed = list != &lists.masked || mask_allows(data.mask, h, b, q, data.seqlen_k - data.seqlen_q, k);
                if (!is_tested || is_allowed) ++bits.at(b, h, q, k);
              }
            }
          }
        }
      }
    }
  }
  return bits;
}

inline Bits bits_of_mask(const Mask& mask, int64_t batch, int heads, int64_t seqlen_q, int64_t seqlen_k) {
  Bits bits(batch, heads, seqlen_q, seqlen_k);
  for (int64_t b = 0; b < batch; ++b) {
    for (int h = 0; h < heads; ++h) {
      for (int64_t q = 0; q < seqlen_q; ++q) {
        for (int64_t k = 0; k < seqlen_k; ++k) bits.at(b, h, q, k) = mask_allows(mask, h, b, q, seqlen_k - seqlen_q, k) ? 1 : 0;
      }
    }
  }
  return bits;
}

/// The rows that a method with scores must use: cut where a query's token is a multiple of `tile` under a causal mask, else every `tile` queries.
inline std::vector<int64_t> row_edges(int64_t seqlen_q, int64_t seqlen_k, int tile, bool is_causal) {
  std::vector<int64_t> edges{0};
  for (int64_t q = 1; q < seqlen_q; ++q) {
    const int64_t number = is_causal ? q + seqlen_k - seqlen_q : q;
    if (((number % tile) + tile) % tile == 0) edges.push_back(q);
  }
  if (seqlen_q > 0) edges.push_back(seqlen_q);
  return edges;
}

/// quality.md's prefix: forced tiles, then by descending score, ties to the smaller index, until the kept score first reaches tau of the total.
inline std::set<int64_t> prefix(const std::vector<double>& score, const std::set<int64_t>& forced, double tau) {
  double total = 0, kept = 0;
  for (const double value : score) total += value;
  std::set<int64_t> chosen = forced;
  for (const int64_t j : forced) kept += score[static_cast<size_t>(j)];
  while (tau >= 1 || kept < tau * total) {
    int64_t best = -1;
    for (int64_t j = 0; j < static_cast<int64_t>(score.size()); ++j) {
      if (chosen.count(j) == 0 && score[static_cast<size_t>(j)] > 0 && (best < 0 || score[static_cast<size_t>(j)] > score[static_cast<size_t>(best)]))
        best = j;
    }
    if (best < 0) break;
    chosen.insert(best);
    kept += score[static_cast<size_t>(best)];
  }
  return chosen;
}

/// How close the kept score of the last step comes to the cut, as a share of the total: within rounding of it, two plans may differ.
inline double distance_to_cut(const std::vector<double>& score, const std::set<int64_t>& forced, double tau) {
  double total = 0, kept = 0, nearest = HUGE_VAL;
  std::vector<double> rest;
  for (size_t j = 0; j < score.size(); ++j) {
    total += score[j];
    if (forced.count(static_cast<int64_t>(j)) != 0)
      kept += score[j];
    else
      rest.push_back(score[j]);
  }
  std::sort(rest.rbegin(), rest.rend());
  for (size_t i = 0; i < rest.size(); ++i) {
    nearest = std::min(nearest, std::abs(kept - tau * total) / total);
    kept += rest[i];
  }
  return std::min(nearest, std::abs(kept - tau * total) / total);
}

/// Sets the pairs of a row's tiles that the mask allows.
inline void set_tiles(Bits& bits, const Mask& mask, int64_t b, int h, int64_t q_first, int64_t q_last, int tile, const std::set<int64_t>& tiles) {
  for (const int64_t j : tiles) {
    for (int64_t k = j * tile; k < std::min(bits.seqlen_k, (j + 1) * tile); ++k) {
      for (int64_t q = q_first; q < q_last; ++q) {
        if (mask_allows(mask, h, b, q, bits.seqlen_k - bits.seqlen_q, k)) bits.at(b, h, q, k) = 1;
      }
    }
  }
}

/// A problem's sizes, as the tests go through them.
struct Sizes {
  int64_t batch;
  int heads_q, heads_kv;
  int64_t seqlen_q, seqlen_k, dim;
};

inline std::ostream& operator<<(std::ostream& out, const Sizes& s) {
  return out << "B " << s.batch << " Hq " << s.heads_q << " Hkv " << s.heads_kv << " Sq " << s.seqlen_q << " Sk " << s.seqlen_k << " D " << s.dim;
}

}  // namespace tilewise::testing
