// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/qkv_source.h"

#include <vector>

#include "tilewise/machine/device.h"
#include "tilewise/study/comparer.h"
#include "tilewise/study/row_meter.h"
#include "tilewise/study/trial.h"

namespace tilewise::study {
namespace {

/// One call is short, and its first run meets cold caches and untouched memory.
constexpr int kRepeats = 3;

}  // namespace

void QkvSource::check(const CompareRequest& request) const {
  using tilewise::check;
  check(request.texts.empty() && request.needles.empty(), Error::Kind::value, "compare: texts and needles need a model, these are tensors");
  check(!request.recipe, Error::Kind::value, "compare: a recipe is made for the layers of a model, these are tensors of one call");
}

InputFigures QkvSource::input() const {
  InputFigures input;
  input.qkv = tensors_.name;
  input.mask = tensors_.mask_text;
  input.is_mask_assumed = tensors_.is_mask_assumed;
  input.dtype = std::string(name(tensors_.q.view.dtype()));
  input.batch = tensors_.q.view.dim(0);
  input.length = tensors_.q.view.dim(2);
  input.length_k = tensors_.k.view.dim(2);
  input.num_layers = 1;
  input.heads_q = static_cast<int>(tensors_.q.view.dim(1));
  input.heads_kv = static_cast<int>(tensors_.k.view.dim(1));
  input.head_dim = static_cast<int>(tensors_.q.view.dim(3));
  return input;
}

double QkvSource::work(Step step, const std::string& name) const {
  switch (step) {
    case Step::dense: return kRepeats;
    case Step::row: return kRepeats * (1 + extra_share(name)) + (request_.has_maps ? .7 : 0);
    case Step::attempt: return extra_share(name);
    case Step::needles: break;
  }
  return 0;
}

Problem QkvSource::problem() const {
  Problem problem;
  problem.q = tensors_.q.view;
  problem.k = tensors_.k.view;
  problem.v = tensors_.v.view;
  problem.mask = tensors_.mask;
  problem.softmax_scale = tensors_.softmax_scale;
  problem.seed = request_.seed;
  return problem;
}

Tensor QkvSource::make_out() const {
  const TensorView &q = tensors_.q.view, &v = tensors_.v.view;
  return machine::make_tensor(outer_, q.dtype(), {q.dim(0), q.dim(1), q.dim(2), v.dim(3)});
}

void QkvSource::run_dense(DenseFigures& dense) {
  const auto counting = std::make_shared<CountingMemory>(outer_.memory);
  Context own = outer_;
  own.memory = counting;
  const Problem here = problem();
  dense_out_ = make_out();
  dense_lse_ = machine::make_tensor(outer_, Dtype::f32, {here.q.dim(0), here.q.dim(1), here.q.dim(2)});
  const Plan plan = dense_plans_.of(here, own);
  std::vector<double> times;
  for (int i = 0; i < kRepeats; ++i) {
    progress_.part("run " + std::to_string(i + 1) + "/" + std::to_string(kRepeats), static_cast<double>(i) / kRepeats);
    const Stopwatch watch(own);
    dense.backend = backend_name(attend(here, plan, dense_out_.view, dense_lse_.view, own));
    times.push_back(watch.ms());
  }
  dense.attend_ms = median(times);
  if (request_.has_tune) {
    rates_ = measure_rates(here, outer_);
    dense_cost_ms_ = rates_.ms(attend_work(plan));
  }
  dense.peak_bytes = counting->peak_bytes();
}

void QkvSource::fill_row(MethodFigures& row, size_t number, const Planner& planner) {
  const auto counting = std::make_shared<CountingMemory>(outer_.memory);
  Context own = outer_;
  own.memory = counting;
  const Problem here = problem();
  RowMeter meter(1, static_cast<int>(here.q.dim(1)), outer_);
  const Tensor out = make_out();
  std::optional<HeadMaps> maps;
  if (map_shape_) maps.emplace(*map_shape_, input());
  progress_.part("beside dense", 0);
  const Plan plan = meter.run({.problem = here, .out = out.view}, planner, own, kRepeats, maps ? &*maps : nullptr);
  if (request_.on_plan) request_.on_plan(number, row.name, 0, 0, plan);
  row.peak_bytes = counting->peak_bytes();
  meter.write(row, 1);
  if (maps) maps->write(row);
}

NeedleFigures QkvSource::ask_needles(const Planner&) { fail(Error::Kind::value, "compare: needles need a model, these are tensors"); }

Attempt QkvSource::attempt(const Planner& planner, double most_ms) {
  Context own = outer_;
  const Problem here = problem();
  const Tensor out = make_out();
  const Tensor lse(outer_.memory, Dtype::f32, dense_lse_.view.shape());
  progress_.part("alone", 0);
  Trial trial(rates_, most_ms);
  Attempt result;
  if (trial.run(planner, {.problem = here, .out = out.view}, lse.view, own)) {
    LayerSums sums(1, static_cast<int>(here.q.dim(1)));
    sums.add_plan(0, trial.plan(), dense_plans_.of(here, own));
    sums.add_outputs(0, out.view, lse.view, dense_out_.view, dense_lse_.view, own);
    MethodFigures figures;
    sums.write(figures);
    result.excess = figures.output_error;
  }
  trial.write(result);
  return result;
}

}  // namespace tilewise::study

TILEWISE_BEGIN_PUBLIC

Comparison compare(const QkvTensors& tensors, const CompareRequest& request, Context& context) {
  study::ProgressMeter progress(request.progress);
  study::QkvSource source(tensors, request, progress, context);
  return study::run_comparison(source, request, progress);
}

TILEWISE_END_PUBLIC
