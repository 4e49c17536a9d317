// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "tilewise/base/api.h"

TILEWISE_BEGIN_PUBLIC

// Which head may drop how much: searches over one number of steps for each head. A step lowers a head's threshold once, e.g. multiplies it by 0.9
// (stepped_threshold). They know nothing of models: figures come as tables or from a callback.
// Source  XAttention, arXiv 2503.16428, section 2.3; the search is not in the released code.

/// A choice of steps and what it gives.
struct StepChoice {
  std::vector<int> steps;  // [H]
  double loss = 0;         // the sum of the heads' losses
  int64_t saved = 0;       // the sum of the heads' savings
};

/// Losses and savings of a head after n = 0, 1, ... steps; n = 0 loses and saves nothing. Savings are in integer units (e.g. 0.1 % of all causal tiles).
struct StepTable {
  std::vector<double> loss;
  std::vector<int64_t> save;
};

/// The least loss with a total saving of at least `saving`, exact for losses that add up; ties go to fewer steps of the last heads. O(H * saving * n).
/// Errors: value (no head, tables of unequal or no length, a loss that is not finite, a saving below 0, more than all heads can save).
TILEWISE_API StepChoice dp_knapsack(std::span<const StepTable> heads, int64_t saving);
/// The largest total saving whose least loss is at most `epsilon`. Errors: as above; value (epsilon below what no step loses).
TILEWISE_API StepChoice dp_knapsack_within(std::span<const StepTable> heads, double epsilon);
/// dp_knapsack where every step saves 1: the budget counts adjustments, as published, and cost follows. loss[h][n]. Errors: as above.
TILEWISE_API StepChoice dp_adjustments(std::span<const std::vector<double>> loss, int64_t adjustments);

/// What a model does with thresholds of so many steps.
struct StepEvaluation {
  double performance = 0;  // larger is better
  int64_t tiles = 0;  // executed; decides between equals
};
struct LiteralSearch {
  int heads = 0, max_steps = 21;  // steps that one head may take
  int64_t adjustments = 1000;  // M, over all heads
  std::function<StepEvaluation(std::span<const int> steps)> evaluate;
};
struct LiteralChoice {
  std::vector<int> steps;
  StepEvaluation evaluation;
  int64_t evaluations = 0;
};
/// The published dynamic program, read literally: D[h][m] is the best performance with m adjustments over heads 1 to h; it keeps D[h - 1][m] or lowers
/// head h by one step from the state of D[h - 1][m - 1]. A pass lowers a head at most once; passes repeat from the best state as long as they improve it
/// and adjustments are left. Ties go to fewer tiles, then to fewer adjustments. H * M calls of `evaluate`: for tiny models.
/// Errors: value (no head, no callback, a number below 0); what `evaluate` throws.
TILEWISE_API LiteralChoice dp_literal(const LiteralSearch& search);

/// start * 0.9^steps, and 0 from `max_steps` on: the thresholds that a number of steps stands for.
TILEWISE_API double stepped_threshold(double start, int steps, int max_steps = 21);

/// The threshold with which estimated tile masses keep what `coverage` of the true ones needs, for one head. truth and estimate [rows, tiles]: masses of the
/// tiles that a row sees, 0 elsewhere. Per row the tiles that cover `coverage` of the truth (sorted; one more than there are prefix sums below it) give the
/// smallest estimate that must stay; the threshold is the share of the estimate, over all rows, in tiles with at least their row's. Ties take all.
/// Errors: value (sizes that do not fit, coverage outside 0 to 1).
/// Source  the released profiler of XAttention.
TILEWISE_API double profile_threshold(std::span<const float> truth, std::span<const float> estimate, int64_t tiles, double coverage = .9);

TILEWISE_END_PUBLIC
