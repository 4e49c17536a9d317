// SPDX-License-Identifier: Apache-2.0
// attend_forward and attend_backward in attend/cuda on the GPU at hand (TILEWISE_BACKEND=cuda, which this program sets) against the f64 reference, over random problems of every
// kind. Stands alone, since the machine with the GPU has no GoogleTest:
//   tilewise_cuda_test [--cases N] [--seed S] [--repeats R] [--small] [--only NAME]
// Keys that no row reads are NaN on the device, outputs are poisoned and stand between red zones, and every repeat must give the same bits.
#include <array>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/attend/random_case.h"
#include "tests/attend/random_gradients.h"
#include "tests/attend/sm90/device_testing.h"
#include "tilewise/attend/attend.h"
#include "tilewise/attend/prepare.h"
#include "tilewise/attend/sm90/device_plan.h"

namespace tilewise::attend::testing {
namespace {

// A problem's tensors and plan on the device.
struct OnDevice {
  DeviceTensor q, k, v, out, lse, sink;
  AttendParams params;

  OnDevice(const ForwardProblem& problem, Context& context)
      : q(problem.q.view), k(problem.k.view), v(problem.v.view), out(problem.out.view), lse(problem.lse.view), sink(problem.sink_logit.view) {
    q.upload(problem.q.view);
    k.upload(problem.k.view);
    v.upload(problem.v.view);
    sink.upload(problem.sink_logit.view);
    params = problem.params();
    params.q = q.view;
    params.k = k.view;
    params.plan = copy_to_device(problem.plan.plan, context);
    if (params.v.has_value()) params.v = v.view;
    if (params.out.has_value()) params.out = out.view;
    if (params.lse.has_value()) params.lse = lse.view;
    if (params.sink_logit.has_value()) params.sink_logit = sink.view;
  }
};

ProblemOptions device_options(Rng& rng, uint64_t seed, bool is_small) {
  ProblemOptions o = random_case_options(rng);
  o.plan.is_by_key = false;
  o.edge = Edge::padded;
  if (seed % 5 == 0) o.head_dim = uniform(rng, 1, 256);
  if (seed % 5 == 1) o.head_dim_v = uniform(rng, 1, 256);
  if (is_small) o.plan.batch = 1;
  return o;
}

void compare(const char* name, const std::vector<double>& got, const std::vector<double>& exact, double bound, const std::string& note) {
  char text[200];
  const double error = largest_difference(got, exact);
  std::snprintf(text, sizeof text, "%s is off by %.3e, bound %.3e", name, error, bound);
  if (!(error <= bound)) report(text, note);
}

void forward_case(uint64_t seed, int repeats, bool is_small) {
  Rng rng(seed);
  const ForwardProblem problem = make_problem(rng, device_options(rng, seed, is_small));
  const std::string note = "seed " + std::to_string(seed) + ": " + describe(problem.options);
  const DenseResult exact = exact_forward(problem), in_dtype = dense_in_dtype(problem.plan, problem.params());
  if (is_dry) return;
  const double largest_v = largest_magnitude(values_of(problem.v.view));
  poison_untouched(problem);
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
  // Roundings of a logit as in forward_test.cpp; the matrix units cut the products that they add, which counts as two more.
  const double logit_error = 6 * 0x1p-24 * in_dtype.largest_logit;
  if (problem.options.has_out) {
    compare("out", out, exact.out, bound_of(in_dtype.out, exact.out, problem.options.dtype) + logit_error * largest_v, note);
  }
  if (problem.options.has_lse) compare("lse", lse, exact.lse, bound_of(in_dtype.lse, exact.lse, Dtype::f32) + logit_error + 1e-5, note);
}

// Plans with either direction: the other is made by the call, or by attend_prepare.
void backward_case(uint64_t seed, int repeats, bool is_small) {
  Rng rng(seed);
  ProblemOptions options = device_options(rng, seed, is_small);
  options.plan.is_by_key = seed % 6 == 0;
  ForwardProblem forward = make_problem(rng, options);
  poison_untouched(forward);
  const BackwardProblem problem = make_backward_of(rng, std::move(forward));
  const std::string note = "backward, seed " + std::to_string(seed) + ": " + describe(options);
  const Gradients exact = exact_backward(problem), in_dtype = backward_in_dtype(problem);
  if (is_dry) return;
  std::vector<double> dq, dk, dv, dsink;
  {
    const std::lock_guard<std::mutex> lock(gpu);
    Context context = device_context();
    const OnDevice device(problem.forward, context);
    device.out.upload(problem.forward.out.view);
    device.lse.upload(problem.forward.lse.view);
    const DeviceTensor dout(problem.dout.view), dlse(problem.dlse.view), own_dq(problem.dq.view), own_dk(problem.dk.view), own_dv(problem.dv.view),
        own_dsink(problem.dsink_logit.view);
    dout.upload(problem.dout.view);
    dlse.upload(problem.dlse.view);
    AttendBackwardParams params{.forward = device.params, .dout = dout.view, .dq = own_dq.view, .dk = own_dk.view, .dv = own_dv.view};
    if (problem.has_dlse) params.dlse = dlse.view;
    if (options.has_sink) params.dsink_logit = own_dsink.view;
    if (seed % 2 == 0) params.forward.schedule = attend_prepare(params.forward.plan, options.plan.heads_kv, context);
    const auto wipe = [&] {
      for (const DeviceTensor* gradient : {&own_dq, &own_dk, &own_dv, &own_dsink}) gradient->wipe();
    };
    const bool is_alike = runs_alike(
        repeats, note, wipe, [&] { return attend_backward(params, context); },
        [&] { return std::array{own_dq.bytes(), own_dk.bytes(), own_dv.bytes(), own_dsink.bytes()}; });
    if (!is_alike) return;
    const bool is_within = own_dq.values(dq) && own_dk.values(dk) && own_dv.values(dv) && own_dsink.values(dsink);
    if (!is_within) return report("memory outside of a gradient was written", note);
  }
  const auto [of_q, of_k, of_v] = slack_of_logits(problem, in_dtype, 6);
  compare("dq", dq, exact.dq, bound_of(in_dtype.dq, exact.dq, options.dtype) + of_q, note);
  compare("dk", dk, exact.dk, bound_of(in_dtype.dk, exact.dk, options.dtype) + of_k, note);
  compare("dv", dv, exact.dv, bound_of(in_dtype.dv, exact.dv, options.dtype) + of_v, note);
  if (options.has_sink) compare("dsink_logit", dsink, exact.dsink, bound_of(in_dtype.dsink, exact.dsink, Dtype::f32) + 1e-5, note);
}

// A problem that nothing takes names every backend's reason, and leaves nothing behind.
void errors() {
  Rng rng(1);
  ProblemOptions o;
  o.plan.seqlen_q = o.plan.seqlen_k = 100;
  const ForwardProblem problem = make_problem(rng, o);
  Context context = device_context();
  const OnDevice device(problem, context);
  o.head_dim = 300;
  const ForwardProblem wide = make_problem(rng, o);
  const OnDevice other(wide, context);
  const std::vector<unsigned char> before = other.out.bytes();
  unsetenv("TILEWISE_BACKEND");
  try {
    attend_forward(other.params, context);
    report("no error", "head_dim 300");
  } catch (const Error& error) {
    const std::string text = error.what();
    for (const char* part : {"sm90: q is f32", "cuda: q has 300 channels, above 256", "cpu: "}) {
      if (text.find(part) == std::string::npos) report(text, part);
    }
  }
  // What attend/sm90 refuses runs here unasked.
  if (const Ran ran = attend_forward(device.params, context); ran.backend != "cuda") report("f32 ran on " + ran.backend, "backend");
  setenv("TILEWISE_BACKEND", "cuda", 1);
  cuda_ok(cudaDeviceSynchronize(), "the call after an error");
  if (other.out.bytes() != before) report("a refused call wrote", "head_dim 300");
  std::vector<double> out;
  if (!device.out.values(out) || !(largest_difference(out, exact_forward(problem).out) < 1e-4)) report("wrong", "the call after an error");
}

// A call captured into a graph gives, with new data, what a plain call gives; with pools, whose means are made anew.
void graphs() {
  Rng rng(7);
  ProblemOptions o;
  o.plan = {.seqlen_q = 500, .seqlen_k = 700, .heads_q = 4, .heads_kv = 2, .tile = 128, .pools = {4}};
  o.dtype = Dtype::bf16;
  const ForwardProblem problem = make_problem(rng, o);
  const Stream own;
  Context context = device_context(own.raw);
  const OnDevice device(problem, context);
  attend_forward(device.params, context);  // the driver compiles
  cuda_ok(cudaDeviceSynchronize(), "first call");
  cuda_ok(cudaStreamBeginCapture(own.raw, cudaStreamCaptureModeThreadLocal), "capture");
  attend_forward(device.params, context);
  cudaGraph_t graph = nullptr;
  cuda_ok(cudaStreamEndCapture(own.raw, &graph), "capture");
  cudaGraphExec_t exec = nullptr;
  cuda_ok(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  for (int i = 0; i < 100; ++i) {
    if (i % 25 == 0) device.k.upload(random_normal(rng, Dtype::bf16, problem.k.view.shape(), o.layout).view);
    device.out.wipe();
    cuda_ok(cudaDeviceSynchronize(), "wipe");
    cuda_ok(cudaGraphLaunch(exec, own.raw), "replay");
    cuda_ok(cudaStreamSynchronize(own.raw), "replay");
    if (i % 25 != 0) continue;
    const std::vector<unsigned char> replayed = device.out.bytes();
    device.out.wipe();
    cuda_ok(cudaDeviceSynchronize(), "wipe");
    attend_forward(device.params, context);
    cuda_ok(cudaStreamSynchronize(own.raw), "call");
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
  setenv("TILEWISE_BACKEND", "cuda", 1);
  expected_backend = "cuda";
  o.stage("cases", [&] { for_each_seed(o.cases, o.seed, [&](uint64_t seed) { forward_case(seed, o.repeats, o.is_small); }); });
  o.stage("backward", [&] { for_each_seed(o.cases / 2, o.seed + 100'000, [&](uint64_t seed) { backward_case(seed, o.repeats, o.is_small); }); });
  o.stage("errors", errors);
  o.stage("graphs", graphs);
  return o.summary();
}
