// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>

#include "tilewise/study/comparison.h"

namespace tilewise::study {

/// Runs one setting; `most_ms` is what plan and attend may take before it is given up. Fills the figures and the outcome but `within` and `over`,
/// which tune_method() decides by the excess.
using TryFunction = std::function<void(const OptionValues& options, double most_ms, TunePoint& point)>;

struct TuneRequest {
  OptionValues fixed = {};   // options that were given: not tuned
  double bound = .005;       // on the excess
  double most_ms = 0;        // what no setting needs to exceed; 0: no limit
};

/// The fastest setting of a method's grids that holds the bound, by few trials. The option with the most values (of equals the last) is searched by halving,
/// since along it density rises and excess falls; every other option is then tried at its other values, one after the other, each walking along the first
/// from where the best stands, and once more if that moved the best. A trial that takes a tenth longer than the best so far is given up. Times within 3 % of the fastest count as equal: the
/// lower density wins, so that noise decides as little as it can.
TuneCurve tune_method(const MethodInfo& info, const TuneRequest& request, const TryFunction& try_setting);

/// The most trials that tune_method is likely to make.
int expected_trials(const MethodInfo& info, const OptionValues& fixed);

}  // namespace tilewise::study
