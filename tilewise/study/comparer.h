// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/study/source.h"
#include "tilewise/study/studied_model.h"

namespace tilewise::study {

/// The rows of one comparison over a source; `request` and `progress` are those that the source was made with.
Comparison run_comparison(Source& source, const CompareRequest& request, ProgressMeter& progress);

/// compare() of any model. The request's texts are not read: the model has its own.
Comparison compare_model(StudiedModel& model, const CompareRequest& request, Context& context);

}  // namespace tilewise::study
