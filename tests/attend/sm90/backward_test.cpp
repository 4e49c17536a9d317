// SPDX-License-Identifier: Apache-2.0
// attend_backward on a Hopper GPU against the f64 reference, over random problems of every kind that the backend takes. Stands alone, since the machine
// with the GPU has no GoogleTest:
//   tilewise_sm90_backward_test [--cases N] [--seed S] [--repeats R] [--small] [--only NAME]
// Keys that no row reads are NaN on the device, gradients are poisoned and stand between red zones, and every repeat must give the same bits.
#include <array>
#include <cmath>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "tests/attend/gradient_oracle.h"
#include "tests/attend/sm90/device_testing.h"
#include "tilewise/attend/attend.h"
#include "tilewise/attend/prepare.h"
#include "tilewise/attend/reference/backward.h"
#include "tilewise/attend/reference/forward.h"
#include "tilewise/attend/sm90/device_plan.h"
#include "tilewise/plan/rows.h"

namespace tilewise::attend::testing {
namespace {

struct Options {
  PlanOptions plan;
  Dtype dtype = Dtype::bf16;
  int64_t head_dim = 128, head_dim_v = 128;
  bool has_sink = false, has_dlse = false, has_schedule = true;
  Layout layout = Layout::contiguous;
  float softcap = 0;
  double sigma = 1;
};

std::string describe(const Options& o) {
  std::ostringstream text;
  const PlanOptions& p = o.plan;
  text << "B " << p.batch << " Hq " << p.heads_q << " Hkv " << p.heads_kv << " Sq " << p.seqlen_q << " Sk " << p.seqlen_k << " D " << o.head_dim
       << " Dv " << o.head_dim_v << " " << o.dtype << " tile " << p.tile << " groups " << p.groups << " mask " << static_cast<int>(p.mask)
       << " density " << p.density << " longest " << p.longest_run << (p.has_picked ? " picked" : "") << (p.has_rows ? " rows" : "")
       << (p.has_edges ? " edges" : "") << (p.has_order_q ? " order_q" : "") << (p.has_order_k ? " order_k" : "") << (p.pools.empty() ? "" : " pool")
       << (o.has_sink ? " sink" : "") << (o.has_dlse ? " dlse" : "") << (o.has_schedule ? "" : " no schedule") << " layout "
       << static_cast<int>(o.layout) << " softcap " << o.softcap << " sigma " << o.sigma;
  return text.str();
}

// Lengths crowd around 1 and the tiles.
Options random_options(Rng& rng, bool is_small) {
  Options o;
  PlanOptions& p = o.plan;
  const auto one_of = [&rng](std::initializer_list<int64_t> values) {
    return *(values.begin() + uniform(rng, 0, static_cast<int64_t>(values.size()) - 1));
  };
  p.tile = static_cast<int>(one_of({16, 40, 64, 64, 128, 128, 128, 192, 256}));
  const auto length = [&] {
    if (chance(rng, 0.1)) return int64_t{1};
    if (chance(rng, 0.5)) return std::max<int64_t>(1, 64 * one_of({1, 2, 4}) + one_of({-1, 0, 1}));
    return uniform(rng, 1, is_small ? 200 : 600);
  };
  p.batch = one_of({1, 1, 2, 3});
  p.heads_kv = static_cast<int>(one_of({1, 1, 2, 3}));
  p.heads_q = p.heads_kv * static_cast<int>(one_of({1, 1, 2, 4, 16}));
  p.seqlen_q = length();
  p.seqlen_k = chance(rng, 0.3) ? p.seqlen_q : length();
  while (p.batch * p.heads_q * p.seqlen_q * p.seqlen_k > 300'000 && p.batch > 1) --p.batch;  // the reference is slow
  while (p.batch * p.heads_q * p.seqlen_q * p.seqlen_k > 300'000 && p.heads_kv > 1) p.heads_q -= p.heads_q / p.heads_kv--;
  p.groups = static_cast<int>(one_of({1, p.heads_kv, p.heads_q}));
  p.has_batched_lists = chance(rng, 0.5);
  p.mask = static_cast<MaskKind>(one_of({0, 0, 1, 1, 2, 3, 4, 5, 6}));
  if (p.mask == MaskKind::grid) p.seqlen_k = p.seqlen_q;
  p.density = chance(rng, 0.2) ? 1.0 : chance(rng, 0.2) ? 0.02 : 0.1 + 0.8 * std::uniform_real_distribution<double>(0, 1)(rng);
  p.longest_run = static_cast<int>(one_of({1, 20, 64, 200, 600}));
  p.grain = static_cast<int>(one_of({1, 1, 8, 16, 64, 128}));
  p.has_stop = chance(rng, 0.8);
  p.has_picked = chance(rng, 0.2);
  p.has_rows = chance(rng, 0.3);
  p.has_edges = chance(rng, 0.2);
  p.has_shared = chance(rng, 0.4);
  p.is_spaced = chance(rng, 0.3);
  p.has_order_q = chance(rng, 0.2);
  p.has_order_k = chance(rng, 0.2);
  if (chance(rng, 0.1)) p.pools = {static_cast<int>(one_of({4, 16, 64}))};
  o.dtype = chance(rng, 0.6) ? Dtype::bf16 : Dtype::f16;
  o.head_dim = one_of({64, 64, 128, 128, 128, 8, 40, 72, 96});
  o.head_dim_v = chance(rng, 0.8) ? o.head_dim : one_of({8, 64, 128});
  o.has_sink = chance(rng, 0.3);
  o.has_dlse = chance(rng, 0.5);
  o.has_schedule = chance(rng, 0.7);
  o.softcap = chance(rng, 0.2) ? static_cast<float>(one_of({2, 5, 30})) : 0.0f;
  o.layout = chance(rng, 0.5) ? Layout::contiguous : Layout::heads_last;
  o.sigma = chance(rng, 0.1) ? 2 : 1;
  return o;
}

struct Problem {
  Options options;
  RandomPlan plan;
  HostTensor q, k, v, out, lse, sink, dout, dlse, dq, dk, dv, dsink;

  Problem(Rng& rng, const Options& o) : options(o), plan(random_plan(rng, o.plan)) {
    const PlanOptions& p = o.plan;
    q = random_normal(rng, o.dtype, {p.batch, p.heads_q, p.seqlen_q, o.head_dim}, o.layout, o.sigma);
    k = random_normal(rng, o.dtype, {p.batch, p.heads_kv, p.seqlen_k, o.head_dim}, o.layout, o.sigma);
    v = random_normal(rng, o.dtype, {p.batch, p.heads_kv, p.seqlen_k, o.head_dim_v}, o.layout);
    out = HostTensor(o.dtype, {p.batch, p.heads_q, p.seqlen_q, o.head_dim_v}, o.layout);
    lse = HostTensor(Dtype::f32, {p.batch, p.heads_q, p.seqlen_q});
    sink = random_normal(rng, Dtype::f32, {p.heads_q});
    dout = random_normal(rng, o.dtype, out.view.shape(), o.layout);
    dlse = random_normal(rng, Dtype::f32, lse.view.shape());
    dq = HostTensor(o.dtype, q.view.shape(), o.layout);
    dk = HostTensor(o.dtype, k.view.shape(), o.layout);
    dv = HostTensor(o.dtype, v.view.shape(), o.layout);
    dsink = HostTensor(Dtype::f32, sink.view.shape());
    Context context;
    reference::forward(params().forward, context);
  }
  AttendBackwardParams params() const {
    AttendBackwardParams p;
    p.forward = {.q = q.view, .k = k.view, .v = v.view, .out = out.view, .lse = lse.view, .plan = plan.plan, .softcap = options.softcap};
    p.dout = dout.view;
    p.dq = dq.view;
    p.dk = dk.view;
    p.dv = dv.view;
    if (options.has_dlse) p.dlse = dlse.view;
    if (options.has_sink) {
      p.forward.sink_logit = sink.view;
      p.dsink_logit = dsink.view;
    }
    return p;
  }
  Gradients exact() const {
    Problem wide = *this;
    for (HostTensor* tensor : {&wide.q, &wide.k, &wide.v, &wide.out, &wide.dout}) *tensor = converted(tensor->view, Dtype::f64);
    for (HostTensor* tensor : {&wide.dq, &wide.dk, &wide.dv}) *tensor = HostTensor(Dtype::f64, tensor->view.shape());
    wide.dsink = HostTensor(Dtype::f32, dsink.view.shape());
    Context context;
    reference::backward(wide.params(), context);
    return {values_of(wide.dq.view), values_of(wide.dk.view), values_of(wide.dv.view),
            options.has_sink ? values_of(wide.dsink.view) : std::vector<double>(), 0};
  }
  // Keys that no row reads become NaN in the copies that go to the device.
  void poison() const {
    const PlanOptions& p = options.plan;
    const int64_t group = p.heads_q / p.heads_kv;
    for (int64_t b = 0; b < p.batch; ++b) {
      for (int64_t kv = 0; kv < p.heads_kv; ++kv) {
        std::vector<bool> is_read(static_cast<size_t>(p.seqlen_k), false);
        for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
          const std::vector<int64_t>& tokens = plan.tokens_k[static_cast<size_t>(b * p.heads_q + h)];
          for (size_t slot = 0; slot < tokens.size(); ++slot) {
            const bool is_touched = plan.touched[static_cast<size_t>((b * p.heads_q + h) * plan.slots) + slot] != 0;
            if (tokens[slot] >= 0 && is_touched) is_read[static_cast<size_t>(tokens[slot])] = true;
          }
          for (size_t slot = 0; slot < tokens.size() && !p.pools.empty(); ++slot) {  // members of a pooled key that is read
            const size_t pooled = tokens.size() + slot / static_cast<size_t>(p.pools[0]);
            const bool is_touched = plan.touched[static_cast<size_t>((b * p.heads_q + h) * plan.slots) + pooled] != 0;
            if (tokens[slot] >= 0 && is_touched) is_read[static_cast<size_t>(tokens[slot])] = true;
          }
        }
        for (int64_t key = 0; key < p.seqlen_k; ++key) {
          if (is_read[static_cast<size_t>(key)]) continue;
          for (int64_t d = 0; d < options.head_dim; ++d) k.set(NAN, b, kv, key, d);
          for (int64_t d = 0; d < options.head_dim_v; ++d) v.set(NAN, b, kv, key, d);
        }
      }
    }
  }
};

// A problem's tensors and plan on the device.
struct OnDevice {
  DeviceTensor q, k, v, out, lse, sink, dout, dlse, dq, dk, dv, dsink;
  AttendBackwardParams params;

  OnDevice(const Problem& p, Context& context)
      : q(p.q.view),
        k(p.k.view),
        v(p.v.view),
        out(p.out.view),
        lse(p.lse.view),
        sink(p.sink.view),
        dout(p.dout.view),
        dlse(p.dlse.view),
        dq(p.dq.view),
        dk(p.dk.view),
        dv(p.dv.view),
        dsink(p.dsink.view) {
    params = p.params();
    AttendParams& f = params.forward;
    const auto place = [](const DeviceTensor& tensor, TensorView& view, bool has_values) {
      if (!view.has_value()) return;
      if (has_values) tensor.upload(view);
      view = tensor.view;
    };
    place(q, f.q, true);
    place(k, f.k, true);
    place(v, f.v, true);
    place(out, f.out, true);
    place(lse, f.lse, true);
    place(sink, f.sink_logit, true);
    place(dout, params.dout, true);
    place(dlse, params.dlse, true);
    place(dq, params.dq, false);
    place(dk, params.dk, false);
    place(dv, params.dv, false);
    place(dsink, params.dsink_logit, false);
    f.plan = copy_to_device(p.plan.plan, context);
    if (p.options.has_schedule) f.schedule = attend_prepare(f.plan, p.options.plan.heads_kv, context);
  }
  std::array<const DeviceTensor*, 4> gradients() const { return {&dq, &dk, &dv, &dsink}; }
  void wipe() const {
    for (const DeviceTensor* gradient : gradients()) gradient->wipe();
  }
  std::vector<unsigned char> bits() const {
    std::vector<unsigned char> all;
    for (const DeviceTensor* gradient : gradients()) {
      const std::vector<unsigned char> bytes = gradient->bytes();
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  }
};

// Twice the error of a plain f32 implementation on the dtype, plus roundings of the largest value: of the gradient, and half of one of P, from which dS is
// made as it was rounded (the plain one rounds it for dV alone).
double bound_of(const std::vector<double>& in_dtype, const std::vector<double>& exact, Dtype dtype) {
  const double unit = dtype == Dtype::bf16 ? 0x1p-8 : dtype == Dtype::f16 ? 0x1p-11 : 0x1p-18;
  return 2 * largest_difference(in_dtype, exact) + 1.5 * unit * largest_magnitude(exact) + 1e-5;
}

// Memory that the next call's workspace is taken from holds NaN: initcheck does not see what bulk copies write, so what is read unwritten must show here.
void poison_pool() {
  void* data = nullptr;
  constexpr size_t kBytes = size_t{64} << 20;
  cuda_ok(cudaMallocAsync(&data, kBytes, nullptr), "poison");
  cuda_ok(cudaMemsetAsync(data, 0xff, kBytes, nullptr), "poison");
  cuda_ok(cudaFreeAsync(data, nullptr), "poison");
}

void run_case(uint64_t seed, int repeats, bool is_small) {
  Rng rng(seed);
  Options options = random_options(rng, is_small);
  Problem problem(rng, options);
  const TensorView& order_k = problem.plan.plan->order_k.token;
  if (order_k.has_value() && options.plan.heads_kv % order_k.dim(1) != 0) {  // more orders than heads of k are refused
    options.plan.has_order_k = false;
    problem = Problem(rng, options);
  }
  const std::string note = "seed " + std::to_string(seed) + ": " + describe(options);
  const Gradients exact = problem.exact(), in_dtype = gradients_in_dtype(problem.plan, problem.params());
  if (is_dry) return;
  problem.poison();
  std::array<std::vector<double>, 4> found;
  {
    const std::lock_guard<std::mutex> lock(gpu);
    Context context = device_context();
    const OnDevice device(problem, context);
    const auto wipe = [&] {
      device.wipe();
      poison_pool();
    };
    if (!runs_alike(repeats, note, wipe, [&] { return attend_backward(device.params, context); }, [&] { return device.bits(); })) return;
    for (size_t i = 0; i < 4; ++i) {
      if (!device.gradients()[i]->values(found[i])) return report("memory outside of the gradients was written", note);
    }
  }
  // Where dP and delta cancel, what is left is their roundings: the matrix units cut the products that they add.
  const double scale = 1 / std::sqrt(static_cast<double>(options.head_dim)),
               queries = static_cast<double>(options.plan.seqlen_q * options.plan.heads_q);
  const double ds = 0x1p-22 * largest_norm(problem.dout.view) * largest_norm(problem.v.view) * scale;
  const double of_q = ds * largest_magnitude(values_of(problem.k.view)),
               of_k = ds * largest_magnitude(values_of(problem.q.view)) * std::sqrt(queries);
  const auto compare = [&](const char* name, const std::vector<double>& got, const std::vector<double>& want, const std::vector<double>& plain,
                           Dtype dtype, double cut = 0) {
    const double error = largest_difference(got, want), bound = bound_of(plain, want, dtype) + cut;
    char text[200];
    std::snprintf(text, sizeof text, "%s is off by %.3e, bound %.3e", name, error, bound);
    if (!(error <= bound)) report(text, note);
  };
  compare("dq", found[0], exact.dq, in_dtype.dq, options.dtype, of_q);
  compare("dk", found[1], exact.dk, in_dtype.dk, options.dtype, of_k);
  compare("dv", found[2], exact.dv, in_dtype.dv, options.dtype);
  if (options.has_sink) compare("dsink", found[3], exact.dsink, in_dtype.dsink, Dtype::f32);
}

Options simple_options(int64_t seqlen, int64_t head_dim = 128) {
  Options o;
  o.plan = {.batch = 1, .seqlen_q = seqlen, .seqlen_k = seqlen, .heads_q = 4, .heads_kv = 2, .tile = 128, .groups = 4};
  o.head_dim = o.head_dim_v = head_dim;
  return o;
}

// What is refused leaves the gradients as they were, with the reason.
void errors() {
  Rng rng(1);
  const Problem problem(rng, simple_options(300));
  Context context = device_context();
  const OnDevice device(problem, context);
  const auto expect_error = [&](Error::Kind kind, const char* part, const AttendBackwardParams& params) {
    device.wipe();
    const std::vector<unsigned char> before = device.bits();
    try {
      attend_backward(params, context);
      report("no error", part);
    } catch (const Error& error) {
      if (error.kind() != kind || std::string(error.what()).find(part) == std::string::npos) report(error.what(), part);
    }
    if (device.bits() != before) report("a refused call wrote", part);
    attend_backward(device.params, context);  // the next call works
    cuda_ok(cudaDeviceSynchronize(), "the call after an error");
  };
  AttendBackwardParams params = device.params;
  params.forward.schedule = nullptr;
  params.forward.plan = problem.plan.plan;
  expect_error(Error::Kind::device, "move the plan", params);
  Options ordered = simple_options(300);
  ordered.plan.pools = {2, 3, 4, 5, 6, 7, 8, 9};
  const Problem other(rng, ordered);
  params.forward.plan = copy_to_device(other.plan.plan, context);
  expect_error(Error::Kind::unsupported, "8 pools", params);
}

// What the caller has reordered gives the bits that its order gives.
void slots() {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    Rng rng(seed);
    Options options = simple_options(300 + 61 * static_cast<int64_t>(seed), seed % 2 == 0 ? 64 : 128);
    options.plan.has_order_q = options.plan.has_order_k = true;
    options.plan.heads_kv = options.plan.heads_q;  // else an order of keys may be refused
    options.has_dlse = true;
    const Problem problem(rng, options);
    Context context = device_context();
    const OnDevice device(problem, context);
    device.wipe();
    attend_backward(device.params, context);
    const PlanData& data = *problem.plan.plan;
    const auto token_of = [&](const TensorView& order, int64_t b, int64_t head, int64_t slot) {
      return order.at<int32_t>(tilewise::plan::batch_index(order, b), tilewise::plan::group_index(order, static_cast<int>(head), data.heads_q), slot);
    };
    // Rows of a [B, H, tokens, .] tensor by slots; padding is NaN.
    const auto reordered = [&](const HostTensor& tensor, const TensorView& order) {
      const bool has_channels = tensor.view.rank() == 4;
      const int64_t batch = tensor.view.dim(0), heads = tensor.view.dim(1), rows = order.dim(2), channels = has_channels ? tensor.view.dim(3) : 1;
      const Shape shape = has_channels ? Shape{batch, heads, rows, channels} : Shape{batch, heads, rows};
      const HostTensor result(tensor.view.dtype(), shape);
      for (int64_t b = 0; b < batch; ++b) {
        for (int64_t head = 0; head < heads; ++head) {
          for (int64_t slot = 0; slot < rows; ++slot) {
            const int64_t token = token_of(order, b, head, slot);
            if (!has_channels) {
              result.set(token < 0 ? NAN : to_double(tensor.view, tensor.view.offset(b, head, token)), b, head, slot);
            } else {
              for (int64_t d = 0; d < channels; ++d)
                result.set(token < 0 ? NAN : to_double(tensor.view, tensor.view.offset(b, head, token, d)), b, head, slot, d);
            }
          }
        }
      }
      return result;
    };
    const TensorView &order_q = data.order_q.token, &order_k = data.order_k.token;
    Problem other = problem;
    for (HostTensor* tensor : {&other.q, &other.out, &other.lse, &other.dout, &other.dlse, &other.dq}) *tensor = reordered(*tensor, order_q);
    for (HostTensor* tensor : {&other.k, &other.v, &other.dk, &other.dv}) *tensor = reordered(*tensor, order_k);
    OnDevice in_slots(other, context);
    in_slots.params.forward.in_slots = true;
    in_slots.wipe();
    attend_backward(in_slots.params, context);
    cuda_ok(cudaDeviceSynchronize(), "in slots");
    for (size_t i = 0; i < 3; ++i) {
      std::vector<double> by_token, by_slot;
      if (!device.gradients()[i]->values(by_token) || !in_slots.gradients()[i]->values(by_slot)) return report("memory outside was written", "slots");
      const TensorView& order = i == 0 ? order_q : order_k;
      const Shape shape = in_slots.gradients()[i]->view.shape();
      const int64_t tokens = device.gradients()[i]->view.dim(2);
      for (int64_t row = 0; row < shape[0] * shape[1] * shape[2]; ++row) {
        const int64_t head = row / shape[2] % shape[1], b = row / shape[2] / shape[1], token = token_of(order, b, head, row % shape[2]);
        for (int64_t d = 0; d < shape[3]; ++d) {
          const double want = token < 0 ? 0 : by_token[static_cast<size_t>(((b * shape[1] + head) * tokens + token) * shape[3] + d)];
          if (by_slot[static_cast<size_t>(row * shape[3] + d)] != want)
            return report("differs from the call by tokens", "gradient " + std::to_string(i));
        }
      }
    }
  }
}

// Calls without a schedule, and those with one that has served a call, can be captured; replays with new data give what a plain call gives. Streams do not disturb one another.
void graphs(bool has_schedule) {
  Rng rng(7);
  Options options = simple_options(1300);
  options.has_schedule = has_schedule;
  const Problem problem(rng, options);
  const Stream own;
  Context context = device_context(own.raw);
  const OnDevice device(problem, context);
  attend_backward(device.params, context);
  cuda_ok(cudaStreamSynchronize(own.raw), "first");
  cuda_ok(cudaStreamBeginCapture(own.raw, cudaStreamCaptureModeThreadLocal), "capture");
  attend_backward(device.params, context);
  cudaGraph_t graph = nullptr;
  cuda_ok(cudaStreamEndCapture(own.raw, &graph), "capture");
  cudaGraphExec_t exec = nullptr;
  cuda_ok(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  for (int i = 0; i < 30; ++i) {
    if (i % 10 == 0) device.dout.upload(random_normal(rng, Dtype::bf16, problem.dout.view.shape(), problem.options.layout).view);
    device.wipe();
    cuda_ok(cudaDeviceSynchronize(), "wipe");
    cuda_ok(cudaGraphLaunch(exec, own.raw), "replay");
    cuda_ok(cudaStreamSynchronize(own.raw), "replay");
    const std::vector<unsigned char> replayed = device.bits();
    if (i % 10 != 0) continue;
    device.wipe();
    cuda_ok(cudaDeviceSynchronize(), "wipe");
    attend_backward(device.params, context);
    cuda_ok(cudaStreamSynchronize(own.raw), "call");
    if (device.bits() != replayed) report("differs from a plain call", "replay " + std::to_string(i));
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
}

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
    all[i].problem = std::make_unique<Problem>(rng, simple_options(900 + 100 * static_cast<int64_t>(i), i % 2 ? 64 : 128));
    all[i].context = device_context(all[i].stream.raw);
    all[i].device = std::make_unique<OnDevice>(*all[i].problem, all[i].context);
    attend_backward(all[i].device->params, all[i].context);
    cuda_ok(cudaDeviceSynchronize(), "alone");
    all[i].bits = all[i].device->bits();
    all[i].device->wipe();
  }
  cuda_ok(cudaDeviceSynchronize(), "wipe");
  for (int round = 0; round < 10; ++round) {
    for (One& one : all) attend_backward(one.device->params, one.context);
  }
  cuda_ok(cudaDeviceSynchronize(), "together");
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i].device->bits() != all[i].bits) report("differs from its bits alone", "stream " + std::to_string(i));
  }
}

}  // namespace
}  // namespace tilewise::attend::testing

int main(int argc, char** argv) {
  using namespace tilewise::attend::testing;
  const TestOptions options(argc, argv);
  options.stage("cases",
                [&] { for_each_seed(options.cases, options.seed, [&](uint64_t seed) { run_case(seed, options.repeats, options.is_small); }); });
  options.stage("errors", errors);
  options.stage("slots", slots);
  options.stage("graphs", [] {
    graphs(true);
    graphs(false);
  });
  options.stage("streams", streams);
  return options.summary();
}
