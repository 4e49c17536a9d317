// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bench/attend/cpu/inputs.h"
#include "tilewise/attend/attend.h"

// The backward's rows of `tilewise bench`. The plan has by_query alone: what is timed makes its transpose, too.
namespace tilewise::bench {

/// Forward results and gradients of one plan.
struct BackwardInputs {
  std::shared_ptr<Inputs> inputs;
  RandomPlan plan;
  Tensor out, lse, dout, dq, dk, dv;
  bool has_forward = false;

  BackwardInputs(std::shared_ptr<Inputs> inputs_, RandomPlan plan_, Context& context) : inputs(std::move(inputs_)), plan(std::move(plan_)) {
    const Shape& shape = inputs->q.view.shape();
    for (Tensor* const tensor : {&out, &dout, &dq, &dk, &dv}) *tensor = Tensor(context.memory, inputs->q.view.dtype(), shape);
    lse = Tensor(context.memory, Dtype::f32, inputs->lse.view.shape());
    // The values serve as incoming gradients: any normal numbers would.
    const auto bytes = static_cast<size_t>(shape.numel()) * size_of(inputs->q.view.dtype());
    std::copy_n(static_cast<const std::byte*>(inputs->v.view.raw()), bytes, static_cast<std::byte*>(dout.view.raw()));
  }

  void run(Context& context) {
    AttendParams forward = inputs->params(plan.plan);
    forward.out = out.view;
    forward.lse = lse.view;
    if (!has_forward) attend_forward(forward, context);
    has_forward = true;
    attend_backward({.forward = forward, .dout = dout.view, .dq = dq.view, .dk = dk.view, .dv = dv.view}, context);
  }

  bool reads(int head, int64_t query, int64_t key) const {
    const Lists& lists = plan.plan->by_query;
    for (const RunList* const list : {&lists.whole, &lists.masked}) {  // the mask is open
      const plan::Runs runs = plan::runs_of(*list, 0, head, inputs->heads, query / lists.tile);
      for (int i = 0; i < runs.count; ++i) {
        if (key >= runs.start[i] && key < plan::run_stop(runs, i, list->grain, inputs->length)) return true;
      }
    }
    return false;
  }

  /// Holds dq of a few queries, dk and dv of a few keys against f64 over the pairs that the plan lists.
  std::string fault() const {
    const int64_t dim = inputs->head_dim, length = inputs->length;
    const double scale = 1 / std::sqrt(static_cast<double>(dim)), bound = inputs->q.view.dtype() == Dtype::f32 ? 1e-5 : 2e-2;
    for (const int head : {0, inputs->heads - 1}) {
      const int64_t base = head * length * dim;
      const auto at = [&](const Tensor& tensor, int64_t row, int64_t d) { return value_at(tensor.view, base + row * dim + d); };
      struct Pair {
        double p, ds;
      };
      const auto pair_of = [&](int64_t query, int64_t key) {
        double s = 0, dp = 0, delta = 0;
        for (int64_t d = 0; d < dim; ++d) {
          s += at(inputs->q, query, d) * at(inputs->k, key, d);
          dp += at(dout, query, d) * at(inputs->v, key, d);
          delta += at(dout, query, d) * at(out, query, d);
        }
        const double p = std::exp(s * scale - static_cast<double>(lse.view.at<float>(0, head, query)));
        return Pair{p, p * (dp - delta) * scale};
      };
      for (const int64_t row : {int64_t{0}, length / 2 + 5, length - 1}) {
        std::vector<double> exact_q(static_cast<size_t>(dim), 0.0), exact_k = exact_q, exact_v = exact_q;
        for (int64_t other = 0; other < length; ++other) {
          if (reads(head, row, other)) {
            const double ds = pair_of(row, other).ds;
            for (int64_t d = 0; d < dim; ++d) exact_q[static_cast<size_t>(d)] += ds * at(inputs->k, other, d);
          }
          if (reads(head, other, row)) {
            const Pair pair = pair_of(other, row);
            for (int64_t d = 0; d < dim; ++d) {
              exact_k[static_cast<size_t>(d)] += pair.ds * at(inputs->q, other, d);
              exact_v[static_cast<size_t>(d)] += pair.p * at(dout, other, d);
            }
          }
        }
        for (const auto& [name, got, exact] : {std::tuple{"dq", &dq, &exact_q}, {"dk", &dk, &exact_k}, {"dv", &dv, &exact_v}}) {
          for (int64_t d = 0; d < dim; ++d) {
            const double right = (*exact)[static_cast<size_t>(d)], found = at(*got, row, d);
            if (!(std::fabs(found - right) <= bound * (1 + std::fabs(right)))) {
              return std::string(name) + " head " + std::to_string(head) + " row " + std::to_string(row) + " channel " + std::to_string(d) + ": " +
                     std::to_string(found) + ", exact " + std::to_string(right);
            }
          }
        }
      }
    }
    return "";
  }
};

/// Counts five products a pair: 2.5 times the forward.
inline Row backward_row(const std::shared_ptr<Inputs>& inputs, const RandomPlan& plan, std::string name, Context& context) {
  const auto state = std::make_shared<BackwardInputs>(inputs, plan, context);
  Row row;
  row.name = std::move(name);
  row.shape = inputs->shape();
  row.flop = 10 * plan.pairs * static_cast<double>(inputs->head_dim);
  row.density = plan.density;
  row.run = [state, &context] { state->run(context); };
  row.fault = [state] { return state->fault(); };
  return row;
}

}  // namespace tilewise::bench
