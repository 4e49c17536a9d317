// SPDX-License-Identifier: Apache-2.0
// Three tellings of the mask, written apart: the reference's, the plan's (which kernels use) and the tests'. They agree on every pair.
#include "tilewise/attend/reference/mask.h"

#include <gtest/gtest.h>

#include "tests/attend/attend_testing.h"
#include "tilewise/plan/mask.h"

namespace tilewise::attend::testing {
namespace {

void expect_agreement(const PlanData& plan) {
  for (int64_t b = 0; b < plan.batch; ++b) {
    for (int head = 0; head < plan.heads_q; ++head) {
      for (int64_t q = 0; q < plan.seqlen_q; ++q) {
        for (int64_t k = 0; k < plan.seqlen_k; ++k) {
          const bool sees = test_mask_sees(plan, b, head, q, k);
          ASSERT_EQ(reference::mask_sees(plan, b, head, q, k), sees) << "reference, head " << head << " query " << q << " key " << k;
          ASSERT_EQ(plan::allows(plan.mask, head, b, q, k, plan.seqlen_k - plan.seqlen_q), sees)
              << "plan, head " << head << " query " << q << " key " << k;
        }
      }
    }
  }
}

TEST(AttendReferenceMask, AgreesOnRandomMasks) {
  for (uint64_t seed = 0; seed < 400; ++seed) {
    Rng rng(seed);
    PlanOptions options;
    options.mask = static_cast<MaskKind>(seed % 7);
    options.batch = 2;
    options.heads_q = 2;
    options.seqlen_q = uniform(rng, 1, 40);
    options.seqlen_k = options.mask == MaskKind::grid ? options.seqlen_q : uniform(rng, 1, 40);
    SCOPED_TRACE("seed " + std::to_string(seed) + " mask " + std::to_string(seed % 7));
    expect_agreement(*random_plan(rng, options).plan);
    if (HasFailure()) return;
  }
}

// Every neighbourhood of one axis up to 14 cells: window, stride, dilation, causal or not.
TEST(AttendReferenceMask, AgreesOnEveryShortAxis) {
  for (int length = 1; length <= 14; ++length) {
    for (int dilation = 1; dilation <= length; ++dilation) {
      for (int window = 1; window * dilation <= length; ++window) {
        for (int stride = 1; stride <= window; ++stride) {
          for (const bool is_causal : {false, true}) {
            PlanData plan;
            plan.seqlen_q = plan.seqlen_k = length + 1;  // a token behind the grid, which sees and is seen by all
            plan.mask.grids = {{{.length = length, .window = window, .stride = stride, .dilation = dilation, .is_causal = is_causal}}};
            SCOPED_TRACE("length " + std::to_string(length) + " window " + std::to_string(window) + " stride " + std::to_string(stride) +
                         " dilation " + std::to_string(dilation) + (is_causal ? " causal" : ""));
            expect_agreement(plan);
            if (HasFailure()) return;
            int64_t visible = 0;
            for (int64_t key = 0; key < length; ++key) visible += reference::mask_sees(plan, 0, 0, length - 1, key) ? 1 : 0;
            EXPECT_LE(visible, window);
            if (!is_causal) {
              EXPECT_EQ(visible, window) << "every query sees exactly `window` keys";
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace tilewise::attend::testing
