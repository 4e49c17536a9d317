// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/join.h"

#include <algorithm>
#include <vector>

#include "tilewise/plan/groups.h"
#include "tilewise/plan/mask.h"
#include "tilewise/plan/pack.h"
#include "tilewise/plan/rows.h"

namespace tilewise::plan {
namespace {

constexpr size_t kMaxClasses = 16;

enum class Form { bands, spans, grids };
Form form_of(const Mask& mask) { return !mask.bands.empty() ? Form::bands : mask.spans.has_value() ? Form::spans : Form::grids; }

/// As the batch entries and heads read them; sharing makes no difference.
bool is_equal_order(const PlanData& sizes, const Order& a, const Order& b) {
  if (a.token.raw() == b.token.raw() && a.token.shape() == b.token.shape()) return true;
  if (a.token.has_value() != b.token.has_value() || a.token.dim(2) != b.token.dim(2)) return false;
  const TensorView views[] = {a.token, b.token};
  const Groups groups = common_groups(views, sizes.heads_q);
  for (int64_t e = 0; e < groups.batch; ++e) {
    for (int g = 0; g < groups.groups; ++g) {
      const int head = first_head(g, groups.groups, sizes.heads_q);
      for (int64_t slot = 0; slot < a.token.dim(2); ++slot) {
        if (a.token.at<int32_t>(batch_index(a.token, e), group_index(a.token, head, sizes.heads_q), slot) !=
            b.token.at<int32_t>(batch_index(b.token, e), group_index(b.token, head, sizes.heads_q), slot))
          return false;
      }
    }
  }
  return true;
}

/// One class of one plan.
struct Class {
  const PlanData* plan;
  int head;  // any that it tests
};

bool are_equal(const Class& x, const Class& y) {
  const Mask &a = x.plan->mask, &b = y.plan->mask;
  if (form_of(a) != form_of(b)) return false;
  const auto ca = static_cast<size_t>(head_class(a, x.head)), cb = static_cast<size_t>(head_class(b, y.head));
  switch (form_of(a)) {
    case Form::bands: return a.bands[ca] == b.bands[cb];
    case Form::grids: return a.grids[ca] == b.grids[cb] && a.first == b.first;
    case Form::spans: break;
  }
  if (a.spans.raw() == b.spans.raw() && ca == cb && a.spans.dim(1) == b.spans.dim(1)) return true;
  for (int64_t e = 0; e < std::max(a.spans.dim(1), b.spans.dim(1)); ++e) {
    for (int64_t q = 0; q < a.spans.dim(2); ++q) {
      for (int64_t i = 0; i < 4; ++i) {
        if (a.spans.at<int32_t>(ca, a.spans.dim(1) == 1 ? 0 : e, q, i) != b.spans.at<int32_t>(cb, b.spans.dim(1) == 1 ? 0 : e, q, i)) return false;
      }
    }
  }
  return true;
}

/// Each class as spans [C, B|1, Sq, 4].
TensorView spans_of(const std::vector<Class>& classes, const std::shared_ptr<Memory>& memory, PlanData& out) {
  const PlanData& first = *classes[0].plan;
  int64_t batch = 1;
  for (const Class& one : classes) {
    if (one.plan->mask.spans.has_value()) batch = std::max(batch, one.plan->mask.spans.dim(1));
  }
  Tensor spans(memory, Dtype::i32, {static_cast<int64_t>(classes.size()), batch, first.seqlen_q, 4});
  for (size_t c = 0; c < classes.size(); ++c) {
    const PlanData& plan = *classes[c].plan;
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t q = 0; q < first.seqlen_q; ++q) {
        const VisibleKeys keys = visible_keys(plan.mask, classes[c].head, b, q, plan.seqlen_k - plan.seqlen_q, plan.seqlen_k);
        for (size_t part = 0; part < 2; ++part) {
          spans.view.at<int32_t>(c, b, q, 2 * part) = static_cast<int32_t>(keys.start[part]);
          spans.view.at<int32_t>(c, b, q, 2 * part + 1) = static_cast<int32_t>(keys.stop[part]);
        }
      }
    }
  }
  return keep(out, std::move(spans));
}

}  // namespace

void check_alike(const char* function, std::span<const Plan> plans) {
  check(!plans.empty(), Error::Kind::value, function, ": there is no plan");
  for (const Plan& plan : plans) check(plan != nullptr, Error::Kind::value, function, ": a plan is null; make one with a method or load one");
  const PlanData& first = *plans[0];
  for (const Plan& plan : plans) {
    check(plan->seqlen_q == first.seqlen_q && plan->seqlen_k == first.seqlen_k && plan->batch == first.batch && plan->heads_q == first.heads_q,
          Error::Kind::value, function, ": the plans differ in size: ", plan->batch, " x ", plan->heads_q, " heads, ", plan->seqlen_q, " x ",
          plan->seqlen_k, " tokens beside ", first.batch, " x ", first.heads_q, ", ", first.seqlen_q, " x ", first.seqlen_k);
    check(num_classes(plan->mask) > 0, Error::Kind::value, function, ": a plan has no mask; Mask::full() lets every pair through");
    check(plan->pools == first.pools, Error::Kind::unsupported, function, ": the plans differ in pools, so equal slots hold other keys");
    check(is_equal_order(*plan, plan->order_q, first.order_q) && is_equal_order(*plan, plan->order_k, first.order_k), Error::Kind::unsupported,
          function, ": the plans differ in orders, so equal slots hold other tokens; plan both in one order");
  }
}

bool has_equal_mask(const PlanData& a, const PlanData& b, int head) { return are_equal({&a, head}, {&b, head}); }

Mask join_masks(const char* function, std::span<const PlanData* const> plan_of_head, const std::shared_ptr<Memory>& memory, PlanData& out) {
  std::vector<Class> classes;
  std::vector<uint8_t> head_class;
  bool has_bands = false, has_spans = false, has_grids = false;
  for (size_t head = 0; head < plan_of_head.size(); ++head) {
    const Class own{plan_of_head[head], static_cast<int>(head)};
    size_t at = 0;
    while (at < classes.size() && !are_equal(classes[at], own)) ++at;
    if (at == classes.size()) classes.push_back(own);
    check(classes.size() <= kMaxClasses, Error::Kind::value, function, ": the heads use more than ", kMaxClasses,
          " different masks; one launch takes so many classes");
    head_class.push_back(static_cast<uint8_t>(at));
    const Form form = form_of(own.plan->mask);
    (form == Form::bands ? has_bands : form == Form::spans ? has_spans : has_grids) = true;
  }
  check(!has_grids || (!has_bands && !has_spans), Error::Kind::unsupported, function,
        ": some heads are tested by neighbourhoods and others by bands or spans; a plan has one form of mask, run the heads apart");
  Mask mask;
  if (has_grids) {
    mask.first = classes[0].plan->mask.first;
    for (const Class& one : classes) {
      check(one.plan->mask.first == mask.first, Error::Kind::unsupported, function, ": neighbourhoods whose grids begin at tokens ", mask.first,
            " and ", one.plan->mask.first, "; a plan has one first token");
      mask.grids.push_back(one.plan->mask.grids[static_cast<size_t>(plan::head_class(one.plan->mask, one.head))]);
    }
    const auto has_axes = [&](const auto& grid) { return grid.size() == mask.grids[0].size(); };
    check(std::all_of(mask.grids.begin(), mask.grids.end(), has_axes), Error::Kind::unsupported, function,
          ": neighbourhoods of grids with different numbers of axes; a plan has one grid");
  } else if (has_spans) {
    mask.spans = spans_of(classes, memory, out);
  } else {
    for (const Class& one : classes) mask.bands.push_back(one.plan->mask.bands[static_cast<size_t>(plan::head_class(one.plan->mask, one.head))]);
  }
  if (classes.size() > 1) mask.head_class = std::move(head_class);
  return mask;
}

}  // namespace tilewise::plan
