// SPDX-License-Identifier: Apache-2.0
// measure() on a Hopper GPU against the f64 reference, over random problems of every kind that attend/sm90 takes, and (stage "any GPU") that attend/cuda does,
// which runs unasked what the former refuses. Stands alone, since the machine with
// the GPU has no GoogleTest:
//   tilewise_sm90_measure_test [--cases N] [--seed S] [--repeats R] [--small] [--only NAME]
// Keys that no row reads are NaN on the device, the output is poisoned and stands between red zones, and every repeat must give the same bits.
#include <array>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "tests/attend/random_case.h"
#include "tests/attend/random_plan.h"
#include "tests/attend/sm90/device_testing.h"
#include "tilewise/attend/attend.h"
#include "tilewise/attend/check.h"
#include "tilewise/attend/reference/measure.h"
#include "tilewise/attend/sm90/device_plan.h"

namespace tilewise::attend::testing {
namespace {

struct Options {
  PlanOptions plan;
  Dtype dtype = Dtype::bf16;
  int64_t head_dim = 128;
  int tile_q = 0, tile_k = 0;
  Layout layout = Layout::contiguous;
  float softcap = 0;
  std::optional<float> softmax_scale;
};

std::string describe(const Options& o) {
  std::ostringstream text;
  const PlanOptions& p = o.plan;
  text << "B " << p.batch << " Hq " << p.heads_q << " Hkv " << p.heads_kv << " Sq " << p.seqlen_q << " Sk " << p.seqlen_k << " D " << o.head_dim
       << " " << o.dtype << " tile " << p.tile << " cells " << o.tile_q << "x" << o.tile_k << " groups " << p.groups << " mask "
       << static_cast<int>(p.mask) << " density " << p.density << " longest " << p.longest_run << " grain " << p.grain
       << (p.has_batched_lists ? " batched" : "") << (p.has_stop ? "" : " no-stop") << (p.has_shared ? " shared" : "")
       << (p.is_spaced ? " spaced" : "") << " layout " << static_cast<int>(o.layout) << " softcap " << o.softcap;
  return text.str();
}

Options random_options(Rng& rng, bool is_small) {
  Options o;
  PlanOptions& p = o.plan;
  const auto one_of = [&rng](std::initializer_list<int64_t> values) {
    return *(values.begin() + uniform(rng, 0, static_cast<int64_t>(values.size()) - 1));
  };
  p.tile = static_cast<int>(one_of({64, 128, 128, 128, 192, 256}));
  const auto length = [&] {
    if (chance(rng, 0.1)) return int64_t{1};
    if (chance(rng, 0.5)) return std::max<int64_t>(1, p.tile * one_of({1, 2}) + one_of({-1, 0, 1}));
    return uniform(rng, 1, is_small ? 200 : 900);
  };
  p.batch = one_of({1, 1, 2, 3});
  p.heads_kv = static_cast<int>(one_of({1, 1, 2, 3}));
  p.heads_q = p.heads_kv * static_cast<int>(one_of({1, 1, 2, 4}));
  p.seqlen_q = length();
  p.seqlen_k = chance(rng, 0.3) ? p.seqlen_q : length();
  while (p.batch * p.heads_q * p.seqlen_q * p.seqlen_k > 500'000 && p.batch > 1) --p.batch;  // the reference is slow
  while (p.batch * p.heads_q * p.seqlen_q * p.seqlen_k > 500'000 && p.heads_kv > 1) p.heads_q -= p.heads_q / p.heads_kv--;
  p.groups = static_cast<int>(one_of({1, p.heads_kv, p.heads_q}));
  p.has_batched_lists = chance(rng, 0.5);
  p.mask = static_cast<MaskKind>(one_of({0, 1, 1, 2, 3}));
  p.density = chance(rng, 0.1) ? 1.0 : 0.1 + 0.8 * std::uniform_real_distribution<double>(0, 1)(rng);
  p.longest_run = static_cast<int>(one_of({1, 3, 20, 64, 200, 600}));
  p.grain = static_cast<int>(one_of({1, 1, 16, 64, 128}));
  p.has_stop = chance(rng, 0.8);
  p.has_shared = chance(rng, 0.4);
  p.is_spaced = chance(rng, 0.3);
  p.empty_rows = 0.1;
  o.dtype = chance(rng, 0.6) ? Dtype::bf16 : Dtype::f16;
  o.head_dim = one_of({64, 128, 128, 192, 256});
  o.tile_q = chance(rng, 0.5) ? 0 : 64;
  o.tile_k = static_cast<int>(one_of({0, 0, 1, 16, 64, 100, 128, 200, 1000}));
  o.softcap = chance(rng, 0.3) ? static_cast<float>(one_of({1, 5, 30})) : 0.0f;
  if (chance(rng, 0.3)) o.softmax_scale = static_cast<float>(one_of({1, 3, 20})) / 20.0f;
  o.layout = chance(rng, 0.5) ? Layout::contiguous : Layout::heads_last;
  return o;
}

struct Problem {
  Options options;
  RandomPlan plan;
  HostTensor q, k, max;

  Problem(Rng& rng, const Options& o) : options(o), plan(random_plan(rng, o.plan)) {
    const PlanOptions& p = o.plan;
    q = random_normal(rng, o.dtype, {p.batch, p.heads_q, p.seqlen_q, o.head_dim}, o.layout);
    k = random_normal(rng, o.dtype, {p.batch, p.heads_kv, p.seqlen_k, o.head_dim}, o.layout);
    max = HostTensor(Dtype::f32, measure_shape(params()), o.layout);
  }
  MeasureParams params() const {
    return {.q = q.view,
            .k = k.view,
            .plan = plan.plan,
            .tile_q = options.tile_q,
            .tile_k = options.tile_k,
            .softmax_scale = options.softmax_scale,
            .softcap = options.softcap,
            .max = max.view};
  }
  std::vector<double> exact() const {
    const HostTensor wide_q = converted(q.view, Dtype::f64), wide_k = converted(k.view, Dtype::f64), out(Dtype::f32, max.view.shape());
    MeasureParams p = params();
    p.q = wide_q.view;
    p.k = wide_k.view;
    p.max = out.view;
    Context context;
    reference::measure(p, context);
    return values_of(out.view);
  }
  // The matrix units cut what they add up after each 16 channels, at 2^-23 of what they have; |q| |k| bounds that.
  double bound() const {
    const auto longest = [&](const TensorView& x) {
      double most = 0;
      for (int64_t b = 0; b < x.dim(0); ++b) {
        for (int64_t h = 0; h < x.dim(1); ++h) {
          for (int64_t i = 0; i < x.dim(2); ++i) {
            double square = 0;
            for (int64_t d = 0; d < x.dim(3); ++d) {
              const double value = to_double(x, x.offset(b, h, i, d));
              square += value * value;
            }
            most = std::max(most, square);
          }
        }
      }
      return std::sqrt(most);
    };
    const double scale = scale_of(options.softmax_scale, options.head_dim);
    return static_cast<double>(options.head_dim / 16 + 2) * 0x1p-22 * longest(q.view) * longest(k.view) * scale + 0x1p-20 * options.softcap;
  }
  // Keys that no row reads become NaN in the copy that goes to the device.
  void poison() const {
    const PlanOptions& p = options.plan;
    for (int64_t b = 0; b < p.batch; ++b) {
      for (int64_t kv = 0; kv < p.heads_kv; ++kv) {
        for (int64_t key = 0; key < p.seqlen_k; ++key) {
          bool is_touched = false;
          for (int64_t head = kv * (p.heads_q / p.heads_kv); head < (kv + 1) * (p.heads_q / p.heads_kv); ++head) {
            is_touched = is_touched || plan.touched[static_cast<size_t>((b * p.heads_q + head) * plan.slots + key)] != 0;
          }
          for (int64_t d = 0; d < options.head_dim && !is_touched; ++d) k.set(NAN, b, kv, key, d);
        }
      }
    }
  }
};

struct OnDevice {
  DeviceTensor q, k, max;
  MeasureParams params;

  OnDevice(const Problem& problem, Context& context) : q(problem.q.view), k(problem.k.view), max(problem.max.view) {
    q.upload(problem.q.view);
    k.upload(problem.k.view);
    params = problem.params();
    params.q = q.view;
    params.k = k.view;
    params.max = max.view;
    params.plan = copy_to_device(problem.plan.plan, context);
  }
};

void judge(const Problem& problem, const OnDevice& device, const std::vector<double>& exact, const std::string& note) {
  std::vector<double> got;
  if (!device.max.values(got)) return report("memory outside of max was written", note);
  const double bound = problem.bound();
  for (size_t i = 0; i < exact.size(); ++i) {
    if (got[i] == exact[i] || std::abs(got[i] - exact[i]) <= bound) continue;
    char text[160];
    std::snprintf(text, sizeof text, "cell %zu is %.7g, by definition %.7g, bound %.2e", i, got[i], exact[i], bound);
    return report(text, note);
  }
}

void run_case(uint64_t seed, int repeats, bool is_small) {
  Rng rng(seed);
  const Options options = random_options(rng, is_small);
  const Problem problem(rng, options);
  const std::string note = "seed " + std::to_string(seed) + ": " + describe(options);
  const std::vector<double> exact = problem.exact();
  if (is_dry) return;
  problem.poison();
  const std::lock_guard<std::mutex> lock(gpu);
  Context context = device_context();
  const OnDevice device(problem, context);
  const bool is_alike = runs_alike(
      repeats, note, [&] { device.max.wipe(); }, [&] { return measure(device.params, context); },
      [&] { return std::pair(device.max.bytes(), std::vector<unsigned char>()); });
  if (is_alike) judge(problem, device, exact, note);
}

// A NaN among the keys that are read makes NaN of the cells that hold it, and of no others.
void nans() {
  Rng rng(3);
  Options o;
  o.plan = {.batch = 1, .seqlen_q = 300, .seqlen_k = 500, .heads_q = 2, .heads_kv = 1, .tile = 128, .groups = 2};
  const Problem problem(rng, o);
  problem.k.set(NAN, 0, 0, 200, 5);
  problem.k.set(-NAN, 0, 0, 333, 5);
  const std::vector<double> exact = problem.exact();
  if (is_dry) return;
  Context context = device_context();
  const OnDevice device(problem, context);
  measure(device.params, context);
  cuda_ok(cudaDeviceSynchronize(), "nans");
  std::vector<double> got;
  if (!device.max.values(got)) report("memory outside of max was written", "nans");
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(got[i]) != std::isnan(exact[i])) return report("cell " + std::to_string(i), "nans");
  }
}

// What an error leaves behind: nothing.
void errors() {
  Rng rng(1);
  Options o;
  o.plan = {.batch = 1, .seqlen_q = 300, .seqlen_k = 300, .heads_q = 2, .heads_kv = 1, .tile = 128, .groups = 2};
  const Problem problem(rng, o);
  const std::vector<double> exact = problem.exact();
  if (is_dry) return;
  Context context = device_context();
  const OnDevice device(problem, context);
  const auto expect_error = [&](const char* part, const MeasureParams& params) {
    device.max.wipe();
    const std::vector<unsigned char> before = device.max.bytes();
    try {
      measure(params, context);
      report("no error", part);
    } catch (const Error& error) {
      if (error.kind() != Error::Kind::unsupported || std::string(error.what()).find(part) == std::string::npos) report(error.what(), part);
    }
    if (device.max.bytes() != before) report("a refused call wrote", part);
    measure(device.params, context);  // the next call works
    cuda_ok(cudaDeviceSynchronize(), "the call after an error");
    judge(problem, device, exact, std::string("after: ") + part);
  };
  MeasureParams p = device.params;
  p.tile_q = 32;
  p.max = TensorView(p.max.raw(), Dtype::f32, {1, 2, 10, 3}, p.max.device());
  setenv("TILEWISE_BACKEND", "sm90", 1);
  expect_error("sm90: tile_q is 32", p);
  unsetenv("TILEWISE_BACKEND");
  p = device.params;
  p.sum = p.max;
  p.max = {};
  if (const Ran ran = measure(p, context); ran.backend != "cuda") report("sums ran on " + ran.backend, "what attend/sm90 refuses");
  cuda_ok(cudaDeviceSynchronize(), "sums");
}

// Everything that attend/cuda measures: sums, maxima and counts of logits or exp(s - lse), with TILEWISE_BACKEND=cuda.
void any_case(uint64_t seed, int repeats) {
  constexpr std::array kOvers{MeasureOver::tile, MeasureOver::query_tile, MeasureOver::query, MeasureOver::key, MeasureOver::offset};
  Rng rng(seed + 7000);
  const MeasureOver over = kOvers[seed % kOvers.size()];
  ProblemOptions o = random_case_options(rng);
  o.plan.is_by_key = false;
  o.edge = Edge::padded;
  o.dtype = std::array{Dtype::bf16, Dtype::f16, Dtype::f32}[seed % 3];
  if (over == MeasureOver::key || over == MeasureOver::offset) o.plan.pools.clear();
  ForwardProblem forward = make_problem(rng, o);
  const int tile = forward.plan.plan->by_query.tile, tile_q = tile % 8 == 0 ? tile / static_cast<int>(uniform(rng, 1, 2)) : 0;
  const int tile_k = chance(rng, 0.6) ? static_cast<int>(uniform(rng, 1, 150)) : 0;
  const Shape shape =
      measure_shape({.q = forward.q.view, .k = forward.k.view, .plan = forward.plan.plan, .over = over, .tile_q = tile_q, .tile_k = tile_k});
  const MeasureProblem problem = make_measure(rng, std::move(forward), over, shape, tile_q, tile_k);
  const std::string note = "any seed " + std::to_string(seed) + ", over " + std::to_string(static_cast<int>(over)) + ": " + describe(o);
  const HostTensor sum(Dtype::f32, shape), max(Dtype::f32, shape), count(Dtype::f32, shape);
  {
    const HostTensor q = converted(problem.params.q, Dtype::f64), k = converted(problem.params.k, Dtype::f64);
    MeasureParams wide = problem.params;
    wide.q = q.view, wide.k = k.view, wide.sum = sum.view, wide.max = max.view, wide.count = count.view;
    Context context;
    reference::measure(wide, context);
  }
  if (is_dry) return;
  poison_untouched(problem.forward);
  const std::lock_guard<std::mutex> lock(gpu);
  Context context = device_context();
  const DeviceTensor q(problem.params.q), k(problem.params.k), lse(problem.lse.view), bias(problem.key_bias.view), got_sum(problem.sum.view),
      got_max(problem.max.view), got_count(problem.count.view);
  q.upload(problem.params.q);
  k.upload(problem.params.k);
  lse.upload(problem.lse.view);
  bias.upload(problem.key_bias.view);
  MeasureParams p = problem.params;
  p.q = q.view, p.k = k.view;
  p.plan = copy_to_device(p.plan, context);
  if (p.lse.has_value()) p.lse = lse.view;
  if (p.key_bias.has_value()) p.key_bias = bias.view;
  if (p.sum.has_value()) p.sum = got_sum.view;
  if (p.max.has_value()) p.max = got_max.view;
  if (p.count.has_value()) p.count = got_count.view;
  const auto wipe = [&] { got_sum.wipe(), got_max.wipe(), got_count.wipe(); };
  const auto bits = [&] { return std::array{got_sum.bytes(), got_max.bytes(), got_count.bytes()}; };
  if (!runs_alike(repeats, note, wipe, [&] { return measure(p, context); }, bits)) return;
  // A logit may be off by a few roundings of the largest that its channels allow, a pooled key by one of its dtype; exp(s - lse) by that share of itself.
  double square_q = 0, square_k = 0;
  for (const auto& [view, square] : {std::pair{problem.params.q, &square_q}, std::pair{problem.params.k, &square_k}}) {
    for (int64_t b = 0; b < view.dim(0); ++b) {
      for (int64_t h = 0; h < view.dim(1); ++h) {
        for (int64_t i = 0; i < view.dim(2); ++i) {
          const std::vector<double> row = dense::row_of(view, b, h, i);
          const double own = dense::dot(row, row);
          if (own > *square) *square = own;  // not where keys were poisoned
        }
      }
    }
  }
  const double unit = o.plan.pools.empty() ? 0 : o.dtype == Dtype::bf16 ? 0x1p-9 : o.dtype == Dtype::f16 ? 0x1p-12 : 0x1p-24;
  const double largest = std::sqrt(square_q * square_k) * scale_of(p.softmax_scale, problem.params.q.dim(3));
  const double off = ((static_cast<double>(problem.params.q.dim(3)) / 16 + 4) * 0x1p-22 + unit) * largest + 2e-6;
  const std::vector<double> counts = values_of(count.view);
  const auto compare = [&](const char* name, const TensorView& asked, const DeviceTensor& tensor, const HostTensor& exact, bool is_sum,
                           double share) {
    if (!asked.has_value()) return;
    std::vector<double> got;
    if (!tensor.values(got)) return report(std::string("memory outside of ") + name + " was written", note);
    const std::vector<double> want = values_of(exact.view);
    for (size_t i = 0; i < want.size(); ++i) {
      const double terms = is_sum ? counts[i] + 1 : 1;
      const double bound = share * (p.lse.has_value() ? std::abs(want[i]) * 2 * (off + 0x1p-21 * std::sqrt(terms + 1)) + 1e-30
                                                      : terms * (off + 0x1p-23 * largest * std::sqrt(terms)) + 0x1p-22 * std::abs(want[i]));
      if (got[i] == want[i] || std::abs(got[i] - want[i]) <= bound) continue;
      char text[160];
      std::snprintf(text, sizeof text, "%s %zu is %.7g, by definition %.7g, bound %.2e", name, i, got[i], want[i], bound);
      return report(text, note);
    }
  };
  compare("sum", p.sum, got_sum, sum, true, 1);
  compare("max", p.max, got_max, max, false, 1);
  compare("count", p.count, got_count, count, false, 0);
}

// A call captured into a graph gives, with new queries, what a plain call gives.
void graphs() {
  Rng rng(7);
  Options o;
  o.plan = {.batch = 1, .seqlen_q = 1300, .seqlen_k = 1300, .heads_q = 8, .heads_kv = 2, .tile = 128, .groups = 8};
  const Problem problem(rng, o);
  if (is_dry) return;
  const Stream own;
  Context context = device_context(own.raw);
  const OnDevice device(problem, context);
  cuda_ok(cudaStreamBeginCapture(own.raw, cudaStreamCaptureModeThreadLocal), "capture");
  measure(device.params, context);
  cudaGraph_t graph = nullptr;
  cuda_ok(cudaStreamEndCapture(own.raw, &graph), "capture");
  cudaGraphExec_t exec = nullptr;
  cuda_ok(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  for (int i = 0; i < 100; ++i) {
    device.q.upload(random_normal(rng, Dtype::bf16, problem.q.view.shape(), o.layout).view);
    device.max.wipe();
    cuda_ok(cudaDeviceSynchronize(), "wipe");
    cuda_ok(cudaGraphLaunch(exec, own.raw), "replay");
    cuda_ok(cudaStreamSynchronize(own.raw), "replay");
    const std::vector<unsigned char> replayed = device.max.bytes();
    device.max.wipe();
    cuda_ok(cudaDeviceSynchronize(), "wipe");
    measure(device.params, context);
    cuda_ok(cudaStreamSynchronize(own.raw), "call");
    if (device.max.bytes() != replayed) return report("differs from a plain call", "replay " + std::to_string(i));
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
}

}  // namespace
}  // namespace tilewise::attend::testing

int main(int argc, char** argv) {
  using namespace tilewise::attend::testing;
  const TestOptions o(argc, argv);
  o.stage("cases", [&] { for_each_seed(o.cases, o.seed, [&](uint64_t seed) { run_case(seed, o.repeats, o.is_small); }); });
  o.stage("nans", nans);
  o.stage("errors", errors);
  o.stage("graphs", graphs);
  setenv("TILEWISE_BACKEND", "cuda", 1);
  expected_backend = "cuda";
  o.stage("any GPU", [&] { for_each_seed(o.cases, o.seed, [&](uint64_t seed) { any_case(seed, o.repeats); }); });
  return o.summary();
}
