// SPDX-License-Identifier: Apache-2.0
#include "tests/plan/systems/harness.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "tilewise/attend/cpu/forward.h"
#include "tilewise/attend/cpu/measure.h"
#include "tilewise/attend/reference/axis.h"
#include "tilewise/attend/reference/backward.h"
#include "tilewise/attend/reference/forward.h"
#include "tilewise/attend/reference/pairs.h"
#include "tilewise/plan/complete.h"
#include "tilewise/plan/content_hash.h"
#include "tilewise/plan/count.h"
#include "tilewise/plan/sets.h"
#include "tilewise/plan/validate.h"

namespace tilewise::testing {
namespace {

constexpr int64_t kHeadDim = 8, kHeadDimV = 16;

/// The plan with one direction alone.
Plan only(const Plan& plan, bool is_by_query) {
  PlanData data;
  data.seqlen_q = plan->seqlen_q;
  data.seqlen_k = plan->seqlen_k;
  data.dense_reads = plan->dense_reads;
  data.batch = plan->batch;
  data.heads_q = plan->heads_q;
  (is_by_query ? data.by_query : data.by_key) = is_by_query ? plan->by_query : plan->by_key;
  data.order_q = plan->order_q;
  data.order_k = plan->order_k;
  data.pools = plan->pools;
  data.mask = plan->mask;
  data.shared = {plan};
  return make_plan(std::move(data));
}

/// How often each query token of head h reads each key (tokens, then pooled keys), from one direction of the plan.
using Pairs = std::vector<std::vector<int>>;
Pairs pairs_of(const Plan& plan, int64_t b, int h) {
  const auto tokens_q = attend::reference::tokens_of(plan->order_q, plan->seqlen_q, b, h, plan->heads_q);
  Tensor k(host_memory(), Dtype::f32, {plan->batch, kHeadsKv, plan->seqlen_k, 1});
  k.fill_zero();
  const auto keys = attend::reference::key_axis(*plan, k.view, {}, b, h, plan->heads_q);
  const int64_t pooled = keys.slots() - keys.slots_k;
  Pairs pairs(static_cast<size_t>(plan->seqlen_q), std::vector<int>(static_cast<size_t>(plan->seqlen_k + pooled), 0));
  const attend::reference::HeadPairs walker(*plan, b, h, tokens_q, keys.token);
  for (int64_t item = 0; item < walker.items(); ++item) {
    walker.for_each_query(item, [&](int64_t slot, std::span<const attend::reference::Pair> found) {
      for (const auto& pair : found) {
        const int64_t key =
            pair.key_slot < keys.slots_k ? keys.token[static_cast<size_t>(pair.key_slot)] : plan->seqlen_k + pair.key_slot - keys.slots_k;
        ++pairs[static_cast<size_t>(tokens_q[static_cast<size_t>(slot)])][static_cast<size_t>(key)];
      }
    });
  }
  return pairs;
}

std::vector<std::vector<int64_t>> pooled_keys(const System& system, int64_t b, int h) {
  return system.pooled ? system.pooled(b, h) : std::vector<std::vector<int64_t>>{};
}

void expect_pairs(const System& system, const Plan& plan, const std::string& where) {
  for (int64_t b = 0; b < plan->batch; ++b) {
    for (int h = 0; h < plan->heads_q; ++h) {
      const Pairs pairs = pairs_of(plan, b, h);
      const int64_t keys = plan->seqlen_k + static_cast<int64_t>(pooled_keys(system, b, h).size());
      ASSERT_EQ(static_cast<int64_t>(pairs[0].size()), keys) << system.name << where;
      for (int64_t q = 0; q < plan->seqlen_q; ++q) {
        for (int64_t key = 0; key < keys; ++key) {
          ASSERT_EQ(pairs[static_cast<size_t>(q)][static_cast<size_t>(key)], system.reads(b, h, q, key) ? 1 : 0)
              << system.name << where << ": batch entry " << b << ", head " << h << ", query " << q << ", key " << key;
        }
      }
    }
  }
}

void expect_closed(const System& system) {
  Context context;
  const bool is_by_query = system.plan->by_query.has_runs();
  const int own_tile = is_by_query ? system.plan->by_query.tile : system.plan->by_key.tile;
  for (const int tile : {16, 64, 128, 256}) {
    const std::string at = " at tile " + std::to_string(tile);
    const Plan both = complete(system.plan, context, tile);
    const auto fault = find_fault(both, both->mask);
    ASSERT_FALSE(fault.has_value()) << system.name << at << ": " << *fault;
    if (is_by_query) {
      ASSERT_EQ(content_hash(both), content_hash(system.plan)) << system.name << at;
    }
    const Plan transposed = only(both, !is_by_query);
    expect_pairs(system, transposed, " transposed" + at);
    ASSERT_EQ(reads(transposed), reads(system.plan)) << system.name << at;
    const Plan back = only(complete(transposed, context, own_tile), is_by_query);
    const auto fault_back = find_fault(back, back->mask);
    ASSERT_FALSE(fault_back.has_value()) << system.name << at << " and back: " << *fault_back;
    expect_pairs(system, back, " transposed and back" + at);
    ASSERT_EQ(reads(back), reads(system.plan)) << system.name << at;
    if (!is_by_query) continue;
    const Plan retiled = retile(system.plan, context, tile);
    const auto fault_retiled = find_fault(retiled, retiled->mask);
    ASSERT_FALSE(fault_retiled.has_value()) << system.name << " retiled" << at << ": " << *fault_retiled;
    expect_pairs(system, retiled, " retiled" + at);
    ASSERT_EQ(reads(retiled), reads(system.plan)) << system.name << " retiled" << at;
  }
}

/// q, k, v, dout and dlse of a problem, and what a dense masked softmax makes of them.
struct Dense {
  Tensor q, k, v, dout, dlse;
  std::vector<double> out, lse, dq, dk, dv;
};

Tensor random_tensor(std::mt19937_64& rng, Dtype dtype, const Shape& shape) {
  Tensor tensor(host_memory(), dtype, shape);
  std::normal_distribution<double> normal;
  for (int64_t i = 0; i < shape.numel(); ++i) {
    const auto value = static_cast<float>(normal(rng));  // in f64, too: a backend that computes in f32 gets the same numbers
    if (dtype == Dtype::f64)
      static_cast<double*>(tensor.view.raw())[i] = static_cast<double>(value);
    else
      static_cast<float*>(tensor.view.raw())[i] = value;
  }
  return tensor;
}

Dense dense_of(const System& system) {
  const PlanData& data = *system.plan;
  std::mt19937_64 rng(7);
  Dense d;
  d.q = random_tensor(rng, Dtype::f64, {data.batch, kHeadsQ, data.seqlen_q, kHeadDim});
  d.k = random_tensor(rng, Dtype::f64, {data.batch, kHeadsKv, data.seqlen_k, kHeadDim});
  d.v = random_tensor(rng, Dtype::f64, {data.batch, kHeadsKv, data.seqlen_k, kHeadDimV});
  d.dout = random_tensor(rng, Dtype::f64, {data.batch, kHeadsQ, data.seqlen_q, kHeadDimV});
  d.dlse = random_tensor(rng, Dtype::f32, {data.batch, kHeadsQ, data.seqlen_q});
  d.out.assign(static_cast<size_t>(d.dout.view.numel()), 0);
  d.lse.assign(static_cast<size_t>(d.dlse.view.numel()), -std::numeric_limits<double>::infinity());
  d.dq.assign(static_cast<size_t>(d.q.view.numel()), 0);
  d.dk.assign(static_cast<size_t>(d.k.view.numel()), 0);
  d.dv.assign(static_cast<size_t>(d.v.view.numel()), 0);
  const double scale = 1 / std::sqrt(static_cast<double>(kHeadDim));
  for (int64_t b = 0; b < data.batch; ++b) {
    for (int h = 0; h < kHeadsQ; ++h) {
      const int64_t hk = h * kHeadsKv / kHeadsQ;
      std::vector<std::vector<int64_t>> members;
      for (int64_t token = 0; token < data.seqlen_k; ++token) members.push_back({token});
      for (const auto& pooled : pooled_keys(system, b, h)) members.push_back(pooled);
      // Each key is the mean of its members.
      std::vector<double> keys(members.size() * kHeadDim, 0), values(members.size() * kHeadDimV, 0);
      for (size_t j = 0; j < members.size(); ++j) {
        for (const int64_t token : members[j]) {
          const auto share = 1.0 / static_cast<double>(members[j].size());
          for (int64_t c = 0; c < kHeadDim; ++c) keys[j * kHeadDim + static_cast<size_t>(c)] += share * d.k.view.at<double>(b, hk, token, c);
          for (int64_t c = 0; c < kHeadDimV; ++c) values[j * kHeadDimV + static_cast<size_t>(c)] += share * d.v.view.at<double>(b, hk, token, c);
        }
      }
      for (int64_t q = 0; q < data.seqlen_q; ++q) {
        const int64_t row = (b * kHeadsQ + h) * data.seqlen_q + q;
        std::vector<double> s(members.size(), -std::numeric_limits<double>::infinity());
        double largest = -std::numeric_limits<double>::infinity(), sum = 0;
        for (size_t j = 0; j < members.size(); ++j) {
          if (members[j].empty() || !system.reads(b, h, q, static_cast<int64_t>(j))) continue;
          double dot = 0;
          for (int64_t c = 0; c < kHeadDim; ++c) dot += d.q.view.at<double>(b, h, q, c) * keys[j * kHeadDim + static_cast<size_t>(c)];
          s[j] = scale * dot + std::log(static_cast<double>(members[j].size()));
          largest = std::max(largest, s[j]);
        }
        if (std::isinf(largest)) continue;
        for (const double logit : s) sum += std::exp(logit - largest);
        const double lse = largest + std::log(sum);
        d.lse[static_cast<size_t>(row)] = lse;
        double* out = d.out.data() + row * kHeadDimV;
        for (size_t j = 0; j < members.size(); ++j) {
          for (int64_t c = 0; c < kHeadDimV; ++c) out[c] += std::exp(s[j] - lse) * values[j * kHeadDimV + static_cast<size_t>(c)];
        }
        double delta = -static_cast<double>(d.dlse.view.at<float>(b, h, q));
        for (int64_t c = 0; c < kHeadDimV; ++c) delta += d.dout.view.at<double>(b, h, q, c) * out[c];
        for (size_t j = 0; j < members.size(); ++j) {
          const double p = std::exp(s[j] - lse);
          if (p == 0) continue;
          double dp = 0;
          for (int64_t c = 0; c < kHeadDimV; ++c) dp += d.dout.view.at<double>(b, h, q, c) * values[j * kHeadDimV + static_cast<size_t>(c)];
          const double ds = scale * p * (dp - delta);
          for (int64_t c = 0; c < kHeadDim; ++c) d.dq[static_cast<size_t>(row * kHeadDim + c)] += ds * keys[j * kHeadDim + static_cast<size_t>(c)];
          const double share = 1.0 / static_cast<double>(members[j].size());
          for (const int64_t token : members[j]) {
            const int64_t at = (b * kHeadsKv + hk) * data.seqlen_k + token;
            for (int64_t c = 0; c < kHeadDim; ++c) d.dk[static_cast<size_t>(at * kHeadDim + c)] += share * ds * d.q.view.at<double>(b, h, q, c);
            for (int64_t c = 0; c < kHeadDimV; ++c) d.dv[static_cast<size_t>(at * kHeadDimV + c)] += share * p * d.dout.view.at<double>(b, h, q, c);
          }
        }
      }
    }
  }
  return d;
}

// lse is f32, so it and what is made from it (the gradients) carry its rounding: |lse| stays below 16 here, half an ulp of that is 5e-7.
constexpr double kOutBound = 1e-12, kLseBound = 2e-6, kGradientBound = 2e-5;

void expect_near(const std::vector<double>& want, const TensorView& got, double bound, const std::string& what) {
  for (int64_t i = 0; i < got.numel(); ++i) {
    const double value =
        got.dtype() == Dtype::f64 ? static_cast<const double*>(got.raw())[i] : static_cast<double>(static_cast<const float*>(got.raw())[i]);
    const double expected = want[static_cast<size_t>(i)];
    if (std::isinf(expected)) {
      ASSERT_EQ(value, expected) << what << " " << i;
    } else {
      ASSERT_NEAR(value, expected, bound * std::max(1.0, std::abs(expected))) << what << " " << i;
    }
  }
}

void expect_attention(const System& system, const Dense& dense, const Plan& plan, const std::string& where) {
  Context context;
  const std::string name = system.name + where;
  Tensor out(host_memory(), Dtype::f64, dense.dout.view.shape()), lse(host_memory(), Dtype::f32, dense.dlse.view.shape());
  AttendParams params{.q = dense.q.view, .k = dense.k.view, .v = dense.v.view, .out = out.view, .lse = lse.view, .plan = plan};
  attend::reference::forward(params, context);
  expect_near(dense.out, out.view, kOutBound, name + " out");
  expect_near(dense.lse, lse.view, kLseBound, name + " lse");
  Tensor dq(host_memory(), Dtype::f64, dense.q.view.shape()), dk(host_memory(), Dtype::f64, dense.k.view.shape());
  Tensor dv(host_memory(), Dtype::f64, dense.v.view.shape());
  attend::reference::backward({.forward = params, .dout = dense.dout.view, .dlse = dense.dlse.view, .dq = dq.view, .dk = dk.view, .dv = dv.view},
                              context);
  expect_near(dense.dq, dq.view, kGradientBound, name + " dq");
  expect_near(dense.dk, dk.view, kGradientBound, name + " dk");
  expect_near(dense.dv, dv.view, kGradientBound, name + " dv");
}

Tensor as_f32(const Tensor& wide) {
  Tensor tensor(host_memory(), Dtype::f32, wide.view.shape());
  for (int64_t i = 0; i < wide.view.numel(); ++i)
    static_cast<float*>(tensor.view.raw())[i] = static_cast<float>(static_cast<const double*>(wide.view.raw())[i]);
  return tensor;
}

// The CPU backend in f32: sums of at most 700 probabilities and values below 5, each off by a few 2^-24.
constexpr double kCpuBound = 5e-6;

void expect_cpu(const System& system, const Dense& dense, const Plan& plan, const std::string& where) {
  Context context;
  const std::string name = system.name + where + " on the CPU";
  const Tensor q = as_f32(dense.q), k = as_f32(dense.k), v = as_f32(dense.v);
  const Tensor out(host_memory(), Dtype::f32, dense.dout.view.shape()), lse(host_memory(), Dtype::f32, dense.dlse.view.shape());
  const AttendParams params{.q = q.view, .k = k.view, .v = v.view, .out = out.view, .lse = lse.view, .plan = plan};
  const auto refused = attend::cpu::refusal(params);
  ASSERT_FALSE(refused.has_value()) << name << ": " << *refused;
  ASSERT_EQ(attend::cpu::forward(params, context).pairs_read, reads(plan)) << name;
  expect_near(dense.out, out.view, kCpuBound, name + " out");
  expect_near(dense.lse, lse.view, kCpuBound, name + " lse");

  const Tensor sum(host_memory(), Dtype::f32, lse.view.shape()), count(host_memory(), Dtype::f32, lse.view.shape());
  attend::cpu::measure({.q = q.view, .k = k.view, .plan = plan, .lse = lse.view, .over = MeasureOver::query, .sum = sum.view, .count = count.view},
                       context);
  const PlanData& data = *plan;
  std::vector<double> ones, counts;
  for (int64_t b = 0; b < data.batch; ++b) {
    for (int h = 0; h < kHeadsQ; ++h) {
      const int64_t keys = data.seqlen_k + static_cast<int64_t>(pooled_keys(system, b, h).size());
      for (int64_t query = 0; query < data.seqlen_q; ++query) {
        int64_t seen = 0;
        for (int64_t key = 0; key < keys; ++key) seen += system.reads(b, h, query, key) ? 1 : 0;
        counts.push_back(static_cast<double>(seen));
        ones.push_back(seen > 0 ? 1 : 0);
      }
    }
  }
  expect_near(counts, count.view, 0, name + " count");
  expect_near(ones, sum.view, kCpuBound * 4, name + " probabilities");
}

/// A second plan with the system's sizes, orders, pools and mask, whose rows of 48 read random stretches: half of them slot by slot.
Plan stretches_beside(const Plan& plan) {
  PlanData data = plan::share(plan);
  data.by_query = data.by_key = {};
  data.is_by_key = false;
  std::mt19937_64 rng(11);
  const std::vector<int64_t> ends = plan::part_ends(data, plan::Direction::by_query);
  make_by_query(data, 48, kHeadsQ, [&](int64_t, int, int64_t, int64_t first, int64_t last) {
    RowRuns runs;
    for (size_t part = 0, at = 0; part < ends.size(); ++part) {
      const auto end = static_cast<size_t>(ends[part]);
      while ((at += rng() % 25) < end) {
        const size_t stop = std::min(end, at + 1 + rng() % 30);
        std::vector<uint64_t> rows;
        if (rng() % 2 == 0) rows = bits_where(48, last - first, [&](int64_t) { return rng() % 2 == 0; });
        if (rows.empty() || !is_zero(rows)) add_run(runs.masked, static_cast<int64_t>(at), static_cast<int64_t>(stop), rows);
        at = stop;
      }
      at = end;
    }
    return runs;
  });
  return make_plan(std::move(data));
}

/// unite() and intersect() with such a plan, against pairs counted one by one.
void expect_sets(const System& system) {
  Context context;
  const Plan other = stretches_beside(system.plan);
  const Plan any = unite(system.plan, other, context), all = intersect(system.plan, other, context);
  for (const Plan& made : {any, all}) {
    const auto fault = find_fault(made, made->mask);
    ASSERT_FALSE(fault.has_value()) << system.name << ": " << *fault;
  }
  ASSERT_EQ(reads(any) + reads(all), reads(system.plan) + reads(other)) << system.name;
  for (int64_t b = 0; b < system.plan->batch; ++b) {
    for (int h = 0; h < system.plan->heads_q; ++h) {
      const Pairs own = pairs_of(system.plan, b, h), beside = pairs_of(other, b, h), united = pairs_of(any, b, h), common = pairs_of(all, b, h);
      for (size_t q = 0; q < own.size(); ++q) {
        for (size_t key = 0; key < own[q].size(); ++key) {
          ASSERT_EQ(united[q][key], own[q][key] | beside[q][key]) << system.name << " united: head " << h << ", query " << q << ", key " << key;
          ASSERT_EQ(common[q][key], own[q][key] & beside[q][key]) << system.name << " intersected: head " << h << ", query " << q << ", key " << key;
        }
      }
    }
  }
  const bool is_by_query = system.plan->by_query.has_runs();
  const Plan fine = is_by_query ? retile(system.plan, context, 16) : system.plan;
  ASSERT_EQ(reads(unite(system.plan, fine, context)), reads(system.plan)) << system.name;
  ASSERT_EQ(reads(intersect(system.plan, fine, context)), reads(system.plan)) << system.name;
}

}  // namespace

void check_system(const System& system) {
  const auto fault = find_fault(system.plan, system.plan->mask);
  ASSERT_FALSE(fault.has_value()) << system.name << ": " << *fault;
  expect_pairs(system, system.plan, "");
  if (::testing::Test::HasFatalFailure()) return;
  expect_closed(system);
  if (::testing::Test::HasFatalFailure()) return;
  expect_sets(system);
  if (::testing::Test::HasFatalFailure()) return;
  const Dense dense = dense_of(system);
  expect_attention(system, dense, system.plan, "");
  expect_cpu(system, dense, system.plan, "");
  Context context;
  const Plan both = complete(system.plan, context, 64);
  expect_attention(system, dense, only(both, false), " by key");
  expect_cpu(system, dense, only(both, false), " by key");
  expect_attention(system, dense, only(both, true), " by query");
}

}  // namespace tilewise::testing
