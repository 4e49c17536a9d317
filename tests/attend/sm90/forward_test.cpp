// SPDX-License-Identifier: Apache-2.0
// attend_forward on a Hopper GPU against the f64 reference, over random problems of every kind that the backend takes. Stands alone, since the
// machine with the GPU has no GoogleTest:
//   tilewise_sm90_test [--cases N] [--seed S] [--repeats R] [--small] [--only NAME]
// Keys that no row reads are NaN on the device, outputs are poisoned and stand between red zones, and every repeat must give the same bits.
#include <atomic>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "tests/attend/dense_oracle.h"
#include "tests/attend/random_plan.h"
#include "tests/attend/sm90/device_testing.h"
#include "tilewise/attend/attend.h"
#include "tilewise/attend/reference/forward.h"
#include "tilewise/attend/sm90/device_plan.h"
#include "tilewise/attend/sm90/forward.h"
#include "tilewise/plan/rows.h"

namespace tilewise::attend::testing {
namespace {

struct Options {
  PlanOptions plan;
  Dtype dtype = Dtype::bf16;
  int64_t head_dim = 128, head_dim_v = 128;
  bool is_v_broadcast = false, has_sink = false, has_out = true, has_lse = true;
  Layout layout = Layout::contiguous;
  float softcap = 0;
  std::optional<float> softmax_scale;
  double sigma = 1;
};

std::string describe(const Options& o) {
  std::ostringstream text;
  const PlanOptions& p = o.plan;
  text << "B " << p.batch << " Hq " << p.heads_q << " Hkv " << p.heads_kv << " Sq " << p.seqlen_q << " Sk " << p.seqlen_k << " D " << o.head_dim
       << " Dv " << o.head_dim_v << " " << o.dtype << " tile " << p.tile << " groups " << p.groups << " mask " << static_cast<int>(p.mask)
       << " density " << p.density << " longest " << p.longest_run << " grain " << p.grain << (p.has_batched_lists ? " batched" : "")
       << (p.has_stop ? "" : " no-stop") << (p.has_picked ? " picked" : "") << (p.has_rows ? " rows" : "") << (p.has_edges ? " edges" : "")
       << (p.pools.empty() ? "" : " pools") << (p.has_shared ? " shared" : "") << (p.is_spaced ? " spaced" : "") << (p.has_order_q ? " order_q" : "")
       << (p.has_order_k ? " order_k" : "") << (o.is_v_broadcast ? " v-broadcast" : "") << (o.has_sink ? " sink" : "")
       << (o.has_out ? "" : " lse-alone") << " layout " << static_cast<int>(o.layout) << " softcap " << o.softcap << " sigma " << o.sigma;
  return text.str();
}

// Half of the cases are what the plain kernel takes, half have any part. Lengths crowd around 1 and the tile.
Options random_options(Rng& rng, bool is_small) {
  Options o;
  PlanOptions& p = o.plan;
  const auto one_of = [&rng](std::initializer_list<int64_t> values) {
    return *(values.begin() + uniform(rng, 0, static_cast<int64_t>(values.size()) - 1));
  };
  const bool is_plain = chance(rng, 0.5);
  p.tile = is_plain ? (chance(rng, 0.3) ? 64 : 128) : static_cast<int>(one_of({16, 40, 64, 64, 128, 128, 192, 256}));
  const auto length = [&] {
    if (chance(rng, 0.1)) return int64_t{1};
    if (chance(rng, 0.5)) return std::max<int64_t>(1, p.tile * one_of({1, 2}) + one_of({-1, 0, 1}));
    return uniform(rng, 1, is_small ? 200 : 700);
  };
  p.batch = one_of({1, 1, 2, 3});
  p.heads_kv = static_cast<int>(one_of({1, 1, 2, 3}));
  p.heads_q = p.heads_kv * static_cast<int>(one_of({1, 1, 2, 4, 16}));
  p.seqlen_q = length();
  p.seqlen_k = chance(rng, 0.3) ? p.seqlen_q : length();
  while (p.batch * p.heads_q * p.seqlen_q * p.seqlen_k > 500'000 && p.batch > 1) --p.batch;  // the reference is slow
  while (p.batch * p.heads_q * p.seqlen_q * p.seqlen_k > 500'000 && p.heads_kv > 1) p.heads_q -= p.heads_q / p.heads_kv--;
  p.groups = static_cast<int>(one_of({1, p.heads_kv, p.heads_q}));
  p.has_batched_lists = chance(rng, 0.5);
  p.mask = static_cast<MaskKind>(one_of({0, 1, 1, 2, 3}));
  p.density = chance(rng, 0.1) ? 1.0 : chance(rng, 0.2) ? 0.02 : 0.1 + 0.8 * std::uniform_real_distribution<double>(0, 1)(rng);
  p.longest_run = static_cast<int>(one_of({1, 3, 20, 64, 200, 600}));
  p.grain = static_cast<int>(one_of({1, 1, 8, 16, 64, 128}));
  p.has_stop = chance(rng, 0.8);
  p.has_shared = chance(rng, 0.4);
  p.is_spaced = chance(rng, 0.3);
  o.dtype = chance(rng, 0.6) ? Dtype::bf16 : Dtype::f16;
  o.head_dim = one_of({64, 64, 128, 128, 256});
  o.head_dim_v = o.head_dim;
  if (!is_plain) {
    p.mask = static_cast<MaskKind>(one_of({0, 1, 2, 3, 4, 5, 6}));
    if (p.mask == MaskKind::grid) p.seqlen_k = p.seqlen_q;
    p.has_picked = chance(rng, 0.5);
    p.has_rows = chance(rng, 0.5);
    p.has_edges = chance(rng, 0.3);
    p.has_order_q = chance(rng, 0.3);
    p.has_order_k = chance(rng, 0.3);
    o.head_dim = one_of({8, 40, 64, 72, 96, 128, 192, 256});
    o.head_dim_v = chance(rng, 0.5) ? o.head_dim : one_of({8, 64, 128, 256});
    o.is_v_broadcast = chance(rng, 0.2);
    o.has_sink = chance(rng, 0.3);
    o.softcap = chance(rng, 0.3) ? static_cast<float>(one_of({1, 5, 30})) : 0.0f;
    o.has_out = chance(rng, 0.9);
    o.has_lse = !o.has_out || chance(rng, 0.9);
    if (chance(rng, 0.3)) o.softmax_scale = static_cast<float>(one_of({1, 3, 20})) / 20.0f;
  }
  o.layout = chance(rng, 0.5) ? Layout::contiguous : Layout::heads_last;
  o.sigma = chance(rng, 0.2) ? 4 : 1;
  return o;
}

// Which key tokens some row of a K/V head reads.
std::vector<uint8_t> live_keys(const RandomPlan& random, const PlanOptions& p) {
  const PlanData& data = *random.plan;
  const Lists& lists = data.by_query;
  std::vector<uint8_t> live(static_cast<size_t>(p.batch * p.heads_kv * p.seqlen_k), 0);
  const int64_t rows = tilewise::plan::num_rows(lists, tilewise::plan::slots_q(data)), slots = tilewise::plan::slots_k(data);
  const auto members = [&](int64_t slot) {  // of a slot of k itself, of one behind them those that it is the mean of
    int64_t end = slots;
    if (slot < end) return std::pair(slot, slot + 1);
    for (const int group : data.pools) {
      const int64_t index = slot - end;
      end += (slots + group - 1) / group;
      if (slot < end) return std::pair(index * group, std::min((index + 1) * group, slots));
    }
    return std::pair(int64_t{0}, int64_t{0});
  };
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int head = 0; head < p.heads_q; ++head) {
      const std::vector<int64_t>& tokens = random.tokens_k[static_cast<size_t>(b * p.heads_q + head)];
      const int64_t kv = head / (p.heads_q / p.heads_kv);
      for (int64_t row = 0; row < rows; ++row) {
        for (const RunList* list : {&lists.whole, &lists.masked, &lists.picked}) {
          const tilewise::plan::Runs runs = tilewise::plan::runs_of(*list, b, head, p.heads_q, row);
          for (int i = 0; i < runs.count; ++i) {
            const int64_t stop = tilewise::plan::run_stop(runs, i, list->grain, tilewise::plan::part_end(data, runs.start[i]));
            for (int64_t slot = runs.start[i]; slot < stop; ++slot) {
              const auto [first, last] = members(slot);
              for (int64_t member = first; member < last; ++member) {
                const int64_t token = tokens[static_cast<size_t>(member)];
                if (token >= 0) live[static_cast<size_t>((b * p.heads_kv + kv) * p.seqlen_k + token)] = 1;
              }
            }
          }
        }
      }
    }
  }
  return live;
}

struct Problem {
  Options options;
  RandomPlan plan;
  HostTensor q, k, v, out, lse, sink;

  Problem(Rng& rng, const Options& o) : options(o), plan(random_plan(rng, o.plan)) {
    const PlanOptions& p = o.plan;
    q = random_normal(rng, o.dtype, {p.batch, p.heads_q, p.seqlen_q, o.head_dim}, o.layout, o.sigma);
    k = random_normal(rng, o.dtype, {p.batch, p.heads_kv, p.seqlen_k, o.head_dim}, o.layout, o.sigma);
    v = random_normal(rng, o.dtype, {p.batch, o.is_v_broadcast ? 1 : p.heads_kv, p.seqlen_k, o.head_dim_v}, o.layout);
    out = HostTensor(o.dtype, {p.batch, p.heads_q, p.seqlen_q, o.head_dim_v}, o.layout);
    lse = HostTensor(Dtype::f32, {p.batch, p.heads_q, p.seqlen_q});
    sink = random_normal(rng, Dtype::f32, {p.heads_q});
  }
  AttendParams params() const {
    AttendParams p{.q = q.view, .k = k.view, .plan = plan.plan, .softmax_scale = options.softmax_scale, .softcap = options.softcap};
    if (options.has_out) {
      p.v = v.view;
      p.out = out.view;
    }
    if (options.has_lse) p.lse = lse.view;
    if (options.has_sink) p.sink_logit = sink.view;
    return p;
  }
  DenseResult exact() const {
    Problem wide = *this;
    wide.q = converted(q.view, Dtype::f64);
    wide.k = converted(k.view, Dtype::f64);
    wide.v = converted(v.view, Dtype::f64);
    wide.out = HostTensor(Dtype::f64, out.view.shape());
    wide.options.has_lse = true;
    wide.lse = HostTensor(Dtype::f32, lse.view.shape());
    Context context;
    reference::forward(wide.params(), context);
    DenseResult result;
    if (options.has_out) result.out = values_of(wide.out.view);
    result.lse = values_of(wide.lse.view);
    return result;
  }
  // Keys that no row reads become NaN in the copies that go to the device.
  void poison() const {
    const PlanOptions& p = options.plan;
    const std::vector<uint8_t> live = live_keys(plan, p);
    for (int64_t b = 0; b < p.batch; ++b) {
      for (int64_t kv = 0; kv < p.heads_kv; ++kv) {
        for (int64_t key = 0; key < p.seqlen_k; ++key) {
          if (live[static_cast<size_t>((b * p.heads_kv + kv) * p.seqlen_k + key)] != 0) continue;
          for (int64_t d = 0; d < options.head_dim; ++d) k.set(NAN, b, kv, key, d);
          if (!options.is_v_broadcast) {
            for (int64_t d = 0; d < options.head_dim_v; ++d) v.set(NAN, b, kv, key, d);
          }
        }
      }
    }
  }
};

// A problem's tensors and plan on the device.
struct OnDevice {
  DeviceTensor q, k, v, out, lse, sink;
  Plan plan;
  AttendParams params;

  OnDevice(const Problem& problem, Context& context)
      : q(problem.q.view), k(problem.k.view), v(problem.v.view), out(problem.out.view), lse(problem.lse.view), sink(problem.sink.view) {
    q.upload(problem.q.view);
    k.upload(problem.k.view);
    v.upload(problem.v.view);
    sink.upload(problem.sink.view);
    plan = copy_to_device(problem.plan.plan, context);
    params = problem.params();
    params.q = q.view;
    params.k = k.view;
    params.plan = plan;
    if (params.v.has_value()) params.v = v.view;
    if (params.out.has_value()) params.out = out.view;
    if (params.lse.has_value()) params.lse = lse.view;
    if (params.sink_logit.has_value()) params.sink_logit = sink.view;
  }
};

// Twice the error of plain f32 attention on the dtype, plus its rounding of the largest value. A lse gets two bits more: the matrix units cut
// the products that they add, which plain f32 rounds.
double bound_of(const std::vector<double>& in_dtype, const std::vector<double>& exact, Dtype dtype) {
  const double unit = dtype == Dtype::bf16 ? 0x1p-8 : dtype == Dtype::f16 ? 0x1p-11 : 0x1p-20;
  return 2 * largest_difference(in_dtype, exact) + unit * largest_magnitude(exact) + (dtype == Dtype::f32 ? 2e-6 : 1e-5);
}

void run_case(uint64_t seed, int repeats, bool is_small, bool has_pools = false) {
  Rng rng(seed);
  Options options = random_options(rng, is_small);
  if (has_pools) options.plan.pools = chance(rng, 0.5) ? std::vector<int>{static_cast<int>(uniform(rng, 2, 64))} : std::vector<int>{2, 5, 16};
  const Problem problem(rng, options);
  const std::string note = "seed " + std::to_string(seed) + ": " + describe(options);
  const DenseResult exact = problem.exact();
  const DenseResult in_dtype = dense_in_dtype(problem.plan, problem.params());
  if (is_dry) return;
  problem.poison();
  std::vector<double> out, lse;
  {
    const std::lock_guard<std::mutex> lock(gpu);
    Context context = device_context();
    const OnDevice device(problem, context);
    const auto wipe = [&] {
      device.out.wipe();
      device.lse.wipe();
    };
    const bool is_alike = runs_alike(
        repeats, note, wipe, [&] { return attend_forward(device.params, context); },
        [&] { return std::pair(device.out.bytes(), device.lse.bytes()); });
    if (!is_alike) return;
    if (!device.out.values(out) || !device.lse.values(lse)) return report("memory outside of out or lse was written", note);
  }
  char text[200];
  if (options.has_out) {
    const double error = largest_difference(out, exact.out), bound = bound_of(in_dtype.out, exact.out, options.dtype);
    std::snprintf(text, sizeof text, "out is off by %.3e, bound %.3e", error, bound);
    if (!(error <= bound)) return report(text, note);
  }
  if (options.has_lse) {
    const double error = largest_difference(lse, exact.lse), bound = bound_of(in_dtype.lse, exact.lse, Dtype::f32);
    std::snprintf(text, sizeof text, "lse is off by %.3e, bound %.3e", error, bound);
    if (!(error <= bound)) return report(text, note);
  }
}

Options simple_options(int64_t seqlen, int64_t head_dim = 128) {
  Options o;
  o.plan = {.batch = 1, .seqlen_q = seqlen, .seqlen_k = seqlen, .heads_q = 4, .heads_kv = 2, .tile = 128, .groups = 4};
  o.head_dim = o.head_dim_v = head_dim;
  return o;
}

// Few long rows, cut into parts: the same as whole rows up to rounding, and the same bits each time, in a graph, too.
void split() {
  std::atomic<bool>& is_on = sm90::splits_rows();
  const bool before = is_on;
  for (uint64_t seed = 1; seed <= 24; ++seed) {
    Rng rng(seed);
    Options o;
    PlanOptions& p = o.plan;
    const bool is_ragged = chance(rng, 0.5);
    p.heads_kv = static_cast<int>(uniform(rng, 1, 2));
    p.heads_q = p.heads_kv * static_cast<int>(uniform(rng, 1, 2));
    p.seqlen_q = seed % 8 == 0 ? 6000 : is_ragged ? uniform(rng, 1, 900) : 640;
    p.seqlen_k = is_ragged ? uniform(rng, 2000, 6000) : 4096;
    p.tile = 128;
    p.groups = chance(rng, 0.5) ? 1 : p.heads_q;
    p.mask = static_cast<MaskKind>(uniform(rng, 0, 3));
    p.density = chance(rng, 0.3) ? 1.0 : 0.3;
    p.longest_run = chance(rng, 0.5) ? 64 : 3000;
    p.has_one_run = chance(rng, 0.3);
    p.has_stop = chance(rng, 0.8);
    p.grain = 64;
    p.empty_rows = 0.2;
    o.head_dim = o.head_dim_v = chance(rng, 0.5) ? 128 : 64;
    o.dtype = chance(rng, 0.6) ? Dtype::bf16 : Dtype::f16;
    const Problem problem(rng, o);
    const std::string note = "split, seed " + std::to_string(seed) + ": " + describe(o);
    if (is_dry) continue;
    problem.poison();
    const Stream own;
    Context context = device_context(own.raw);
    const OnDevice device(problem, context);
    const auto wipe = [&] {
      device.out.wipe();
      device.lse.wipe();
      cuda_ok(cudaDeviceSynchronize(), "wipe");
    };
    const auto bits = [&] { return std::pair(device.out.bytes(), device.lse.bytes()); };
    const auto call = [&] { return attend_forward(device.params, context); };
    std::vector<double> out[2], lse[2];
    std::pair<std::vector<unsigned char>, std::vector<unsigned char>> first;
    for (const int i : {0, 1}) {
      is_on = i == 1;
      if (!runs_alike(i == 1 ? 5 : 1, note, wipe, call, bits)) return;
      first = bits();
      if (!device.out.values(out[i]) || !device.lse.values(lse[i])) return report("memory outside of out or lse was written", note);
    }
    const double unit = o.dtype == Dtype::bf16 ? 0x1p-8 : 0x1p-11;
    const double error = largest_difference(out[1], out[0]), bound = 2 * unit * largest_magnitude(out[0]);
    if (!(error <= bound)) return report("out differs by " + std::to_string(error) + ", bound " + std::to_string(bound), note);
    if (!(largest_difference(lse[1], lse[0]) <= 2e-5)) return report("lse differs by " + std::to_string(largest_difference(lse[1], lse[0])), note);
    cuda_ok(cudaStreamBeginCapture(own.raw, cudaStreamCaptureModeThreadLocal), "capture");
    call();
    cudaGraph_t graph = nullptr;
    cuda_ok(cudaStreamEndCapture(own.raw, &graph), "capture");
    cudaGraphExec_t exec = nullptr;
    cuda_ok(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
    for (int i = 0; i < 20; ++i) {
      wipe();
      cuda_ok(cudaGraphLaunch(exec, own.raw), "replay");
      cuda_ok(cudaStreamSynchronize(own.raw), "replay");
      if (bits() != first) return report("replay " + std::to_string(i) + " differs", note);
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
  }
  is_on = before;
}

// What an error leaves behind: nothing.
void errors() {
  Rng rng(1);
  const Problem problem(rng, simple_options(300));
  Context context = device_context();
  const OnDevice device(problem, context);
  const auto expect_error = [&](Error::Kind kind, const char* part, const AttendParams& params, Context& with) {
    device.out.wipe();
    const std::vector<unsigned char> before = device.out.bytes();
    try {
      attend_forward(params, with);
      report("no error", part);
    } catch (const Error& error) {
      if (error.kind() != kind || std::string(error.what()).find(part) == std::string::npos) report(error.what(), part);
    }
    if (device.out.bytes() != before) report("a refused call wrote", part);
    cuda_ok(cudaGetLastError(), "an error was left behind");
    attend_forward(device.params, context);  // the next call works
    cuda_ok(cudaDeviceSynchronize(), "the call after an error");
    std::vector<double> out;
    if (!device.out.values(out) || !(largest_difference(out, problem.exact().out) < 0.05)) report("the call after an error is wrong", part);
  };
  {
    AttendParams params = device.params;  // f32 views over the same memory
    const auto as_f32 = [](const TensorView& view) { return TensorView(view.raw(), Dtype::f32, {1, view.dim(1), 64, view.dim(3)}, view.device()); };
    params.q = as_f32(params.q), params.k = as_f32(params.k), params.v = as_f32(params.v), params.out = as_f32(params.out);
    params.lse = {};
    const Options small = [] {
      Options o = simple_options(64);
      return o;
    }();
    const Problem other(rng, small);
    params.plan = copy_to_device(other.plan.plan, context);
    expect_error(Error::Kind::unsupported, "sm90: q is f32", params, context);
  }
  {
    Context other = context;
    other.memory = host_memory();
    AttendParams params = device.params;
    const Problem many(rng, [] {
      Options o = simple_options(128 * 80);  // more rows than go without a schedule
      o.plan.density = 0.02;
      o.plan.groups = 1;
      return o;
    }());
    const OnDevice large(many, context);
    expect_error(Error::Kind::device, "host memory", large.params, other);
  }
  {
    AttendParams params = device.params;
    params.plan = problem.plan.plan;
    expect_error(Error::Kind::device, "move the plan", params, context);
  }
  {  // a launch that fails: a stream whose capture is broken
    const Stream own;
    const cudaStream_t stream = own.raw;
    Context other = device_context(stream);
    device.out.wipe();
    cuda_ok(cudaDeviceSynchronize(), "wipe");
    cuda_ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    cudaStreamSynchronize(stream);  // not allowed: the capture is broken from here on
    cudaGetLastError();
    try {
      attend_forward(device.params, other);
      report("no error", "a launch into a broken capture");
    } catch (const Error& error) {
      if (error.kind() != Error::Kind::cuda) report(error.what(), "a launch into a broken capture");
    }
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(stream, &graph);
    cudaGetLastError();
    attend_forward(device.params, other);
    cuda_ok(cudaStreamSynchronize(stream), "the call after a failed launch");
    std::vector<double> out;
    if (!device.out.values(out) || !(largest_difference(out, problem.exact().out) < 0.05)) report("wrong", "the call after a failed launch");
  }
}

// Eight problems on eight streams give the bits that they give one after another.
void streams() {
  struct One {
    Stream stream;
    std::unique_ptr<Problem> problem;
    Context context;
    std::unique_ptr<OnDevice> device;
    std::vector<unsigned char> bits;
  };
  std::vector<One> all(8);
  for (size_t i = 0; i < all.size(); ++i) {
    Rng rng(100 + i);
    Options o = simple_options(1500 + 100 * static_cast<int64_t>(i), i % 2 ? 64 : 128);
    o.plan.has_picked = i % 3 == 0;
    all[i].problem = std::make_unique<Problem>(rng, o);
    all[i].context = device_context(all[i].stream.raw);
    all[i].device = std::make_unique<OnDevice>(*all[i].problem, all[i].context);
    attend_forward(all[i].device->params, all[i].context);
    cuda_ok(cudaDeviceSynchronize(), "alone");
    all[i].bits = all[i].device->out.bytes();
    all[i].device->out.wipe();
  }
  cuda_ok(cudaDeviceSynchronize(), "wipe");
  for (int round = 0; round < 10; ++round) {
    for (One& one : all) attend_forward(one.device->params, one.context);
  }
  cuda_ok(cudaDeviceSynchronize(), "together");
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i].device->out.bytes() != all[i].bits) report("differs from its bits alone", "stream " + std::to_string(i));
  }
}

// A call captured into a graph gives, with new data, what a plain call gives.
void graphs() {
  Rng rng(7);
  Options options = simple_options(1300);
  options.plan.heads_q = 32;  // so many rows that a schedule is made
  const Problem problem(rng, options);
  const Stream own;
  const cudaStream_t stream = own.raw;
  Context context = device_context(stream);
  const OnDevice device(problem, context);
  cuda_ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  attend_forward(device.params, context);
  cudaGraph_t graph = nullptr;
  cuda_ok(cudaStreamEndCapture(stream, &graph), "capture");
  cudaGraphExec_t exec = nullptr;
  cuda_ok(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  for (int i = 0; i < 100; ++i) {
    if (i % 25 == 0) device.q.upload(random_normal(rng, Dtype::bf16, problem.q.view.shape(), problem.options.layout).view);
    device.out.wipe();
    cuda_ok(cudaDeviceSynchronize(), "wipe");
    cuda_ok(cudaGraphLaunch(exec, stream), "replay");
    cuda_ok(cudaStreamSynchronize(stream), "replay");
    const std::vector<unsigned char> replayed = device.out.bytes();
    if (i % 25 != 0) continue;
    device.out.wipe();
    cuda_ok(cudaDeviceSynchronize(), "wipe");
    attend_forward(device.params, context);
    cuda_ok(cudaStreamSynchronize(stream), "call");
    if (device.out.bytes() != replayed) report("differs from a plain call", "replay " + std::to_string(i));
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
  o.stage("split", split);
  o.stage("pools", [&] {
    std::atomic<bool>& is_on = tilewise::attend::sm90::takes_pools();
    const bool before = is_on;
    is_on = true;
    for_each_seed((o.cases + 4) / 5, o.seed + 500000, [&](uint64_t seed) { run_case(seed, o.repeats, o.is_small, true); });
    is_on = before;
  });
  o.stage("errors", errors);
  o.stage("streams", streams);
  o.stage("graphs", graphs);
  return o.summary();
}
