// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/mask_rule.h"

#include <algorithm>
#include <utility>

#include "tilewise/plan/mask.h"
#include "tilewise/plan/rows.h"

namespace tilewise::plan {
namespace {

bool has_bit(const uint64_t* bits, int64_t i) { return bits == nullptr || ((bits[i / 64] >> (i % 64)) & 1) != 0; }

}  // namespace

MaskRule::MaskRule(const PlanData& plan, int64_t b, std::vector<int> heads) : plan_(plan), b_(b), heads_(std::move(heads)) {
  std::erase_if(heads_, [&](int head) { return is_full(plan.mask, head); });
}

void MaskRule::check_tokens(int head, int64_t q0, int64_t q1, int64_t k0, int64_t k1) const {
  check(sees_all(plan_, b_, head, q0, q1, k0, k1), Error::Kind::value, "plan: head ", head, " reads keys [", k0, ", ", k1, ") for queries [", q0,
        ", ", q1, ") without a test, but the plan's own mask forbids a pair of them; put the run into `masked` or widen the mask");
}

void MaskRule::check_rectangle(const Axis& queries, int64_t q0, int64_t q1, const uint64_t* bits, const Axis& keys, int64_t k0, int64_t k1) const {
  for (const int head : heads_) {
    if (queries.is_plain() && keys.is_plain() && bits == nullptr) {
      check_tokens(head, q0, q1, k0, k1);
      continue;
    }
    for (int64_t q = q0; q < q1; ++q) {
      const int64_t query = queries.token(q);
      if (query < 0 || !has_bit(bits, q - q0)) continue;
      if (keys.is_plain()) {
        check_tokens(head, query, query + 1, k0, k1);
        continue;
      }
      for (int64_t k = k0; k < k1; ++k) {
        if (keys.token(k) >= 0) check_tokens(head, query, query + 1, keys.token(k), keys.token(k) + 1);
      }
    }
  }
}

void MaskRule::check_rectangle_by_key(const Axis& queries, int64_t q0, int64_t q1, const Axis& keys, int64_t k0, int64_t k1,
                                      const uint64_t* bits) const {
  if (bits == nullptr) {
    check_rectangle(queries, q0, q1, nullptr, keys, k0, k1);
    return;
  }
  for (int64_t k = k0; k < k1; ++k) {
    if (has_bit(bits, k - k0)) check_rectangle(queries, q0, q1, nullptr, keys, k, k + 1);
  }
}

bool sees_all(const PlanData& plan, int64_t b, int head, int64_t q0, int64_t q1, int64_t k0, int64_t k1) {
  if (q0 >= q1 || k0 >= k1) return true;
  if (!plan.mask.bands.empty()) {
    const Mask::Band& band = plan.mask.bands[static_cast<size_t>(head_class(plan.mask, head))];
    const int64_t shift = plan.seqlen_k - plan.seqlen_q;
    const bool is_right = band.right == Mask::kAll || k1 - 1 <= q0 + shift + band.right;
    const int64_t first_tested = std::max(k0, band.sink);  // keys before it are sinks
    return is_right && (band.left == Mask::kAll || first_tested >= k1 || first_tested >= q1 - 1 + shift - band.left);
  }
  for (int64_t q = q0; q < q1; ++q) {
    if (count_seen(plan, b, head, q, k0, k1) != k1 - k0) return false;
  }
  return true;
}

int64_t count_seen(const PlanData& plan, int64_t b, int head, int64_t query, int64_t k0, int64_t k1) {
  const int64_t shift = plan.seqlen_k - plan.seqlen_q;
  if (plan.mask.grids.empty()) return visible_keys(plan.mask, head, b, query, shift, plan.seqlen_k).overlap(k0, k1);
  int64_t total = 0;
  for (int64_t key = k0; key < k1; ++key) total += sees(plan, b, head, query, key) ? 1 : 0;
  return total;
}

std::vector<int> mask_heads(const PlanData& plan, int g, int groups) {
  std::vector<int> heads, classes;
  for (int head = 0; head < plan.heads_q; ++head) {
    if (static_cast<int64_t>(head) * groups / plan.heads_q != g) continue;
    const int form = head_class(plan.mask, head);
    if (std::find(classes.begin(), classes.end(), form) != classes.end()) continue;
    classes.push_back(form);
    heads.push_back(head);
  }
  return heads;
}

}  // namespace tilewise::plan
