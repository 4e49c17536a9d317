// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/tune.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "tilewise/methods/registry.h"

namespace tilewise::study {
namespace {

using Outcome = TunePoint::Outcome;
using Place = std::vector<size_t>;  // an index into each axis

constexpr double kSameCost = 1.03;  // a trial that costs more than this against the best cannot be chosen

std::vector<OptionInfo> axes_of(const MethodInfo& info, const OptionValues& fixed) {
  std::vector<OptionInfo> axes;
  for (const OptionInfo& option : info.options) {
    if (!option.grid.empty() && fixed.count(option.name) == 0) axes.push_back(option);
  }
  return axes;
}

/// Of equals the last.
size_t main_axis(const std::vector<OptionInfo>& axes) {
  size_t best = 0;
  for (size_t i = 1; i < axes.size(); ++i) {
    if (axes[i].grid.size() >= axes[best].grid.size()) best = i;
  }
  return best;
}

/// The default where the grid has it, else the middle.
size_t start_of(const OptionInfo& axis) {
  const auto place = std::find(axis.grid.begin(), axis.grid.end(), axis.default_value);
  return place == axis.grid.end() ? axis.grid.size() / 2 : static_cast<size_t>(place - axis.grid.begin());
}

class Search {
 public:
  Search(const MethodInfo& info, const TuneRequest& request, const TryFunction& try_setting)
      : info_(info), request_(request), try_setting_(try_setting), axes_(axes_of(info, request.fixed)) {
    curve_.name = info.name;
  }

  TuneCurve run() {
    Place place;
    for (const OptionInfo& axis : axes_) place.push_back(start_of(axis));
    if (axes_.empty()) {
      point(place);
    } else {
      main_ = main_axis(axes_);
      place = halve(place);
      // What one axis found may make another's other values worth a second look; what was tried is not tried again.
      for (int sweep = 0; sweep < 2; ++sweep) {
        const Place before = place;
        for (size_t axis = 0; axis < axes_.size(); ++axis) {
          if (axis != main_) place = walk(place, axis);
        }
        if (place == before) break;
      }
    }
    choose();
    return std::move(curve_);
  }

 private:
  /// Tries a setting, once.
  const TunePoint& point(const Place& place) {
    const auto [known, is_new] = tried_.emplace(place, curve_.points.size());
    if (!is_new) return curve_.points[known->second];
    TunePoint now;
    OptionValues options = request_.fixed;
    for (size_t i = 0; i < axes_.size(); ++i) now.options[axes_[i].name] = options[axes_[i].name] = axes_[i].grid[place[i]];
    const std::string text = format_options(info_.name, options);
    now.label = text.empty() ? info_.name : info_.name + " " + text;
    double most_ms = request_.most_ms > 0 ? request_.most_ms : INFINITY;
    if (const TunePoint* best = best_point()) most_ms = std::min(most_ms, as_cheap_as(*best));
    try_setting_(options, most_ms, now);
    if (now.outcome == Outcome::within || now.outcome == Outcome::over)
      now.outcome = now.excess <= request_.bound ? Outcome::within : Outcome::over;  // NaN is over
    curve_.points.push_back(std::move(now));
    return curve_.points.back();
  }

  /// The most that a setting may cost to count as no dearer than `best`.
  double as_cheap_as(const TunePoint& best) const { return std::max(best.cost_ms * kSameCost, best.cost_ms + request_.same_ms); }

  const TunePoint* best_point() const {
    const TunePoint* best = nullptr;
    for (const TunePoint& one : curve_.points) {
      if (one.outcome == Outcome::within && (best == nullptr || one.cost_ms < best->cost_ms)) best = &one;
    }
    return best;
  }

  /// What is denser than this is not needed: it holds the bound, or costs too much already.
  static bool is_enough(const TunePoint& one) { return one.outcome == Outcome::within || one.outcome == Outcome::slow; }

  /// Place `step` on the main axis, counted from sparse to dense.
  Place at(Place place, size_t step) const {
    place[main_] = is_falling_ ? axes_[main_].grid.size() - 1 - step : step;
    return place;
  }
  size_t step_of(const Place& place) const { return is_falling_ ? axes_[main_].grid.size() - 1 - place[main_] : place[main_]; }

  /// The sparsest step of the main axis that is enough, or the densest.
  Place halve(const Place& start) {
    const size_t size = axes_[main_].grid.size();
    const auto search = [&] {
      size_t low = 0, high = size, middle = step_of(start);  // high: the lowest step known to be enough
      while (low < high) {
        if (is_enough(point(at(start, middle)))) {
          high = middle;
        } else {
          low = middle + 1;
        }
        middle = (low + high) / 2;
      }
      return std::min(low, size - 1);
    };
    size_t step = search();
    // Grids rise from sparse to dense; one that does not shows by its densities, and is searched the other way round.
    if (is_density_falling(start)) {
      is_falling_ = true;
      step = search();
    }
    return at(start, step);
  }

  bool is_density_falling(const Place& line) const {
    double first = kNoFigure, last = kNoFigure;
    for (size_t i = 0; i < axes_[main_].grid.size(); ++i) {
      Place place = line;
      place[main_] = i;
      const auto known = tried_.find(place);
      if (known == tried_.end()) continue;
      const double density = curve_.points[known->second].density;
      if (std::isnan(density)) continue;
      if (std::isnan(first)) first = density;
      last = density;
    }
    return last < first;
  }

  /// Tries the other values of one axis, each along the main axis from where `best` stands; returns where the best then stands.
  Place walk(const Place& best, size_t axis) {
    Place stand = best;
    for (size_t value = 0; value < axes_[axis].grid.size(); ++value) {
      if (value == best[axis]) continue;
      Place line = stand;
      line[axis] = value;
      size_t step = step_of(stand);
      if (is_enough(point(line))) {
        while (step > 0 && is_enough(point(at(line, step - 1)))) --step;
      } else {
        while (step + 1 < axes_[main_].grid.size() && !is_enough(point(at(line, step)))) ++step;
      }
      line = at(line, step);
      const TunePoint &here = point(line), there = point(stand);
      const bool is_within = here.outcome == Outcome::within;
      if (is_within && (there.outcome != Outcome::within || here.cost_ms < there.cost_ms)) stand = line;
    }
    return stand;
  }

  void choose() {
    const TunePoint* cheapest = best_point();
    curve_.is_within = cheapest != nullptr;
    for (size_t i = 0; i < curve_.points.size(); ++i) {
      const TunePoint& one = curve_.points[i];
      if (cheapest != nullptr) {
        if (one.outcome != Outcome::within || one.cost_ms > as_cheap_as(*cheapest)) continue;
        if (!curve_.chosen || one.density < curve_.points[*curve_.chosen].density) curve_.chosen = i;
      } else if (one.outcome == Outcome::over && !std::isnan(one.excess)) {
        if (!curve_.chosen || one.excess < curve_.points[*curve_.chosen].excess) curve_.chosen = i;
      }
    }
    if (curve_.chosen) return;
    // All too dear, or without a figure to hold the bound by: the sparsest still shows what the method does.
    for (size_t i = 0; i < curve_.points.size(); ++i) {
      const TunePoint& one = curve_.points[i];
      if (one.outcome != Outcome::refused && (!curve_.chosen || one.density < curve_.points[*curve_.chosen].density)) curve_.chosen = i;
    }
  }

  const MethodInfo& info_;
  const TuneRequest& request_;
  const TryFunction& try_setting_;
  std::vector<OptionInfo> axes_;
  size_t main_ = 0;
  bool is_falling_ = false;
  std::map<Place, size_t> tried_;
  TuneCurve curve_;
};

}  // namespace

TuneCurve tune_method(const MethodInfo& info, const TuneRequest& request, const TryFunction& try_setting) {
  return Search(info, request, try_setting).run();
}

int expected_trials(const MethodInfo& info, const OptionValues& fixed) {
  const std::vector<OptionInfo> axes = axes_of(info, fixed);
  if (axes.empty()) return 1;
  const size_t main = main_axis(axes);
  int trials = 1 + static_cast<int>(std::ceil(std::log2(static_cast<double>(axes[main].grid.size()))));
  for (size_t i = 0; i < axes.size(); ++i) {
    if (i != main) trials += 2 * (static_cast<int>(axes[i].grid.size()) - 1);
  }
  return trials;
}

}  // namespace tilewise::study
