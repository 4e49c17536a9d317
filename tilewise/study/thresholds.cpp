// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/thresholds.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "tilewise/base/error.h"

TILEWISE_BEGIN_PUBLIC

namespace {

constexpr double kNone = std::numeric_limits<double>::infinity();

int64_t check_tables(const char* where, std::span<const StepTable> heads) {
  check(!heads.empty(), Error::Kind::value, where, ": there is no head; give one table for each");
  int64_t most = 0;
  for (size_t h = 0; h < heads.size(); ++h) {
    const StepTable& table = heads[h];
    check(!table.loss.empty() && table.loss.size() == table.save.size(), Error::Kind::value, where, ": head ", h, " has ", table.loss.size(),
          " losses and ", table.save.size(), " savings; it takes one of each for every number of steps from 0");
    for (const double loss : table.loss)
      check(std::isfinite(loss), Error::Kind::value, where, ": a loss of head ", h, " is ", loss, "; it must be finite");
    for (const int64_t save : table.save) check(save >= 0, Error::Kind::value, where, ": head ", h, " saves ", save, "; it takes 0 or more");
    most += *std::max_element(table.save.begin(), table.save.end());
  }
  return most;
}

/// D[h][c], the least loss of the first h heads with a saving of at least c, and the steps of head h - 1 that reach it.
struct Program {
  std::vector<std::vector<double>> least;
  std::vector<std::vector<int>> step;

  Program(std::span<const StepTable> heads, int64_t savings)
      : least(heads.size() + 1, std::vector<double>(static_cast<size_t>(savings) + 1, kNone)),
        step(heads.size(), std::vector<int>(static_cast<size_t>(savings) + 1, 0)) {
    least[0][0] = 0;
    for (size_t h = 0; h < heads.size(); ++h) {
      for (int64_t c = 0; c <= savings; ++c) {
        double& best = least[h + 1][static_cast<size_t>(c)];
        for (size_t n = 0; n < heads[h].loss.size(); ++n) {
          const double loss = least[h][static_cast<size_t>(std::max<int64_t>(0, c - heads[h].save[n]))] + heads[h].loss[n];
          if (loss < best) {
            best = loss;
            step[h][static_cast<size_t>(c)] = static_cast<int>(n);
          }
        }
      }
    }
  }

  StepChoice trace(std::span<const StepTable> heads, int64_t saving) const {
    StepChoice choice;
    choice.steps.resize(heads.size());
    choice.loss = least[heads.size()][static_cast<size_t>(saving)];
    for (size_t h = heads.size(); h-- > 0;) {
      const int n = step[h][static_cast<size_t>(saving)];
      choice.steps[h] = n;
      choice.saved += heads[h].save[static_cast<size_t>(n)];
      saving = std::max<int64_t>(0, saving - heads[h].save[static_cast<size_t>(n)]);
    }
    return choice;
  }
};

bool is_better(const StepEvaluation& a, const StepEvaluation& b) {
  return a.performance != b.performance ? a.performance > b.performance : a.tiles < b.tiles;
}

}  // namespace

StepChoice dp_knapsack(std::span<const StepTable> heads, int64_t saving) {
  const int64_t most = check_tables("dp_knapsack", heads);
  check(saving >= 0 && saving <= most, Error::Kind::value, "dp_knapsack: the wanted saving is ", saving, "; these heads save 0 to ", most);
  return Program(heads, saving).trace(heads, saving);
}

StepChoice dp_knapsack_within(std::span<const StepTable> heads, double epsilon) {
  const int64_t most = check_tables("dp_knapsack_within", heads);
  const Program program(heads, most);
  const std::vector<double>& least = program.least.back();
  check(least[0] <= epsilon, Error::Kind::value, "dp_knapsack_within: epsilon is ", epsilon, ", below the least loss of all, ", least[0]);
  int64_t saving = most;
  while (least[static_cast<size_t>(saving)] > epsilon) --saving;
  return program.trace(heads, saving);
}

StepChoice dp_adjustments(std::span<const std::vector<double>> loss, int64_t adjustments) {
  std::vector<StepTable> heads;
  for (const std::vector<double>& of_head : loss) {
    heads.push_back({of_head, std::vector<int64_t>(of_head.size())});
    std::iota(heads.back().save.begin(), heads.back().save.end(), int64_t{0});
  }
  const int64_t most = check_tables("dp_adjustments", heads);
  check(adjustments >= 0 && adjustments <= most, Error::Kind::value, "dp_adjustments: ", adjustments, " adjustments; these heads take 0 to ", most);
  // Exactly so many: a head's step counts as one and none may be left over.
  std::vector<std::vector<double>> least(loss.size() + 1, std::vector<double>(static_cast<size_t>(adjustments) + 1, kNone));
  std::vector<std::vector<int>> step(loss.size(), std::vector<int>(static_cast<size_t>(adjustments) + 1, 0));
  least[0][0] = 0;
  for (size_t h = 0; h < loss.size(); ++h) {
    for (int64_t m = 0; m <= adjustments; ++m) {
      for (int64_t n = 0; n < static_cast<int64_t>(loss[h].size()) && n <= m; ++n) {
        const double total = least[h][static_cast<size_t>(m - n)] + loss[h][static_cast<size_t>(n)];
        if (total < least[h + 1][static_cast<size_t>(m)]) {
          least[h + 1][static_cast<size_t>(m)] = total;
          step[h][static_cast<size_t>(m)] = static_cast<int>(n);
        }
      }
    }
  }
  StepChoice choice{std::vector<int>(loss.size()), least.back()[static_cast<size_t>(adjustments)], adjustments};
  int64_t left = adjustments;
  for (size_t h = loss.size(); h-- > 0;) {
    choice.steps[h] = step[h][static_cast<size_t>(left)];
    left -= choice.steps[h];
  }
  return choice;
}

LiteralChoice dp_literal(const LiteralSearch& search) {
  check(search.heads >= 1, Error::Kind::value, "dp_literal: there are ", search.heads, " heads; give at least 1");
  check(search.evaluate != nullptr, Error::Kind::value, "dp_literal: there is no callback; give evaluate");
  check(search.max_steps >= 0 && search.adjustments >= 0, Error::Kind::value, "dp_literal: max_steps ", search.max_steps, " and adjustments ",
        search.adjustments, "; both take 0 or more");
  struct State {
    std::vector<int> steps;
    StepEvaluation evaluation;
  };
  LiteralChoice best;
  best.steps.assign(static_cast<size_t>(search.heads), 0);
  const auto evaluate = [&](const std::vector<int>& steps) {
    ++best.evaluations;
    return search.evaluate(steps);
  };
  best.evaluation = evaluate(best.steps);
  for (int64_t left = search.adjustments; left > 0;) {
    const auto width = static_cast<size_t>(std::min<int64_t>(left, search.heads)) + 1;
    std::vector<std::optional<State>> row(width);  // D[h - 1][m], turned into D[h][m] from the largest m down
    row[0] = State{best.steps, best.evaluation};
    for (size_t h = 0; h < static_cast<size_t>(search.heads); ++h) {
      for (size_t m = std::min(width - 1, h + 1); m >= 1; --m) {
        if (!row[m - 1] || row[m - 1]->steps[h] >= search.max_steps) continue;
        State lowered = *row[m - 1];
        ++lowered.steps[h];
        lowered.evaluation = evaluate(lowered.steps);
        if (!row[m] || is_better(lowered.evaluation, row[m]->evaluation)) row[m] = std::move(lowered);
      }
    }
    size_t used = 0;
    for (size_t m = 1; m < width; ++m) {
      if (row[m] && is_better(row[m]->evaluation, row[used]->evaluation)) used = m;
    }
    if (used == 0) break;
    best.steps = row[used]->steps;
    best.evaluation = row[used]->evaluation;
    left -= static_cast<int64_t>(used);
  }
  return best;
}

double stepped_threshold(double start, int steps, int max_steps) { return steps >= max_steps ? 0 : start * std::pow(.9, steps); }

double profile_threshold(std::span<const float> truth, std::span<const float> estimate, int64_t tiles, double coverage) {
  check(tiles >= 1 && truth.size() == estimate.size() && truth.size() % static_cast<size_t>(tiles) == 0, Error::Kind::value,
        "profile_threshold: ", truth.size(), " true and ", estimate.size(), " estimated masses in rows of ", tiles,
        "; they take rows of equal length");
  check(coverage >= 0 && coverage <= 1, Error::Kind::value, "profile_threshold: coverage is ", coverage, "; it takes 0 to 1");
  double kept = 0, all = 0;
  std::vector<size_t> order(static_cast<size_t>(tiles));
  for (size_t row = 0; row < truth.size(); row += static_cast<size_t>(tiles)) {
    const auto t = truth.subspan(row, static_cast<size_t>(tiles)), x = estimate.subspan(row, static_cast<size_t>(tiles));
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return t[a] > t[b]; });
    double total = 0, held = 0;
    for (const float mass : t) total += static_cast<double>(mass);
    if (total <= 0) continue;  // a row that sees nothing
    float least = x[order[0]];
    for (const size_t j : order) {
      least = std::min(least, x[j]);
      held += static_cast<double>(t[j]);
      if (held >= coverage * total) break;
    }
    for (const float mass : x) {
      all += static_cast<double>(mass);
      if (mass >= least) kept += static_cast<double>(mass);
    }
  }
  return kept / (all + 1e-8);  // of the released code: an empty estimate gives 0
}

TILEWISE_END_PUBLIC
