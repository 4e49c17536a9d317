// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/head_maps.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tilewise/attend/attend.h"

namespace tilewise::study {
namespace {

constexpr int64_t kFinest = 256;              // tiles along an axis
constexpr size_t kWorstTiles = 20;
constexpr double kMostBytes = 3.4e6;          // of all maps as base64: a report with them stays under 5 MB
constexpr int kSides[] = {64, 48, 32, 24, 16, 12, 8};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Tokens of a tile: at least 16, a multiple of 16.
int64_t tile_of(int64_t seqlen) { return std::max(int64_t{1}, ceil_div(ceil_div(seqlen, kFinest), 16)) * 16; }

/// A whole number of tiles.
int64_t cell_of(int64_t seqlen, int side) { return tile_of(seqlen) * ceil_div(ceil_div(seqlen, tile_of(seqlen)), side); }

/// Shares of mass span many powers of ten; the fourth root makes a byte tell them apart down to 1e-9.
uint8_t root_byte(double share) { return static_cast<uint8_t>(std::lround(255 * std::sqrt(std::sqrt(std::clamp(share, 0.0, 1.0))))); }
uint8_t share_byte(double share) { return static_cast<uint8_t>(std::lround(255 * std::clamp(share, 0.0, 1.0))); }

}  // namespace

std::optional<MapShape> choose_map_shape(const InputFigures& input, int64_t num_maps) {
  if (num_maps == 0) return {};
  for (const int side : kSides) {
    MapShape shape;
    shape.cell_q = cell_of(input.length, side);
    shape.cell_k = cell_of(input.length_k, side);
    shape.side_q = static_cast<int>(ceil_div(input.length, shape.cell_q));
    shape.side_k = static_cast<int>(ceil_div(input.length_k, shape.cell_k));
    shape.is_triangle = (input.mask == "causal" || input.mask == "windows") && input.length == input.length_k;
    if (static_cast<double>(num_maps) * static_cast<double>(shape.cells()) * 3 * 4 / 3 <= kMostBytes) return shape;
  }
  return {};
}

HeadMaps::HeadMaps(const MapShape& shape, const InputFigures& input)
    : shape_(shape),
      seqlen_q_(input.length),
      seqlen_k_(input.length_k),
      batch_(input.batch),
      heads_(input.heads_q),
      tile_q_(tile_of(seqlen_q_)),
      tile_k_(tile_of(seqlen_k_)),
      tiles_q_(ceil_div(seqlen_q_, tile_q_)),
      tiles_k_(ceil_div(seqlen_k_, tile_k_)),
      maps_(static_cast<size_t>(input.num_layers) * static_cast<size_t>(input.heads_q)) {}

void HeadMaps::add(const Problem& problem, const Plan& dense, const Plan& plan, const TensorView& dense_lse, Context& context) {
  // Tiles are of slots: under an order or with pools they are not places in the text. Sequences of a padded batch that come apart are not, either.
  const bool is_whole = problem.q.dim(0) == batch_ && problem.q.dim(2) == seqlen_q_ && problem.k.dim(2) == seqlen_k_;
  if (!is_whole || plan->order_q.token.has_value() || plan->order_k.token.has_value() || !plan->pools.empty()) {
    has_left_out_ = true;
    return;
  }
  const Sums of_dense = measure_tiles(problem, dense, dense_lse, context);
  const Sums of_sparse = measure_tiles(problem, plan, dense_lse, context);
  for (int64_t head = 0; head < heads_; ++head) {
    maps_[static_cast<size_t>(problem.layer * heads_ + head)] = map_of(of_dense, of_sparse, head);
  }
  find_worst(problem.layer, of_dense, of_sparse);
}

HeadMaps::Sums HeadMaps::measure_tiles(const Problem& problem, const Plan& plan, const TensorView& lse, Context& context) const {
  const int plan_tile = plan->by_query.has_runs() ? plan->by_query.tile : plan->by_key.tile;
  const int64_t tile_q = std::gcd(int64_t{plan_tile}, tile_q_), rows = ceil_div(seqlen_q_, tile_q);
  const Shape shape{batch_, heads_, rows, tiles_k_};
  const Tensor mass(context.memory, Dtype::f32, shape), count(context.memory, Dtype::f32, shape);
  measure({.q = problem.q,
           .k = problem.k,
           .plan = plan,
           .lse = lse,
           .over = MeasureOver::tile,
           .tile_q = static_cast<int>(tile_q),
           .tile_k = static_cast<int>(tile_k_),
           .softmax_scale = problem.softmax_scale,
           .softcap = problem.softcap,
           .sum = mass.view,
           .count = count.view},
          context);
  Sums sums;
  sums.mass.assign(static_cast<size_t>(heads_ * tiles_q_ * tiles_k_), 0);
  sums.count = sums.mass;
  for (int64_t b = 0; b < batch_; ++b) {
    for (int64_t head = 0; head < heads_; ++head) {
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t from = ((b * heads_ + head) * rows + row) * tiles_k_, to = (head * tiles_q_ + row * tile_q / tile_q_) * tiles_k_;
        for (int64_t j = 0; j < tiles_k_; ++j) {
          sums.mass[static_cast<size_t>(to + j)] += mass.view.data<float>()[from + j];
          sums.count[static_cast<size_t>(to + j)] += count.view.data<float>()[from + j];
        }
      }
    }
  }
  return sums;
}

HeadMap HeadMaps::map_of(const Sums& dense, const Sums& sparse, int64_t head) const {
  HeadMap map;
  const int64_t merge_q = shape_.cell_q / tile_q_, merge_k = shape_.cell_k / tile_k_;
  for (int64_t i = 0; i < shape_.side_q; ++i) {
    const double queries = static_cast<double>(batch_ * (std::min(seqlen_q_, (i + 1) * shape_.cell_q) - i * shape_.cell_q));
    for (int64_t j = 0; j < (shape_.is_triangle ? i + 1 : shape_.side_k); ++j) {
      double mass = 0, kept = 0, allowed = 0, read = 0;
      for (int64_t a = i * merge_q; a < std::min(tiles_q_, (i + 1) * merge_q); ++a) {
        for (int64_t b = j * merge_k; b < std::min(tiles_k_, (j + 1) * merge_k); ++b) {
          const size_t at = static_cast<size_t>((head * tiles_q_ + a) * tiles_k_ + b);
          mass += static_cast<double>(dense.mass[at]);
          kept += static_cast<double>(sparse.mass[at]);
          allowed += static_cast<double>(dense.count[at]);
          read += static_cast<double>(sparse.count[at]);
        }
      }
      map.mass.push_back(root_byte(mass / queries));
      map.kept.push_back(share_byte(allowed > 0 ? read / allowed : 0));
      // What is read whole misses nothing, however the two sums round.
      map.missed.push_back(read >= allowed ? uint8_t{0} : root_byte((mass - kept) / queries));
    }
  }
  return map;
}

void HeadMaps::find_worst(int layer, const Sums& dense, const Sums& sparse) {
  const auto is_worse = [](const WorstTile& a, const WorstTile& b) { return a.missed > b.missed; };
  for (int64_t head = 0; head < heads_; ++head) {
    for (int64_t i = 0; i < tiles_q_; ++i) {
      const int64_t first_q = i * tile_q_, last_q = std::min(seqlen_q_, first_q + tile_q_);
      for (int64_t j = 0; j < tiles_k_; ++j) {
        const size_t at = static_cast<size_t>((head * tiles_q_ + i) * tiles_k_ + j);
        if (!(sparse.count[at] < dense.count[at])) continue;
        const double missed = static_cast<double>(dense.mass[at] - sparse.mass[at]) / static_cast<double>(batch_ * (last_q - first_q));
        if (!(missed > 0) || (worst_.size() >= kWorstTiles && missed <= worst_.back().missed)) continue;
        const WorstTile tile{layer, static_cast<int>(head), first_q, last_q, j * tile_k_, std::min(seqlen_k_, (j + 1) * tile_k_), missed};
        worst_.insert(std::upper_bound(worst_.begin(), worst_.end(), tile, is_worse), tile);
        if (worst_.size() > kWorstTiles) worst_.pop_back();
      }
    }
  }
}

void HeadMaps::write(MethodFigures& row) const {
  for (HeadFigures& head : row.heads) head.map = maps_[static_cast<size_t>(head.layer * heads_ + head.head)];
  row.worst_tiles = worst_;
  if (has_left_out_) row.notes.push_back("no attention maps of layers that reorder or pool tokens, or of sequences that were read apart");
}

}  // namespace tilewise::study
