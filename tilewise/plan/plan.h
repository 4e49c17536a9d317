// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "tilewise/base/memory.h"
#include "tilewise/base/tensor.h"

TILEWISE_BEGIN_PUBLIC

/// What each row reads. A row is up to `tile` neighbouring slots of one axis; a run is the slots [start, stop) of the other.
/// Rows with equal `begin` share a list (heads of a group, halves of a refined tile). An absent `begin` means that no row has a run.
struct RunList {
  TensorView begin;  // [B|1, G|1, T] i64  where the row's runs start; G divides Hq, head h uses h * G / Hq
  TensorView count;  // [B|1, G|1, T] i32  how many
  TensorView start;  // [capacity]    i32  ascending within a row
  TensorView stop;   // [capacity]    i32  absent: start + grain, cut where the slots or the pool end
  TensorView rows;   // [capacity, ceil(tile / 64)] u64  bit s % 64 of word s / 64: slot s of the row reads the run; absent: all do
  int grain = 1;     // every length is a multiple of it, except at the end of the slots or of a pool

  bool has_runs() const { return begin.has_value(); }
};

/// One direction of a plan. The three lists of a row are disjoint.
struct Lists {
  int tile = 128;     // most slots in a row: 16 to 256
  TensorView edge;    // [T + 1] i32  first slot of each row; absent: i * tile
  RunList whole;      // read without a test; has no `rows`
  RunList masked;     // every pair tested by the mask (and by `rows`)
  RunList picked;     // single slots (grain 1, no `stop`), gathered; the mask is not asked, `rows` holds
  TensorView status;  // [2] i32  rows that outgrew their space, first fault; absent for plans made on the host

  bool has_runs() const { return whole.has_runs() || masked.has_runs() || picked.has_runs(); }
};

/// The grid, box and dilation that an order was made from: dilation groups one after another, then boxes, then cells.
struct BoxOrder {
  std::vector<int> grid, box, dilation;  // one number per axis
  bool operator==(const BoxOrder&) const = default;
};

/// Slot s holds token token[s]; -1 is padding, never read or written. Absent: slot s holds token s.
struct Order {
  TensorView token;  // [B|1, G|1, slots] i32
  std::optional<BoxOrder> boxes;
};

/// The test of masked runs. It reads *token* numbers, so it holds under any order; query i counts as token i + Sk - Sq (bottom-right).
struct TILEWISE_API Mask {
  static constexpr int64_t kAll = INT64_MAX;  // an unlimited side of a band

  /// Token t sees [t - left, t + right] and [0, sink), nothing past t + right. Causal: right = 0.
  struct Band {
    int64_t left = kAll, right = kAll, sink = 0;
    bool operator==(const Band&) const = default;
  };
  /// One axis of a neighbourhood (GNA, arXiv 2504.16922; see docs/systems/gna.md).
  struct Axis {
    int length = 1, window = 1, stride = 1, dilation = 1;
    bool is_causal = false;
    bool operator==(const Axis&) const = default;
  };

  std::vector<Band> bands;               // one per class of heads; full and causal are bands
  TensorView spans;                      // or [C, B|1, Sq, 4] i32: keys [s0, s1) and [s2, s3) of each query
  std::vector<std::vector<Axis>> grids;  // or a neighbourhood per class; tokens before and after the grid see and are seen by all
  int64_t first = 0;                     // token of a grid's first cell
  std::vector<uint8_t> head_class;       // [Hq]; empty: every head is class 0

  static Mask full() { return {.bands = {Band{}}, .spans = {}, .grids = {}, .first = 0, .head_class = {}}; }
  static Mask causal() { return {.bands = {Band{kAll, 0, 0}}, .spans = {}, .grids = {}, .first = 0, .head_class = {}}; }
};

/// Everything a kernel reads to know which pairs to compute. A pooled key's slot lies behind the slots of k.
struct PlanData {
  int64_t seqlen_q = 0, seqlen_k = 0;  // tokens
  // Pairs, over all batch entries and heads, that the dense plan of the model's mask and this tile reads: the denominator of density.
  int64_t dense_reads = 0;
  std::vector<int64_t> dense_reads_of_head;  // [Hq], they add up to dense_reads; empty: every head has an equal share
  int64_t batch = 1;        // B and Hq that dense_reads counts and lists broadcast to
  int heads_q = 1;
  Lists by_query, by_key;   // the same pairs twice; one may be without runs until complete() builds it
  bool is_by_key = false;   // by_key is what was planned and by_query was made from it: the content hash reads by_key
  Order order_q, order_k;
  std::vector<int> pools;   // group sizes g: after the slots of k come, for each g, ceil(slots / g) mean keys
  Mask mask;
  std::vector<Buffer> memory;  // owns the above, on one device; empty: the caller keeps the arrays alive
  std::vector<std::shared_ptr<const PlanData>> shared;  // plans whose arrays this one reads, too
};

/// A cheap handle to an immutable plan; null is "no plan", which every function refuses.
using Plan = std::shared_ptr<const PlanData>;

TILEWISE_END_PUBLIC
