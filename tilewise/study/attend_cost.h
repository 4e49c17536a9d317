// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/methods/method.h"

namespace tilewise::study {

/// What a plan gives the kernels to do, over batch and heads. A row computes a run whole, whichever of its slots read it.
struct AttendWork {
  double pairs = 0;     // of runs, before the mask
  double picked = 0;    // pairs of picked keys
  double segments = 0;  // runs, counted for every 64 slots of their row
};
/// O(runs). Of a plan with by_key alone all pairs that are read, as one segment a row.
AttendWork attend_work(const Plan& plan);

/// What that takes on this machine with this executor.
struct AttendRates {
  double pair_ns = 0, picked_ns = 0, segment_ns = 0;

  double ms(const AttendWork& work) const { return (pair_ns * work.pairs + picked_ns * work.picked + segment_ns * work.segments) / 1e6; }
};
/// Measured on the last queries and the first keys of a problem with v (up to 4,096, first batch entry): dense attention, short runs, picked keys. CPU
/// time, the least of several runs of each, so load changes little. Sq and Sk are at least 1.
AttendRates measure_rates(const Problem& problem, const Context& context);

}  // namespace tilewise::study
