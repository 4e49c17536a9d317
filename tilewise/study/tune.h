// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>

#include "tilewise/study/comparison.h"

namespace tilewise::study {

/// Runs one setting; `most_ms` is what it may cost before it is given up. Fills the figures and the outcome but `within` and `over`, which tune_method()
/// decides by the excess.
using TryFunction = std::function<void(const OptionValues& options, double most_ms, TunePoint& point)>;

struct TuneRequest {
  OptionValues fixed = {};  // options that were given: not tuned
  double bound = .005;  // on the excess
  double same_ms = 0;  // costs that differ by less are equal: what a clock cannot tell apart
  double most_ms = 0;  // what no setting may cost; 0: no limit
};

/// The setting of a method's grids that costs least (TunePoint::cost_ms) of those that hold the bound, by few trials. The option with the most values (of
/// equals the last) is searched by halving, since along it density rises and excess falls; every other option is then tried at its other values, one after
/// the other, each walking along the first from where the best stands, and once more if that moved the best. A trial that costs more than the best so far is
/// given up. Costs within 3 % of the least (or within same_ms) count as equal: the lower density wins. The outcome follows from figures and costs alone; no clock is read here.
TuneCurve tune_method(const MethodInfo& info, const TuneRequest& request, const TryFunction& try_setting);

/// The most trials that tune_method is likely to make.
int expected_trials(const MethodInfo& info, const OptionValues& fixed);

}  // namespace tilewise::study
