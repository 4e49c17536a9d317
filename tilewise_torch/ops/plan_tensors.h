// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "tilewise/plan/plan.h"

// A plan as two tensors, which is how operators take it. `memory` (u8, on the plan's device) holds its arrays one behind another; `layout` (i64, on the CPU) says
// where each lies and holds everything else: lengths, tiles, the mask. Nothing about a plan is an integer argument, so a graph that was compiled for one length serves others.
namespace tilewise::ops {

/// Places in `layout` that Python reads, too (python/tilewise/_plan.py).
enum LayoutField : size_t {
  kMagic,  // kLayoutMagic: format and its version
  kNumbers,  // of the whole layout
  kBytes,  // of memory
  kSeqlenQ,
  kSeqlenK,
  kDenseReads,
  kBatch,
  kHeadsQ,
  kIsByKey,
  kMaskFirst,
  kTileQ,  // by_query: tile, then the grains of whole, masked and picked
  kTileK = kTileQ + 4,
  kPools = kTileK + 4,  // from here on: how many numbers of each kind stand behind the table of arrays, in this order
  kDenseReadsOfHead,
  kBands,
  kGrids,
  kGridAxes,
  kHeadClass,
  kBoxesQ,
  kBoxesK,
  kArrays,  // the table: offset (-1: absent) and four sizes for each array
};
inline constexpr int64_t kLayoutMagic = 0x31'57'54;  // "TW1"
inline constexpr size_t kNumArrays = 37, kNumbersPerArray = 5;

/// Where its arrays lie.
Device device_of(const Plan& plan);

/// Where the arrays of a plan go in memory of their own, 64-byte aligned. Errors: value (null plan), unsupported (arrays on a device).
std::vector<int64_t> layout_of(const Plan& plan);

/// Where the arrays of a plan lie in `memory`, which holds all of them. Errors: value (null plan), unsupported (one lies elsewhere, or has gaps).
std::vector<int64_t> layout_within(const Plan& plan, const Buffer& memory);

/// Copies the arrays to their places; `memory` has layout[kBytes] bytes.
void write_arrays(const Plan& plan, std::span<const int64_t> layout, std::byte* memory);

/// The plan that lies there, without a copy: memory must outlive it. Checked: that this is a layout, and that every array lies within `bytes`. What the
/// arrays say is trusted, as everywhere; validate() looks.
/// Errors: value.
Plan plan_at(std::byte* memory, int64_t bytes, Device device, std::span<const int64_t> layout);

}  // namespace tilewise::ops
