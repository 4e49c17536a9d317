// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>

#include "tilewise/infer/recipe.h"
#include "tilewise/study/compare.h"
#include "tilewise/study/planner.h"
#include "tilewise/study/progress.h"

namespace tilewise::study {

/// A piece of work that a source does, for the time that is left.
enum class Step { dense, row, needles, attempt };

/// What one setting cost when it was tried alone. `excess` is what the bound holds: extra bits per byte, or the output error of tensors.
struct Attempt {
  double density = kNoFigure, excess = kNoFigure, plan_ms = kNoFigure, attend_ms = kNoFigure;  // wall time
  double cost_ms = kNoFigure;  // as TunePoint::cost_ms
  bool is_stopped = false;  // costs more than it was given; density, cost and times are of the layers that ran, excess is missing
};

/// What the rows of a comparison run on: a model with texts, or tensors from a file. Every call may throw what attention and methods throw.
class Source {
 public:
  virtual ~Source() = default;

  /// Bad requests, before any work. Errors: value.
  virtual void check(const CompareRequest& request) const = 0;
  /// After run_dense().
  virtual InputFigures input() const = 0;
  /// What attempt() reads.
  virtual std::string tune_text() const = 0;
  /// Rough and in any unit; `name` is a method's.
  virtual double work(Step step, const std::string& name) const = 0;

  /// Dense attention in a run of its own; what later calls need of it is kept.
  virtual void run_dense(DenseFigures& dense) = 0;
  /// Whether attention runs on a GPU: nothing is tuned there (costs are counted in CPU time), and heads have no maps (they are measured on the CPU).
  virtual bool is_on_gpu() const = 0;
  /// What dense attention costs a setting's text, counted as TunePoint::cost_ms is; after run_dense() of a request that tunes.
  virtual double dense_cost_ms() const = 0;
  /// All figures of a row but its needles; `number` counts rows from 0.
  virtual void fill_row(MethodFigures& row, size_t number, const Planner& planner) = 0;
  virtual NeedleFigures ask_needles(const Planner& planner) = 0;
  /// The first text (or the tensors) with one setting and nothing beside it, given up once it is known to cost more than `most_ms`.
  virtual Attempt attempt(const Planner& planner, double most_ms) = 0;

  /// Rows that are filled from here on have maps of their heads.
  void set_map_shape(const MapShape& shape) { map_shape_ = shape; }

 protected:
  std::optional<MapShape> map_shape_;
};

/// What a method's planning and sparse attention take, as a share of dense attention: an oracle computes every score twice, others are taken
/// at a density of about .2. Only the time left rests on it.
inline double extra_share(const std::string& name) { return name == "oracle" ? 1.6 : .35; }

}  // namespace tilewise::study
