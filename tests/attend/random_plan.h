// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "tests/attend/test_mask.h"
#include "tests/attend/test_tensor.h"
#include "tilewise/base/memory.h"
#include "tilewise/plan/plan.h"

// Seeded plans of every kind that the format holds. A plan comes with the pairs it means, noted down while it is made: nothing here reads plans back.
namespace tilewise::attend::testing {

enum class MaskKind { full, causal, window, sink_window, classes, spans, grid };

struct PlanOptions {
  int64_t batch = 1, seqlen_q = 64, seqlen_k = 64;
  int heads_q = 1, heads_kv = 1;
  int tile = 64;  // most slots of a row
  int groups = 1;  // G of the lists; divides heads_q
  bool has_batched_lists = false;  // B of the lists is batch, not 1
  MaskKind mask = MaskKind::causal;
  double density = 0.4;  // about; before the mask
  int longest_run = 40;
  int grain = 1;  // of whole and masked
  bool has_stop = true;  // false: every run is `grain` long
  bool has_picked = false, has_rows = false, has_edges = false, has_shared = false;
  bool is_spaced = false;  // gaps between the lists of rows, filled with numbers out of range
  bool has_order_q = false, has_order_k = false;  // random, with padding
  std::vector<int> pools = {};
  bool is_by_key = false;  // the pairs stand in by_key, by_query is empty
  double empty_rows = 0.05;  // share of rows without a run
  bool has_one_run = false;  // rows of one run at most, as long as they like
};

struct RandomPlan {
  Plan plan;
  int64_t slots_k = 0;  // slots of k before the pools
  int64_t slots = 0;  // with the pools
  std::vector<uint8_t> pairs;  // [B, Hq, Sq, slots]: query token x key slot, the mask applied
  std::vector<std::vector<int64_t>> tokens_k;  // [B * Hq] of slots_k: token of each slot, -1 padding
  int64_t reads = 0;  // pairs of real slots before the mask
  std::vector<uint8_t> touched;  // [B, Hq, slots]: some row has a run that holds the key slot

  bool has(int64_t b, int64_t head, int64_t query, int64_t slot) const {
    return pairs[static_cast<size_t>(((b * plan->heads_q + head) * plan->seqlen_q + query) * slots + slot)] != 0;
  }
};

/// A contiguous array in the plan's own memory.
template <class T>
TensorView plan_array(PlanData& plan, const Shape& shape, const std::vector<T>& values) {
  Tensor tensor(host_memory(), kDtypeOf<T>, shape);
  std::copy(values.begin(), values.end(), static_cast<T*>(tensor.view.raw()));
  plan.memory.push_back(std::move(tensor.buffer));
  return tensor.view;
}

class RandomPlanMaker {
 public:
  RandomPlanMaker(Rng& rng, const PlanOptions& options) : rng_(rng), o_(options) {}

  RandomPlan make() {
    plan_ = std::make_shared<PlanData>();
    plan_->seqlen_q = o_.seqlen_q;
    plan_->seqlen_k = o_.seqlen_k;
    plan_->batch = o_.batch;
    plan_->heads_q = o_.heads_q;
    plan_->pools = o_.pools;
    plan_->dense_reads = o_.batch * o_.heads_q * o_.seqlen_q * o_.seqlen_k;
    plan_->mask = random_mask();
    tokens_q_ = random_order(plan_->order_q, o_.seqlen_q, o_.has_order_q, o_.heads_q);
    tokens_k_ = random_order(plan_->order_k, o_.seqlen_k, o_.has_order_k, o_.pools.empty() ? o_.heads_q : o_.heads_kv);
    result_.slots_k = static_cast<int64_t>(tokens_k_[0].size());
    result_.tokens_k = tokens_k_;
    add_pools();
    result_.slots = static_cast<int64_t>(tokens_k_[0].size());
    result_.pairs.assign(static_cast<size_t>(o_.batch * o_.heads_q * o_.seqlen_q * result_.slots), 0);
    result_.touched.assign(static_cast<size_t>(o_.batch * o_.heads_q * result_.slots), 0);
    make_lists(o_.is_by_key ? plan_->by_key : plan_->by_query);
    result_.plan = plan_;
    return std::move(result_);
  }

 private:
  struct Piece {
    int64_t start, stop;
    std::vector<uint64_t> words;
  };
  struct RowLists {
    std::vector<Piece> kinds[3];  // whole, masked, picked
  };

  Mask random_mask() {
    Mask mask;
    const int64_t longest = std::max<int64_t>(1, o_.seqlen_k);
    const auto band = [&](int kind) {
      switch (kind) {
        case 0: return Mask::Band{};
        case 1: return Mask::Band{Mask::kAll, 0, 0};
        case 2: return Mask::Band{uniform(rng_, 0, longest), uniform(rng_, 0, longest / 2), 0};
        default: return Mask::Band{uniform(rng_, 0, longest / 2), 0, uniform(rng_, 1, longest)};
      }
    };
    switch (o_.mask) {
      case MaskKind::full: mask.bands = {band(0)}; break;
      case MaskKind::causal: mask.bands = {band(1)}; break;
      case MaskKind::window: mask.bands = {band(2)}; break;
      case MaskKind::sink_window: mask.bands = {band(3)}; break;
      case MaskKind::classes: mask.bands = {band(0), band(1), band(2), band(3)}; break;
      case MaskKind::spans: mask.spans = random_spans(); break;
      case MaskKind::grid: {
        const auto axes = static_cast<int>(uniform(rng_, 1, 4));
        mask.first = uniform(rng_, 0, longest / 4);
        mask.grids = {random_grid(mask.first, axes), random_grid(mask.first, axes)};
        break;
      }
    }
    const int64_t classes = mask.spans.has_value() ? mask.spans.dim(0) : static_cast<int64_t>(mask.bands.size() + mask.grids.size());
    if (classes > 1) {
      for (int head = 0; head < o_.heads_q; ++head) mask.head_class.push_back(static_cast<uint8_t>(uniform(rng_, 0, classes - 1)));
    }
    return mask;
  }

  // Of each class and batch entry: documents, a prefix and a window, or anything; some queries see nothing.
  TensorView random_spans() {
    const int64_t batch = chance(rng_, 0.5) ? 1 : o_.batch;
    std::vector<int32_t> spans;
    for (int64_t i = 0; i < 2 * batch; ++i) {
      const int64_t form = uniform(rng_, 0, 2), prefix = uniform(rng_, 0, o_.seqlen_k);
      int64_t start = 0, stop = uniform(rng_, 0, o_.seqlen_k);
      for (int64_t query = 0; query < o_.seqlen_q; ++query) {
        std::array<int64_t, 4> cuts{};
        if (form == 0) {  // documents, each seen whole or up to the query
          if (query >= stop) {
            start = stop;
            stop = uniform(rng_, stop, o_.seqlen_k);
          }
          cuts = {start, stop, 0, 0};
        } else if (form == 1) {
          const int64_t left = uniform(rng_, prefix, o_.seqlen_k);
          cuts = {0, prefix, left, std::min(o_.seqlen_k, left + 20)};
        } else {
          for (int64_t& cut : cuts) cut = uniform(rng_, 0, o_.seqlen_k);
          std::sort(cuts.begin(), cuts.end());
        }
        if (chance(rng_, 0.05)) cuts.fill(0);
        spans.insert(spans.end(), cuts.begin(), cuts.end());
      }
    }
    return plan_array(*plan_, {2, batch, o_.seqlen_q, 4}, spans);
  }

  // `num_axes` axes whose cells fit behind `first`; some tokens are left over.
  std::vector<Mask::Axis> random_grid(int64_t first, int num_axes) {
    std::vector<Mask::Axis> axes;
    int64_t cells = std::max<int64_t>(1, o_.seqlen_k - first - uniform(rng_, 0, o_.seqlen_k / 8));
    for (int axis = 0; axis < num_axes; ++axis) {
      Mask::Axis a;
      const auto most = static_cast<int64_t>(std::pow(static_cast<double>(cells), 1.0 / (num_axes - axis)) * 1.5);
      a.length = static_cast<int>(axis + 1 < num_axes ? uniform(rng_, 1, std::clamp<int64_t>(most, 1, cells)) : cells);
      a.dilation = static_cast<int>(uniform(rng_, 1, std::max(1, a.length / 4)));
      a.window = static_cast<int>(uniform(rng_, 1, std::max(1, a.length / a.dilation)));
      a.stride = static_cast<int>(uniform(rng_, 1, a.window));
      a.is_causal = chance(rng_, 0.3);
      cells /= a.length;
      axes.push_back(a);
    }
    return axes;
  }

  std::vector<std::vector<int64_t>> random_order(Order& order, int64_t seqlen, bool has_order, int finest_groups) {
    std::vector<std::vector<int64_t>> all(static_cast<size_t>(o_.batch * o_.heads_q));
    if (!has_order) {
      for (auto& tokens : all) {
        for (int64_t s = 0; s < seqlen; ++s) tokens.push_back(s);
      }
      return all;
    }
    const int64_t batch = chance(rng_, 0.5) ? 1 : o_.batch, groups = chance(rng_, 0.5) ? 1 : finest_groups;
    const int64_t slots = seqlen + uniform(rng_, 0, 9);
    std::vector<int32_t> flat;
    std::vector<std::vector<int32_t>> made;
    for (int64_t i = 0; i < batch * groups; ++i) {
      std::vector<int32_t> tokens(static_cast<size_t>(slots), -1);
      for (int64_t s = 0; s < seqlen; ++s) tokens[static_cast<size_t>(s)] = static_cast<int32_t>(s);
      std::shuffle(tokens.begin(), tokens.end(), rng_);
      flat.insert(flat.end(), tokens.begin(), tokens.end());
      made.push_back(std::move(tokens));
    }
    order.token = plan_array(*plan_, {batch, groups, slots}, flat);
    for (int64_t b = 0; b < o_.batch; ++b) {
      for (int64_t h = 0; h < o_.heads_q; ++h) {
        const auto& tokens = made[static_cast<size_t>((batch == 1 ? 0 : b) * groups + h * groups / o_.heads_q)];
        all[static_cast<size_t>(b * o_.heads_q + h)].assign(tokens.begin(), tokens.end());
      }
    }
    return all;
  }

  void add_pools() {
    part_ends_ = {result_.slots_k};
    for (const int group : o_.pools) part_ends_.push_back(part_ends_.back() + (result_.slots_k + group - 1) / group);
    for (auto& tokens : tokens_k_) {
      for (const int group : o_.pools) {
        for (int64_t first = 0; first < result_.slots_k; first += group) {
          int64_t largest = -1;
          for (int64_t s = first; s < std::min(result_.slots_k, first + group); ++s) largest = std::max(largest, tokens[static_cast<size_t>(s)]);
          tokens.push_back(largest);
        }
      }
    }
  }

  // Token of a slot of the rows' axis and of the runs' axis.
  int64_t query_token(int64_t b, int64_t h, int64_t slot) const {
    return tokens_q_[static_cast<size_t>(b * o_.heads_q + h)][static_cast<size_t>(slot)];
  }
  int64_t key_token(int64_t b, int64_t h, int64_t slot) const {
    return tokens_k_[static_cast<size_t>(b * o_.heads_q + h)][static_cast<size_t>(slot)];
  }
  bool sees(int64_t b, int64_t h, int64_t q, int64_t k) const { return test_mask_sees(*plan_, b, static_cast<int>(h), q, k); }

  // Calls body(b, head) for all that read the lists of (list batch entry, group), until it returns false.
  template <class Body>
  bool for_all_readers(int64_t lb, int64_t g, const Body& body) const {
    const int64_t first_b = o_.has_batched_lists ? lb : 0, last_b = o_.has_batched_lists ? lb + 1 : o_.batch;
    const int64_t heads = o_.heads_q / o_.groups;
    for (int64_t b = first_b; b < last_b; ++b) {
      for (int64_t h = g * heads; h < (g + 1) * heads; ++h) {
        if (!body(b, h)) return false;
      }
    }
    return true;
  }

  // Whether the pair may stand in a list that the mask is not asked about. Padding queries read nothing; padding keys may stand only in masked runs
  // of by_query.
  bool is_free(int64_t lb, int64_t g, int64_t row_slot, int64_t run_slot) const {
    const int64_t qs = o_.is_by_key ? run_slot : row_slot, ks = o_.is_by_key ? row_slot : run_slot;
    return for_all_readers(lb, g, [&](int64_t b, int64_t h) {
      const int64_t k = key_token(b, h, ks), q = query_token(b, h, qs);
      if (k < 0) return o_.is_by_key;
      return q < 0 || sees(b, h, q, k);
    });
  }

  static bool has_bit(const Piece& piece, int64_t slot) {
    return piece.words.empty() || ((piece.words[static_cast<size_t>(slot / 64)] >> (slot % 64)) & 1) != 0;
  }

  // Whether a row may read the piece from the given list.
  bool is_valid(int64_t lb, int64_t g, int64_t first, int64_t last, const Piece& piece, int kind) const {
    bool has_any = false;
    for (int64_t slot = first; slot < last; ++slot) {
      if (!has_bit(piece, slot - first)) continue;
      has_any = true;
      if (kind == 1) continue;
      for (int64_t s = piece.start; s < piece.stop; ++s) {
        if (!is_free(lb, g, slot, s)) return false;
      }
    }
    return has_any;
  }

  std::vector<uint64_t> random_words(int64_t length) {
    std::vector<uint64_t> words(static_cast<size_t>((o_.tile + 63) / 64), 0);
    const bool is_full = chance(rng_, 0.3);
    for (int64_t slot = 0; slot < length; ++slot) {
      if (is_full || chance(rng_, 0.5)) words[static_cast<size_t>(slot / 64)] |= uint64_t{1} << (slot % 64);
    }
    if (is_full) std::fill(words.begin(), words.end(), ~uint64_t{0});  // bits past the row's last slot are ignored
    return words;
  }

  RowLists random_row(int64_t lb, int64_t g, int64_t first, int64_t last, const std::vector<int64_t>& part_ends) {
    RowLists row;
    if (chance(rng_, o_.empty_rows)) return row;
    if (o_.has_one_run && part_ends.back() > 0) {
      const int64_t start = uniform(rng_, 0, part_ends.back() - 1), end = *std::upper_bound(part_ends.begin(), part_ends.end(), start);
      const int64_t length = (uniform(rng_, 1, end - start) + o_.grain - 1) / o_.grain * o_.grain;
      Piece piece{start, std::min(end, start + (o_.has_stop ? length : o_.grain)), {}};
      const int kind = is_valid(lb, g, first, last, piece, 0) ? 0 : 1;
      if (is_valid(lb, g, first, last, piece, kind)) row.kinds[kind].push_back(std::move(piece));
      return row;
    }
    int64_t pos = 0;
    for (const int64_t end : part_ends) {
      while (true) {
        pos += chance(rng_, 0.3) ? 0 : uniform(rng_, 0, static_cast<int64_t>(o_.longest_run * (1 / o_.density - 1) * 1.4));
        if (pos >= end) break;
        const bool is_picked = o_.has_picked && chance(rng_, 0.4);
        int64_t length = o_.has_stop ? (uniform(rng_, 1, o_.longest_run) + o_.grain - 1) / o_.grain * o_.grain : o_.grain;
        if (is_picked) length = 1;
        Piece piece{pos, std::min(end, pos + length), {}};
        if (o_.has_rows && is_picked) piece.words = random_words(last - first);
        int kind = is_picked ? 2 : 0;
        if (is_picked && !piece.words.empty()) {  // leave out the slots that may not see the key
          for (int64_t slot = first; slot < last; ++slot) {
            if (!is_free(lb, g, slot, pos)) piece.words[static_cast<size_t>((slot - first) / 64)] &= ~(uint64_t{1} << ((slot - first) % 64));
          }
        }
        if (kind == 0 && (chance(rng_, 0.3) || !is_valid(lb, g, first, last, piece, 0))) {
          kind = 1;
          if (o_.has_rows) piece.words = random_words(last - first);
        }
        if (is_valid(lb, g, first, last, piece, kind)) row.kinds[kind].push_back(std::move(piece));
        pos = std::min(end, pos + length);
      }
      pos = end;
    }
    return row;
  }

  void note_pairs(int64_t lb, int64_t g, int64_t first, int64_t last, const RowLists& row) {
    for (int kind = 0; kind < 3; ++kind) {
      for (const Piece& piece : row.kinds[kind]) {
        for (int64_t slot = first; slot < last; ++slot) {
          if (!has_bit(piece, slot - first)) continue;
          for (int64_t s = piece.start; s < piece.stop; ++s) {
            const int64_t qs = o_.is_by_key ? s : slot, ks = o_.is_by_key ? slot : s;
            for_all_readers(lb, g, [&](int64_t b, int64_t h) {
              const int64_t q = query_token(b, h, qs), k = key_token(b, h, ks);
              result_.touched[static_cast<size_t>((b * o_.heads_q + h) * result_.slots + ks)] = 1;
              if (q < 0 || k < 0) return true;
              ++result_.reads;
              if (kind == 1 && !sees(b, h, q, k)) return true;
              result_.pairs[static_cast<size_t>(((b * o_.heads_q + h) * o_.seqlen_q + q) * result_.slots + ks)] = 1;
              return true;
            });
          }
        }
      }
    }
  }

  std::vector<int32_t> row_edges(int64_t slots, bool is_needed) {
    if (!o_.has_edges && !is_needed) return {};
    std::vector<int32_t> edges{0};
    const std::vector<int64_t> ends = o_.is_by_key ? part_ends_ : std::vector<int64_t>{slots};
    for (const int64_t end : ends) {
      while (edges.back() < end) {
        const int64_t step = o_.has_edges ? uniform(rng_, 1, o_.tile) : o_.tile;
        edges.push_back(static_cast<int32_t>(std::min(end, edges.back() + step)));
      }
    }
    return edges;
  }

  void make_lists(Lists& lists) {
    const int64_t slots_q = static_cast<int64_t>(tokens_q_[0].size());
    const int64_t row_slots = o_.is_by_key ? result_.slots : slots_q;
    const std::vector<int64_t> run_parts = o_.is_by_key ? std::vector<int64_t>{slots_q} : part_ends_;
    lists.tile = o_.tile;
    const std::vector<int32_t> edges = row_edges(row_slots, o_.is_by_key && !o_.pools.empty());
    const int64_t rows = edges.empty() ? (row_slots + o_.tile - 1) / o_.tile : static_cast<int64_t>(edges.size()) - 1;
    if (!edges.empty()) lists.edge = plan_array(*plan_, {rows + 1}, edges);
    const int64_t list_batch = o_.has_batched_lists ? o_.batch : 1;

    std::vector<RowLists> made;
    std::vector<size_t> source;  // whose arrays a row uses: its own, or those of an earlier row
    for (int64_t lb = 0; lb < list_batch; ++lb) {
      for (int64_t g = 0; g < o_.groups; ++g) {
        for (int64_t row = 0; row < rows; ++row) {
          const int64_t first = edges.empty() ? row * o_.tile : edges[static_cast<size_t>(row)];
          const int64_t last = edges.empty() ? std::min(row_slots, first + o_.tile) : edges[static_cast<size_t>(row + 1)];
          const size_t index = made.size();
          size_t from = index;
          if (o_.has_shared && index > 0 && chance(rng_, 0.5)) from = source[index - 1];
          if (from != index) {
            for (int kind = 0; kind < 3 && from != index; ++kind) {
              for (const Piece& piece : made[from].kinds[kind]) {
                if (!is_valid(lb, g, first, last, piece, kind)) {
                  from = index;
                  break;
                }
              }
            }
          }
          made.push_back(from == index ? random_row(lb, g, first, last, run_parts) : made[from]);
          source.push_back(from);
          note_pairs(lb, g, first, last, made.back());
        }
      }
    }
    const Shape shape{list_batch, o_.groups, rows};
    pack(lists.whole, made, source, 0, shape, o_.grain, o_.has_stop, false);
    pack(lists.masked, made, source, 1, shape, o_.grain, o_.has_stop, o_.has_rows);
    if (o_.has_picked) pack(lists.picked, made, source, 2, shape, 1, false, o_.has_rows);
  }

  void pack(RunList& list, const std::vector<RowLists>& made, const std::vector<size_t>& source, int kind, const Shape& shape, int grain,
            bool has_stop, bool has_rows) {
    const size_t words = static_cast<size_t>((o_.tile + 63) / 64);
    std::vector<int64_t> begin;
    std::vector<int32_t> count, start, stop;
    std::vector<uint64_t> rows;
    const auto add = [&](int32_t first, int32_t last, const std::vector<uint64_t>& bits) {
      start.push_back(first);
      stop.push_back(last);
      for (size_t w = 0; w < words; ++w) rows.push_back(bits.empty() ? ~uint64_t{0} : bits[w]);
    };
    for (size_t i = 0; i < made.size(); ++i) {
      if (source[i] != i) {
        begin.push_back(begin[source[i]]);
        count.push_back(count[source[i]]);
        continue;
      }
      if (o_.is_spaced) {
        for (int64_t gap = uniform(rng_, 0, 3); gap > 0; --gap) add(-77777, -66666, {});
      }
      begin.push_back(static_cast<int64_t>(start.size()));
      count.push_back(static_cast<int32_t>(made[i].kinds[kind].size()));
      for (const Piece& piece : made[i].kinds[kind]) add(static_cast<int32_t>(piece.start), static_cast<int32_t>(piece.stop), piece.words);
    }
    const int64_t capacity = static_cast<int64_t>(start.size());
    list.begin = plan_array(*plan_, shape, begin);
    list.count = plan_array(*plan_, shape, count);
    list.start = plan_array(*plan_, {capacity}, start);
    if (has_stop) list.stop = plan_array(*plan_, {capacity}, stop);
    if (has_rows) list.rows = plan_array(*plan_, {capacity, static_cast<int64_t>(words)}, rows);
    list.grain = grain;
  }

  Rng& rng_;
  PlanOptions o_;
  std::shared_ptr<PlanData> plan_;
  RandomPlan result_;
  std::vector<std::vector<int64_t>> tokens_q_, tokens_k_;  // [B * Hq]
  std::vector<int64_t> part_ends_;
};

/// A plan of the given kind; the same seed gives the same plan. Valid by the rules of the format.
inline RandomPlan random_plan(Rng& rng, const PlanOptions& options) { return RandomPlanMaker(rng, options).make(); }

}  // namespace tilewise::attend::testing
