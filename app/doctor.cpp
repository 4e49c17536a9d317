// SPDX-License-Identifier: Apache-2.0
#include <dnnl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <memory>

#include "app/command.h"
#include "app/table.h"
#include "tilewise/attend/attend.h"
#include "tilewise/base/file.h"
#include "tilewise/base/hash.h"
#include "tilewise/cache/contiguous.h"
#include "tilewise/infer/cuda/queue.h"
#include "tilewise/infer/model.h"
#include "tilewise/machine/cpu/context.h"
#include "tilewise/machine/cpu/target.h"
#include "tilewise/machine/device.h"
#include "tilewise/methods/registry.h"

namespace tilewise::app {
namespace {

// The reference LM over the first 1,024 bytes of documents/postgresql-wal.txt; dense attention, f32.
constexpr int64_t kCheckBytes = 1024;
constexpr double kCheckBits = .96112;  // from an f64 computation of its own: 0.961119
constexpr double kCheckTolerance = 1e-4;

enum class Outcome { ok, note, fail };

struct Finding {
  Outcome outcome;
  std::string name, text;
};

template <class Check>
Finding finding(const std::string& name, Check&& check_it) {
  try {
    return check_it();
  } catch (const Error& error) {
    if (error.kind() == Error::Kind::cancelled) throw;
    return {Outcome::fail, name, error.what()};
  }
}

std::string found_in_path(std::initializer_list<const char*> programs) {
  const char* const path = std::getenv("PATH");
  for (const char* program : programs) {
    std::string rest = path == nullptr ? "" : path;
    while (!rest.empty()) {
      const size_t colon = std::min(rest.find(':'), rest.size());
      const std::string file = rest.substr(0, colon) + "/" + program;
      rest.erase(0, colon + 1);
      if (::access(file.c_str(), X_OK) == 0) return file;
    }
  }
  return "";
}

/// Runs `call` with TILEWISE_BACKEND set; only while no other thread works.
template <class Call>
void with_backend(const char* name, Call&& call) {
  const char* const old = std::getenv("TILEWISE_BACKEND");
  const std::string kept = old == nullptr ? "" : old;
  ::setenv("TILEWISE_BACKEND", name, 1);
  const auto restore = [&] { old == nullptr ? ::unsetenv("TILEWISE_BACKEND") : ::setenv("TILEWISE_BACKEND", kept.c_str(), 1); };
  try {
    call();
  } catch (...) {
    restore();
    throw;
  }
  restore();
}

float drawn(uint64_t seed, int64_t i) {
  return static_cast<float>(static_cast<double>(splitmix64(seed * 1000003 + static_cast<uint64_t>(i)) >> 11) / 9007199254740992.0 * 2 - 1);
}

template <class T>
Tensor random_tensor(const Shape& shape, uint64_t seed, const Context& context) {
  Tensor tensor(context.memory, kDtypeOf<T>, shape);
  for (int64_t i = 0; i < shape.numel(); ++i) tensor.view.data<T>()[i] = T(drawn(seed, i));
  return tensor;
}

/// Largest difference between the kernels that would run and the f64 reference, on ragged grouped heads, dense and sparse.
template <class T>
double worst_difference(Context& context, std::string& ran_on) {
  const Shape q_shape{1, 4, 333, 64}, kv_shape{1, 2, 333, 64};
  const Tensor q = random_tensor<T>(q_shape, 1, context), k = random_tensor<T>(kv_shape, 2, context), v = random_tensor<T>(kv_shape, 3, context);
  double worst = 0;
  for (const char* method : {"dense", "a_shape"}) {
    Problem problem;
    problem.q = q.view;
    problem.k = k.view;
    const OptionValues options = std::string(method) == "a_shape" ? OptionValues{{"init", int64_t{16}}, {"local", int64_t{100}}} : OptionValues{};
    const Plan plan = plan_with(method, problem, options, context).plan;
    const Tensor ours(context.memory, kDtypeOf<T>, q_shape), theirs(context.memory, kDtypeOf<T>, q_shape);
    const Ran ran = attend_forward({.q = q.view, .k = k.view, .v = v.view, .out = ours.view, .plan = plan}, context);
    ran_on = ran.backend + " " + ran.target;
    with_backend("reference", [&] { attend_forward({.q = q.view, .k = k.view, .v = v.view, .out = theirs.view, .plan = plan}, context); });
    for (int64_t i = 0; i < q_shape.numel(); ++i) {
      const double difference = std::abs(static_cast<double>(static_cast<float>(ours.view.data<T>()[i])) -
                                         static_cast<double>(static_cast<float>(theirs.view.data<T>()[i])));
      worst = std::isnan(difference) ? INFINITY : std::max(worst, difference);
    }
  }
  return worst;
}

/// Outputs are means of values in [-1, 1): f32 sums of 333 of them are good to some 1e-6; bf16 rounds probabilities and outputs to 2^-9.
template <class T>
Finding self_test(const char* name, double bound, Context& context) {
  return finding(name, [&]() -> Finding {
    std::string ran_on;
    const double worst = worst_difference<T>(context, ran_on);
    const std::string text =
        ran_on + " differs from the f64 reference by at most " + number("%.1e", worst) + " (bound " + number("%.0e", bound) + ")";
    return {worst <= bound ? Outcome::ok : Outcome::fail, name, text};
  });
}

Finding check_target() {
  return finding("target", []() -> Finding {
    std::string others;
    for (const machine::cpu::Target target : machine::cpu::available_targets()) others += (others.empty() ? "" : ", ") + std::string(name(target));
    return {Outcome::ok, "target",
            std::string(name(machine::cpu::current_target())) + " on " + machine::cpu::processor_name() + " (can run " + others + ")"};
  });
}

Finding check_model(const std::string& directory, Context& context) {
  return finding("model", [&]() -> Finding {
    if (!std::filesystem::exists(directory + "/config.json")) {
      return {Outcome::note, "model", "no reference LM in " + directory + "; --model DIR says where it is"};
    }
    const Model model = Model::load(directory, context);
    const MappedFile document(directory + "/documents/postgresql-wal.txt");
    check(document.bytes().size() >= static_cast<size_t>(kCheckBytes), Error::Kind::io, document.path(), " has fewer than ", kCheckBytes, " bytes");
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < kCheckBytes; ++i) tokens.push_back(static_cast<int32_t>(document.bytes()[static_cast<size_t>(i)]));
    const auto cache = model.make_cache(kCheckBytes, context);
    ForwardOptions options;
    options.has_bits = true;
    const ForwardResult result = model.forward(tokens, *cache, options, context);
    const double bits = result.bits / static_cast<double>(result.predictions);
    const bool is_right = std::abs(bits - kCheckBits) <= kCheckTolerance;
    return {is_right ? Outcome::ok : Outcome::fail, "model",
            "reference LM reads " + std::to_string(kCheckBytes) + " bytes at " + number("%.5f", bits) + " bits per byte (" +
                number("%.5f", kCheckBits) + " expected)"};
  });
}

/// Whether compare --device cuda can run here, and why not.
std::vector<Finding> check_gpu() {
  const Device device{Device::Type::cuda, 0};
  if (const auto reason = machine::refusal_of(device)) return {{Outcome::note, "GPU", *reason + " (optional)"}};
  std::vector<Finding> findings = {finding("GPU", [&]() -> Finding { return {Outcome::ok, "GPU", machine::name_of_gpu(device.index)}; })};
  const std::string reason = infer::cuda::why_no_queues(device);
  findings.push_back(reason.empty()
                         ? Finding{Outcome::ok, "cuBLASLt", infer::cuda::product_library()}
                         : Finding{Outcome::note, "cuBLASLt", reason + " (optional: --device cuda with a model needs it, --qkv does not)"});
  return findings;
}

void run_doctor(const std::string& model, int threads) {
  std::vector<Finding> findings;
  findings.push_back(check_target());
  Context context = make_context(threads);
  Context alone = context;  // the environment is changed for a moment: nobody else may read it then
  alone.executor = serial_executor();
  findings.push_back(self_test<float>("kernels, f32", 1e-5, alone));
  findings.push_back(self_test<bf16>("kernels, bf16", 2e-2, alone));
  findings.push_back(
      {Outcome::ok, "threads", std::to_string(context.concurrency()) + " (--threads, TILEWISE_THREADS, else affinity and cgroup quota)"});
  const dnnl_version_t* const onednn = dnnl_version();
  findings.push_back(
      {Outcome::ok, "oneDNN", std::to_string(onednn->major) + "." + std::to_string(onednn->minor) + "." + std::to_string(onednn->patch)});
  findings.push_back(check_model(model, context));
  for (Finding& one : check_gpu()) findings.push_back(std::move(one));
  const std::string nvcc = found_in_path({"nvcc"});
  findings.push_back({nvcc.empty() ? Outcome::note : Outcome::ok, "nvcc", nvcc.empty() ? "not found: no CUDA builds here (optional)" : nvcc});
  const std::string browser = found_in_path({"chromium", "chromium-browser", "google-chrome", "firefox"});
  findings.push_back(
      {browser.empty() ? Outcome::note : Outcome::ok, "browser", browser.empty() ? "not found: reports open elsewhere (optional)" : browser});

  bool has_failed = false;
  for (const Finding& one : findings) {
    const bool is_fail = one.outcome == Outcome::fail;
    has_failed |= is_fail;
    const std::string word = is_fail ? "fail" : one.outcome == Outcome::ok ? "ok  " : "note";
    const Style style = is_fail ? Style::bad : one.outcome == Outcome::ok ? Style::good : Style::dim;
    std::string text = one.text;
    std::replace(text.begin(), text.end(), '\n', ' ');
    std::cout << styled(word, style) << "  " << one.name << ": " << text << "\n";
  }
  if (has_failed) throw ExitWith{1};
}

}  // namespace

void add_doctor_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("doctor", "check that what is installed here works and computes what it should");
  struct Options {
    std::string model = "models/reference-lm";
    int threads = 0;
  };
  const auto options = std::make_shared<Options>();
  command->add_option("--model", options->model, "folder of the reference LM (models/reference-lm)");
  add_threads_option(*command, options->threads);
  command->callback([options] { run_doctor(options->model, options->threads); });
}

}  // namespace tilewise::app
