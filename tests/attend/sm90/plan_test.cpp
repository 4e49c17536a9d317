// SPDX-License-Identifier: Apache-2.0
// Plans made, ordered, transposed and validated on a GPU against the host's, run for run. Stands alone, since the machine with the GPU has no GoogleTest:
//   tilewise_sm90_plan_test [--cases N] [--seed S] [--repeats R] [--small] [--only NAME]
// What the kernels write stands between red zones and is exactly as long as was asked for. The kernels' lines are tested on the CPU too (tests/plan/cuda, tests/select/cuda):
// what is new here is the device.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "tests/attend/sm90/device_testing.h"
#include "tests/plan/cuda/device_plan_testing.h"
#include "tests/plan/random_pairs.h"
#include "tests/select/cuda/random_scores.h"
#include "tests/select/testing.h"
#include "tilewise/attend/attend.h"
#include "tilewise/attend/sm90/device_plan.h"
#include "tilewise/methods/a_shape.h"
#include "tilewise/methods/dense.h"
#include "tilewise/methods/flexprefill.h"
#include "tilewise/methods/mean_pool.h"
#include "tilewise/methods/method.h"
#include "tilewise/methods/minference.h"
#include "tilewise/methods/oracle.h"
#include "tilewise/methods/xattention.h"
#include "tilewise/plan/complete.h"
#include "tilewise/plan/count.h"
#include "tilewise/plan/cuda/complete.h"
#include "tilewise/plan/cuda/launch.h"
#include "tilewise/plan/cuda/validate.h"
#include "tilewise/select/cuda/antidiagonal.h"
#include "tilewise/select/cuda/flex.h"
#include "tilewise/select/cuda/mean_pool.h"
#include "tilewise/select/cuda/patterns_args.h"
#include "tilewise/select/cuda/plan.h"

namespace tilewise::attend::testing {
namespace {

using tilewise::testing::difference;
using tilewise::testing::Random;

// Device memory of so many bytes between red zones.
class Zoned {
 public:
  explicit Zoned(size_t bytes) : tensor_(TensorView(nullptr, Dtype::u8, {static_cast<int64_t>(bytes)})) {}
  void* data() const { return tensor_.view.raw(); }
  void wipe() const { tensor_.wipe(); }
  std::vector<unsigned char> bytes() const {
    const std::vector<unsigned char> all = tensor_.bytes();
    return {all.begin() + kZone, all.end() - kZone};
  }
  bool is_intact() const {
    const std::vector<unsigned char> all = tensor_.bytes();
    for (size_t i = 0; i < kZone; ++i) {
      if (all[i] != kPattern || all[all.size() - 1 - i] != kPattern) return false;
    }
    return true;
  }

 private:
  DeviceTensor tensor_;
};

void wait_for(const Context& context, const std::string& note) {
  const cudaError_t error = cudaStreamSynchronize(static_cast<cudaStream_t>(context.stream));
  if (error == cudaSuccess) return;
  report(cudaGetErrorString(error), note);
  std::_Exit(1);  // the device is lost to this process
}

void expect(bool holds, const char* what, const std::string& note) {
  if (!holds) report(what, note);
}

void expect_same(const PlanData& got, const PlanData& want, bool is_by_key, const std::string& note) {
  const std::string where = difference(got, want, is_by_key);
  if (!where.empty()) report(where.substr(0, 300), note);
}

std::optional<plan::cuda::RowFault> validated(const Plan& plan, const Context& context, const std::string& note) {
  const Zoned word(plan::cuda::kFaultBytes);
  plan::cuda::validate_into(plan, word.data(), context);
  wait_for(context, note);
  expect(word.is_intact(), "validate_into: memory outside of the word was written", note);
  uint64_t value = 0;
  std::memcpy(&value, word.bytes().data(), sizeof value);
  return plan::cuda::fault_of(plan, value);
}

// complete() and validate() of one random plan.
void check_complete(uint64_t seed, Context& context, int repeats) {
  Rng rng(seed);
  const PlanOptions options = tilewise::testing::random_options(rng);
  const RandomPlan random = random_plan(rng, options);
  const int tile = std::array{0, 16, 64, 128, 256}[seed % 5];
  const std::string note = "complete, seed " + std::to_string(seed);
  Context host;
  const Plan want = complete(random.plan, host, tile);
  const auto runs = tilewise::testing::runs_in(*want, options.is_by_key ? want->by_query : want->by_key);
  const Plan on_device = copy_to_device(random.plan, context);
  plan::cuda::CompleteRoom room{.whole = runs[0], .masked = runs[1], .has_rows = true, .tile = tile};
  const bool is_short = seed % 7 == 6 && runs[0] + runs[1] > 0;
  if (is_short) (runs[0] > 0 ? room.whole : room.masked) -= 1;
  const Zoned memory(plan::cuda::complete_bytes(on_device, room)), workspace(plan::cuda::complete_workspace_bytes());
  const Plan both = plan::cuda::complete_in(on_device, room, memory.data());
  std::vector<unsigned char> first;
  for (int i = 0; i < repeats; ++i) {
    memory.wipe();
    workspace.wipe();
    plan::cuda::complete_into(both, workspace.data(), context);
    wait_for(context, note);
    expect(memory.is_intact() && workspace.is_intact(), "complete_into: memory outside was written", note);
    if (i == 0) first = memory.bytes();
    expect(first == memory.bytes(), "complete_into: a repeat differs", note);
  }
  const Plan got = copy_to_host(both, context);
  const TensorView& status = (options.is_by_key ? got->by_query : got->by_key).status;
  expect((status.at<int32_t>(1) != 0) == is_short && (status.at<int32_t>(0) > 0) == is_short, "complete_into: wrong status", note);
  expect(validated(both, context, note).has_value() == is_short, "validate_into: wrong answer", note);
  if (!is_short) expect_same(*got, *want, !options.is_by_key, note);
}

// The order of rows, against a stable sort.
void check_order(uint64_t seed, Context& context) {
  Rng rng(seed);
  PlanOptions options = tilewise::testing::random_options(rng);
  options.is_by_key = false;
  const RandomPlan random = random_plan(rng, options);
  const Plan on_device = copy_to_device(random.plan, context);
  const std::string note = "order, seed " + std::to_string(seed);
  const PlanData& plan = *random.plan;
  plan::cuda::LongestFirstArgs args{};
  args.lists[0] = plan::cuda::run_list(on_device->by_query.masked);
  args.lists[1] = plan::cuda::run_list(on_device->by_query.whole);
  args.lists[2] = plan::cuda::run_list(on_device->by_query.picked);
  args.items_per_row = 1;
  args.items_per_head = static_cast<int>(plan::num_rows(plan.by_query, plan::slots_q(plan)));
  args.items = args.items_per_head * plan.heads_q * static_cast<int>(plan.batch);
  args.heads_q = plan.heads_q;
  args.keys = static_cast<int>(plan::slots_k_with_pools(plan));
  args.section = static_cast<int>(uniform(rng, 1, args.items));
  args.bucket_keys = 1;
  const Zoned memory((2 * static_cast<size_t>(args.items) + 2) * sizeof(int32_t));
  args.length = static_cast<int32_t*>(memory.data());
  args.order = args.length + args.items;
  args.counter = args.order + args.items;
  cuda_ok(plan::cuda::launch_longest_first(args, static_cast<cudaStream_t>(context.stream)), "launch_longest_first");
  wait_for(context, note);
  expect(memory.is_intact(), "longest_first: memory outside was written", note);
  const std::vector<unsigned char> bytes = memory.bytes();
  std::vector<int32_t> words(bytes.size() / sizeof(int32_t)), order(static_cast<size_t>(args.items));
  std::memcpy(words.data(), bytes.data(), bytes.size());
  for (int i = 0; i < args.items; ++i) order[static_cast<size_t>(i)] = i;
  const auto bucket = [&](int32_t item) { return std::min(words[static_cast<size_t>(item)], plan::cuda::kBuckets - 1); };
  for (int first = 0; first < args.items; first += args.section) {
    std::stable_sort(order.begin() + first, order.begin() + std::min(first + args.section, args.items),
                     [&](int32_t a, int32_t b) { return bucket(a) > bucket(b); });
  }
  expect(std::equal(order.begin(), order.end(), words.begin() + args.items), "longest_first: another order", note);
  expect(words[words.size() - 2] == 0 && words.back() == 0, "longest_first: counters are not 0", note);
}

// Scores and a budget into a plan.
void check_select(uint64_t seed, Context& context, int repeats, bool is_small) {
  Random random(seed);
  select::Scores scores = tilewise::testing::random_scores(random, is_small ? 100 : seed % 4 == 0 ? 1500 : 300);
  const select::Budget budget = tilewise::testing::random_budget(random, scores);
  const std::string note = "select, seed " + std::to_string(seed);
  Context host;
  const Plan want = select::plan(scores, budget, host);
  DeviceTensor values(scores.values.view);
  values.upload(scores.values.view);
  select::Scores on_device = {{}, scores.grid, scores.tile_k, scores.mask, scores.batch, scores.heads};
  on_device.values.view = values.view;
  select::cuda::PlanRoom room = select::cuda::most_runs(on_device, budget);
  const auto runs = tilewise::testing::runs_in(*want, want->by_query);
  const bool is_short = seed % 7 == 6 && runs[0] > 0;
  if (is_short) room.whole = runs[0] - 1;
  const Zoned memory(select::cuda::plan_bytes(on_device, room)), workspace(select::cuda::plan_workspace_bytes(on_device));
  const Plan plan = select::cuda::plan_in(on_device, room, memory.data(), context.device);
  std::vector<unsigned char> first;
  for (int i = 0; i < repeats; ++i) {
    memory.wipe();
    workspace.wipe();
    select::cuda::plan_into(on_device, budget, plan, workspace.data(), context);
    wait_for(context, note);
    expect(memory.is_intact() && workspace.is_intact(), "plan_into: memory outside was written", note);
    if (i == 0) first = memory.bytes();
    expect(first == memory.bytes(), "plan_into: a repeat differs", note);
  }
  const Plan got = copy_to_host(plan, context);
  expect((got->by_query.status.at<int32_t>(0) > 0) == is_short && got->by_query.status.at<int32_t>(1) == 0, "plan_into: wrong status", note);
  expect(!validated(plan, context, note), "validate_into: a fault in a plan of plan_into()", note);
  if (!is_short) expect_same(*got, *want, false, note);
}

// Inputs of a method on the device.
struct MethodCase {
  tilewise::testing::TestTensor q, k;
  std::unique_ptr<DeviceTensor> q_device, k_device;
  select::Inputs inputs;

  MethodCase(Random& random, Dtype dtype, int64_t heads_kv, int64_t group, int64_t seqlen_q, int64_t seqlen_k, int64_t dim) {
    const auto seed = static_cast<unsigned>(random(0, 1 << 30));
    q = tilewise::testing::random_tensor(dtype, 1, heads_kv * group, seqlen_q, dim, seed, 2);
    k = tilewise::testing::random_tensor(dtype, 1, heads_kv, seqlen_k, dim, seed + 1, 2);
    q_device = std::make_unique<DeviceTensor>(q.view);
    k_device = std::make_unique<DeviceTensor>(k.view);
    upload();
    inputs = {.q = q_device->view, .k = k_device->view, .mask = Mask::causal(), .softmax_scale = 1 / std::sqrt(static_cast<float>(dim))};
  }
  void upload() const {
    q_device->upload(q.view);
    k_device->upload(k.view);
  }
};

// Values of scores on the device, and how far they are from the host's.
select::Scores on_host(const select::Scores& scores, const Zoned& values) {
  select::Scores copy = {{}, scores.grid, scores.tile_k, scores.mask, scores.batch, scores.heads};
  copy.values = Tensor(host_memory(), Dtype::f32, scores.values.view.shape());
  const std::vector<unsigned char> bytes = values.bytes();
  std::memcpy(copy.values.view.raw(), bytes.data(), bytes.size());
  return copy;
}

// The largest share of `relative` of a wanted score and `floor` that scores differ by.
double worst_difference(const select::Scores& got, const select::Scores& want, double relative, double floor) {
  const auto *a = static_cast<const float*>(got.values.view.raw()), *b = static_cast<const float*>(want.values.view.raw());
  double worst = 0;
  for (int64_t i = 0; i < want.values.view.numel(); ++i) {
    const double share = static_cast<double>(std::abs(a[i] - b[i])) / (relative * static_cast<double>(b[i]) + floor);
    worst = share > worst || share != share ? share : worst;
  }
  return worst;
}

void check_mean_pool(uint64_t seed, Context& context, bool is_small) {
  Random random(seed);
  const int64_t dims[] = {8, 20, 64, 128, 256};
  const Dtype dtypes[] = {Dtype::bf16, Dtype::f16, Dtype::f32};
  const int64_t most = is_small ? 200 : 2000;
  MethodCase c(random, dtypes[random(0, 2)], random(1, 2), random(1, 2), random(1, most), random(1, most), dims[random(0, 4)]);
  if (random.chance(0.5)) c.inputs.mask.bands = {{random(0, most), random(0, 9), random(0, 20)}};
  if (random.chance(0.3)) c.inputs.softcap = 5;
  const int tile = static_cast<int>(random(0, 1) == 0 ? 64 : random(16, 128));
  const std::string note = "mean_pool, seed " + std::to_string(seed);
  const Zoned values(select::cuda::mean_pool_bytes(c.inputs, tile)), workspace(select::cuda::mean_pool_workspace_bytes(c.inputs, tile));
  const select::Scores scores = select::cuda::mean_pool_in(c.inputs, tile, values.data());
  select::cuda::mean_pool_into(c.inputs, scores, workspace.data(), context);
  wait_for(context, note);
  expect(values.is_intact() && workspace.is_intact(), "mean_pool_into: memory outside was written", note);
  select::Inputs host_inputs = c.inputs;
  host_inputs.q = c.q.view;
  host_inputs.k = c.k.view;
  Context host;
  const select::Scores want = select::mean_pool_scores(host_inputs, tile, host), got = on_host(scores, values);
  const double worst = worst_difference(got, want, 5e-5, 1e-7);
  if (!(worst <= 1)) report("mean_pool_into: scores differ by " + std::to_string(worst) + " of the bound", note);
}

// Scores of xattention, its plan from them as users call it, and the same bits again.
void check_xattention(uint64_t seed, Context& context, int repeats, bool is_small) {
  Random random(seed + 7777);
  const int64_t dims[] = {8, 20, 64, 72, 128, 256};
  const Dtype dtypes[] = {Dtype::bf16, Dtype::bf16, Dtype::f16, Dtype::f32};
  const int64_t most = is_small ? 400 : seed % 4 == 0 ? 6000 : 1500;
  const MethodCase c(random, dtypes[random(0, 3)], random(1, 2), random(1, 2), random(1, most), random(1, most), dims[random(0, 5)]);
  const int strides[] = {2, 4, 8, 8, 16, 16};
  method::XAttentionOptions options{.tile = random.chance(0.3) ? 64 : 128, .stride = strides[random(0, 5)], .threshold = .8f};
  if (random.chance(0.2)) options.density = .2f;
  if (random.chance(0.2)) options.selector = select::Selector::double_inverse;
  const std::string note = "xattention, seed " + std::to_string(seed);
  Problem problem{.q = c.inputs.q, .k = c.inputs.k};
  const bool is_full = random.chance(0.3);
  if (is_full) problem.mask = Mask::full();
  if (random.chance(0.3)) problem.softcap = 5;
  select::Inputs inputs = c.inputs;
  inputs.mask = problem.mask;
  inputs.softcap = problem.softcap;
  const select::AntidiagonalParams params{options.tile, options.stride, options.selector};
  const Zoned values(select::cuda::antidiagonal_bytes(inputs, params)), workspace(select::cuda::antidiagonal_workspace_bytes(inputs, params));
  const select::Scores scores = select::cuda::antidiagonal_in(inputs, params, values.data());
  std::vector<unsigned char> first;
  for (int i = 0; i < repeats; ++i) {
    values.wipe();
    workspace.wipe();
    select::cuda::antidiagonal_into(inputs, params, scores, workspace.data(), context);
    wait_for(context, note);
    expect(values.is_intact() && workspace.is_intact(), "antidiagonal_into: memory outside was written", note);
    if (i == 0) first = values.bytes();
    expect(first == values.bytes(), "antidiagonal_into: a repeat differs", note);
  }
  select::Inputs host_inputs = inputs;
  host_inputs.q = c.q.view;
  host_inputs.k = c.k.view;
  Context host;
  const select::Scores got = on_host(scores, values);
  const double worst = worst_difference(got, select::antidiagonal_scores(host_inputs, params, host), 2e-4, 1e-5);
  if (!(worst <= 1)) report("antidiagonal_into: scores differ by " + std::to_string(worst) + " of the bound", note);
  select::Budget budget;
  if (options.density > 0) {
    budget.share = {options.density};
    budget.floor = 1;
  } else {
    budget.mass = {options.threshold};
  }
  if (is_full)
    budget.forced = select::Budget::Forced::beside;
  else
    budget.sink = budget.diagonal = 1;
  const Plan plan = method::xattention(problem, options, context).plan;
  expect_same(*copy_to_host(plan, context), *select::plan(got, budget, host), false, note);
}

// The method as users call it: the plan of the same scores.
void check_method(uint64_t seed, Context& context, bool is_small) {
  Random random(seed);
  const int64_t most = is_small ? 200 : 2000;
  const MethodCase c(random, Dtype::bf16, 2, random(1, 2), random(1, most), random(1, most), 64);
  const std::string note = "method mean_pool, seed " + std::to_string(seed);
  const method::MeanPoolOptions options{.tile = 64, .threshold = .8f, .density = random.chance(0.5) ? .2f : 0};
  const Problem problem{.q = c.inputs.q, .k = c.inputs.k};
  const Plan plan = method::mean_pool(problem, options, context).plan;
  const Zoned values(select::cuda::mean_pool_bytes(c.inputs, options.tile)), pools(select::cuda::mean_pool_workspace_bytes(c.inputs, options.tile));
  const select::Scores scores = select::cuda::mean_pool_in(c.inputs, options.tile, values.data());
  select::cuda::mean_pool_into(c.inputs, scores, pools.data(), context);
  wait_for(context, note);
  select::Budget budget{.sink = 1, .diagonal = 1};
  if (options.density > 0) {
    budget.share = {options.density};
  } else {
    budget.mass = {options.threshold};
    budget.forced = select::Budget::Forced::beside;
  }
  Context host;
  expect_same(*copy_to_host(plan, context), *select::plan(on_host(scores, values), budget, host), false, note);
}

// Methods that read shapes alone give the host's plan; oracle gives the host's plan of the device's scores, which are near the host's.
void check_other_methods(uint64_t seed, Context& context, bool is_small) {
  Random random(seed + 5555);
  const int64_t most = is_small ? 300 : 2000;
  const MethodCase c(random, random.chance(0.5) ? Dtype::bf16 : Dtype::f16, 2, random(1, 2), random(1, most), random(1, most), 64);
  const std::string note = "methods, seed " + std::to_string(seed);
  const Problem problem{.q = c.inputs.q, .k = c.inputs.k}, of_host{.q = c.q.view, .k = c.k.view};
  Context host;
  const method::AShapeOptions shape{.init = static_cast<int>(random(0, 100)), .local = static_cast<int>(random(1, 500)), .tile = 64};
  expect_same(*copy_to_host(method::a_shape(problem, shape, context).plan, context), *method::a_shape(of_host, shape, host).plan, false,
              "a_shape, " + note);
  expect_same(*copy_to_host(method::dense(problem, {}, context).plan, context), *method::dense(of_host, {}, host).plan, false, "dense, " + note);
  const select::AntidiagonalParams params{.tile = 64, .stride = 1};
  const bool is_max = random.chance(0.5);
  const Zoned values(select::cuda::antidiagonal_bytes(c.inputs, params)), strips(select::cuda::antidiagonal_workspace_bytes(c.inputs, params));
  const select::Scores scores = select::cuda::antidiagonal_in(c.inputs, params, values.data());
  select::cuda::antidiagonal_into(c.inputs, params, scores, strips.data(), context, is_max);
  wait_for(context, note);
  expect(values.is_intact() && strips.is_intact(), "antidiagonal_into: memory outside was written", note);
  const method::OracleOptions options{.rule = is_max ? method::OracleOptions::Rule::max : method::OracleOptions::Rule::sum,
                                      .threshold = is_max ? .05f : .9f};
  select::Budget budget;
  if (is_max) {
    budget.at_least = {options.threshold};
    budget.sink = budget.diagonal = 1;
  } else {
    budget.mass = {options.threshold};
  }
  expect_same(*copy_to_host(method::oracle(problem, options, context).plan, context), *select::plan(on_host(scores, values), budget, host), false,
              "oracle, " + note);
}

// minference with a pattern for each head: the host's plan from the device's own lines, which are the host's from the device's sums. Inputs are small whole numbers: means and
// products are exact, so that both sides rank the same numbers.
void check_minference(uint64_t seed, Context& context, int repeats, bool is_small) {
  Random random(seed + 3333);
  const int64_t most = is_small ? 300 : 3000, heads_kv = 2, group = random(1, 2), heads = heads_kv * group;
  MethodCase c(random, random.chance(0.5) ? Dtype::bf16 : Dtype::f32, heads_kv, group, random(1, most), random(1, most), 64);
  for (tilewise::testing::TestTensor* x : {&c.q, &c.k}) {
    for (int64_t h = 0; h < x->view.dim(1); ++h)
      for (int64_t s = 0; s < x->view.dim(2); ++s)
        for (int64_t d = 0; d < 64; ++d) x->set(0, h, s, d, static_cast<float>(random(-1, 1)));
  }
  c.upload();
  const std::string note = "minference, seed " + std::to_string(seed);
  using Kind = select::cuda::PatternHead::Kind;
  method::MInferenceOptions options{.tile = 64, .aligned = random.chance(0.3), .last = static_cast<int>(random(1, 130)), .first = 4, .nearest = 10};
  select::cuda::PatternParams params{.read = Mask::causal(), .tile = 64, .aligned = options.aligned, .last = options.last, .first = 4, .nearest = 10};
  for (int head = 0; head < heads; ++head) {
    const int of = static_cast<int>(random(0, 2));
    method::MInferenceOptions::Head host{static_cast<method::MInferenceOptions::Pattern>(of),
                                         {static_cast<int>(random(0, of == 2 ? 9 : 200)), static_cast<int>(random(1, 300))}};
    options.heads.push_back(host);
    select::cuda::PatternHead pattern{static_cast<Kind>(of), std::max(host.sizes[0], 30), std::max(host.sizes[1], 50), host.sizes[0]};
    Mask::Band band{Mask::kAll, 0, 0};
    if (of == 1) band = {host.sizes[1] - 1, 0, host.sizes[0]};
    params.heads.push_back(pattern);
    params.read.head_class.push_back(static_cast<uint8_t>(params.read.bands.size()));
    params.read.bands.push_back(band);
  }
  const Zoned memory(select::cuda::pattern_plan_bytes(c.inputs, params)), workspace(select::cuda::pattern_workspace_bytes(c.inputs, params));
  const Plan plan = select::cuda::pattern_plan_in(c.inputs, params, memory.data());
  std::vector<unsigned char> first;
  for (int i = 0; i < repeats; ++i) {
    memory.wipe();
    workspace.wipe();
    select::cuda::pattern_plan_into(c.inputs, params, plan, workspace.data(), context);
    wait_for(context, note);
    expect(memory.is_intact() && workspace.is_intact(), "pattern_plan_into: memory outside was written", note);
    if (i == 0) first = memory.bytes();
    expect(first == memory.bytes(), "pattern_plan_into: a repeat differs", note);
  }
  // The device's sums and lines.
  select::cuda::PatternLaunch places;
  select::cuda::pattern_launch(c.inputs, params, plan.get(), workspace.data(), places);
  const std::vector<unsigned char> bytes = workspace.bytes();
  const auto host_of = [&](const auto* device) {
    return reinterpret_cast<decltype(device)>(bytes.data() +
                                              (reinterpret_cast<const unsigned char*>(device) - static_cast<unsigned char*>(workspace.data())));
  };
  const int64_t seqlen_k = c.inputs.seqlen_k();
  for (int64_t head = 0; head < heads; ++head) {
    select::Lines lines;
    if (params.heads[static_cast<size_t>(head)].kind == Kind::lines) {
      const auto& of = params.heads[static_cast<size_t>(head)];
      lines = select::best_lines(host_of(places.last.args.key) + head * seqlen_k, host_of(places.last.args.offset) + head * seqlen_k, seqlen_k,
                                 {of.vertical, of.slash, options.first, options.nearest});
      for (const auto& [list, kind] : {std::pair{&lines.vertical, 0}, std::pair{&lines.slash, 1}}) {
        std::vector<int32_t> got;
        const uint32_t* const bits = host_of(places.best.bits[kind]) + head * places.best.words;
        for (int64_t i = 0; i < seqlen_k; ++i) {
          if (((bits[i / 32] >> (i % 32)) & 1) != 0) got.push_back(static_cast<int32_t>(i));
        }
        expect(got == *list, "pattern_plan_into: other lines than the host's from the same sums", note);
      }
    }
    options.lines.push_back(lines);
  }
  Context host;
  const Problem of_host{.q = c.q.view, .k = c.k.view};
  expect_same(*copy_to_host(plan, context), *method::minference(of_host, options, host).plan, false, note);
  expect(!validated(plan, context, note), "validate_into: a fault in a plan of pattern_plan_into()", note);
  // As users call it.
  options.lines.clear();
  expect_same(*copy_to_host(method::minference({.q = c.inputs.q, .k = c.inputs.k}, options, context).plan, context), *copy_to_host(plan, context),
              false, "as users call it, " + note);
}

// flexprefill: the plan as users call it, the same bits again, no fault; sums differ from the host's by rounding, so a few tiles may, too: those near a cut.
void check_flexprefill(uint64_t seed, Context& context, int repeats, bool is_small) {
  Random random(seed + 1111);
  const int64_t most = is_small ? 300 : 3000;
  const MethodCase c(random, random.chance(0.5) ? Dtype::bf16 : Dtype::f32, 2, random(1, 2), random(1, most), random(140, most), 64);
  const std::string note = "flexprefill, seed " + std::to_string(seed);
  const method::FlexPrefillOptions options{
      .gamma = .8f, .tau = random.chance(0.5) ? .4f : .1f, .min_budget = static_cast<int>(random(1, 2)), .tile = random.chance(0.5) ? 64 : 16};
  const select::cuda::FlexParams params{options.gamma, options.tau, options.min_budget, options.max_budget, options.tile};
  const Zoned memory(select::cuda::flex_plan_bytes(c.inputs, params)), workspace(select::cuda::flex_workspace_bytes(c.inputs, params));
  const Plan plan = select::cuda::flex_plan_in(c.inputs, params, memory.data());
  std::vector<unsigned char> first;
  for (int i = 0; i < repeats; ++i) {
    memory.wipe();
    workspace.wipe();
    select::cuda::flex_plan_into(c.inputs, params, plan, workspace.data(), context);
    wait_for(context, note);
    expect(memory.is_intact() && workspace.is_intact(), "flex_plan_into: memory outside was written", note);
    if (i == 0) first = memory.bytes();
    expect(first == memory.bytes(), "flex_plan_into: a repeat differs", note);
  }
  expect(!validated(plan, context, note), "validate_into: a fault in a plan of flex_plan_into()", note);
  Context host;
  const Plan got = copy_to_host(method::flexprefill({.q = c.inputs.q, .k = c.inputs.k}, options, context).plan, context);
  const Plan want = method::flexprefill({.q = c.q.view, .k = c.k.view}, options, host).plan;
  const double ratio = density(got) / std::max(density(want), 1e-9);
  expect(ratio > .9 && ratio < 1.1, "flexprefill: the density is not the host's", note);
}

// The method mean_pool or xattention from q and k to out, its transpose, its order and its check in one graph, replayed with other q, k and v.
void check_graph(uint64_t seed, int replays, bool is_mean_pool) {
  const Stream stream;
  Context context = device_context(stream.raw);
  Random random(seed);
  const int64_t seqlen = 3000, dim = 64, heads_kv = 2, group = 2;  // more rows than multiprocessors: forward orders them
  const int tile = 64;
  MethodCase c(random, Dtype::bf16, heads_kv, group, seqlen, seqlen, dim);
  const tilewise::testing::TestTensor out = tilewise::testing::make_tensor(Dtype::bf16, 1, heads_kv * group, seqlen, dim);
  const DeviceTensor out_device(out.view), out_again(out.view);
  const select::Budget budget{.mass = {.8f}, .sink = 1, .diagonal = 1, .forced = select::Budget::Forced::beside};
  const select::AntidiagonalParams params_of{.tile = tile, .stride = 8};
  const Zoned values(is_mean_pool ? select::cuda::mean_pool_bytes(c.inputs, tile) : select::cuda::antidiagonal_bytes(c.inputs, params_of)),
      pools(is_mean_pool ? select::cuda::mean_pool_workspace_bytes(c.inputs, tile) : select::cuda::antidiagonal_workspace_bytes(c.inputs, params_of));
  const select::Scores scores =
      is_mean_pool ? select::cuda::mean_pool_in(c.inputs, tile, values.data()) : select::cuda::antidiagonal_in(c.inputs, params_of, values.data());
  const select::cuda::PlanRoom room = select::cuda::most_runs(scores, budget);
  const Zoned lists(select::cuda::plan_bytes(scores, room)), chosen(select::cuda::plan_workspace_bytes(scores));
  const Plan plan = select::cuda::plan_in(scores, room, lists.data(), context.device);
  const plan::cuda::CompleteRoom transposed = plan::cuda::most_complete_room(plan);
  const Zoned by_key(plan::cuda::complete_bytes(plan, transposed)), moved(plan::cuda::complete_workspace_bytes()), fault(plan::cuda::kFaultBytes);
  const Plan both = plan::cuda::complete_in(plan, transposed, by_key.data());
  const AttendParams params{.q = c.inputs.q, .k = c.inputs.k, .v = c.inputs.k, .out = out_device.view, .plan = plan};
  const auto work = [&] {
    if (is_mean_pool)
      select::cuda::mean_pool_into(c.inputs, scores, pools.data(), context);
    else
      select::cuda::antidiagonal_into(c.inputs, params_of, scores, pools.data(), context);
    select::cuda::plan_into(scores, budget, plan, chosen.data(), context);
    plan::cuda::complete_into(both, moved.data(), context);
    plan::cuda::validate_into(both, fault.data(), context);
    attend_forward(params, context);
  };
  work();  // what a first call sets up may not be captured
  wait_for(context, "graph");
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  cuda_ok(cudaStreamBeginCapture(stream.raw, cudaStreamCaptureModeThreadLocal), "begin capture");
  work();
  cuda_ok(cudaStreamEndCapture(stream.raw, &graph), "end capture");
  cuda_ok(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  Context host;
  for (int replay = 0; replay < replays; ++replay) {
    const std::string note = "graph, replay " + std::to_string(replay);
    for (tilewise::testing::TestTensor* tensor : {&c.q, &c.k}) {
      *tensor = tilewise::testing::random_tensor(Dtype::bf16, 1, tensor->view.dim(1), seqlen, dim, static_cast<unsigned>(random(0, 1 << 30)), 2);
    }
    c.upload();
    for (const Zoned* memory : {&values, &pools, &lists, &chosen, &by_key, &moved, &fault}) memory->wipe();
    out_device.wipe();
    cuda_ok(cudaDeviceSynchronize(), "uploads");
    cuda_ok(cudaGraphLaunch(exec, stream.raw), "launch");
    wait_for(context, note);
    for (const Zoned* memory : {&values, &pools, &lists, &chosen, &by_key, &moved, &fault}) {
      expect(memory->is_intact(), "memory outside was written", note);
    }
    const Plan want = complete(select::plan(on_host(scores, values), budget, host), host);
    const Plan got = copy_to_host(both, context);
    expect(got->by_query.status.at<int32_t>(0) == 0 && got->by_key.status.at<int32_t>(1) == 0, "wrong status", note);
    expect_same(*got, *want, false, note);
    expect_same(*got, *want, true, note);
    uint64_t word = 0;
    std::memcpy(&word, fault.bytes().data(), sizeof word);
    expect(!plan::cuda::fault_of(both, word), "validate_into: a fault", note);
    // The host's plan on the same kernels gives the same bits.
    AttendParams again = params;
    again.plan = copy_to_device(select::plan(on_host(scores, values), budget, host), context);
    again.out = out_again.view;
    out_again.wipe();
    cuda_ok(cudaDeviceSynchronize(), "wipe");
    attend_forward(again, context);
    wait_for(context, note);
    expect(out_again.bytes() == out_device.bytes(), "out differs from out of the host's plan", note);
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
}

}  // namespace
}  // namespace tilewise::attend::testing

int main(int argc, char** argv) {
  using namespace tilewise::attend::testing;
  const TestOptions options(argc, argv);
  options.stage("cases", [&] {
    const Stream stream;
    tilewise::Context context = device_context(stream.raw);
    for (int i = 0; i < options.cases; ++i) {
      const uint64_t seed = options.seed + static_cast<uint64_t>(i);
      check_complete(seed, context, options.repeats);
      check_order(seed, context);
      check_select(seed, context, options.repeats, options.is_small);
      check_mean_pool(seed, context, options.is_small);
      check_method(seed, context, options.is_small);
      check_xattention(seed, context, options.repeats, options.is_small);
      check_other_methods(seed, context, options.is_small);
      check_minference(seed, context, options.repeats, options.is_small);
      check_flexprefill(seed, context, options.repeats, options.is_small);
      ++ran;
    }
  });
  options.stage("graph", [&] { check_graph(options.seed, options.is_small ? 3 : 100, true); });
  options.stage("graph of xattention", [&] { check_graph(options.seed, options.is_small ? 3 : 100, false); });
  return options.summary();
}
