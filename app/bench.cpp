// SPDX-License-Identifier: Apache-2.0
#include "app/bench.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "app/command.h"
#include "app/terminal.h"
#include "bench/attend/cpu/decode_rows.h"
#include "bench/attend/cpu/rows.h"
#include "tilewise/base/file.h"
#include "tilewise/base/version.h"
#include "tilewise/infer/model.h"
#include "tilewise/infer/timing.h"
#include "tilewise/machine/cpu/target.h"

namespace tilewise::app {
namespace {

using machine::cpu::Target;

struct BenchOptions {
  int threads = 0, rounds = 5, heads = 8;
  int64_t length = 8192;
  std::vector<std::string> targets;
  std::vector<int> head_dims{64, 128};
  std::string model = "models/reference-lm", rows = "all";
  bool has_bars = false, is_json = false;
};

std::string formatted(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + '"';
}

const char* figure_name(bench::Row::Figure figure) {
  switch (figure) {
    case bench::Row::Figure::of_peak: return "of_peak";
    case bench::Row::Figure::of_rate: return "of_dense_rate";
    case bench::Row::Figure::of_time: return "of_dense_time";
    case bench::Row::Figure::of_reading: return "of_reading";
    case bench::Row::Figure::of_contiguous: return "of_contiguous";
    case bench::Row::Figure::none: return "none";
  }
  return "";
}

std::string dtype_of(const bench::Group& group) { return group.instruction == machine::cpu::Instruction::dot_bf16 ? "bf16" : "f32"; }

std::string peak_json(const bench::Group& group, int workers) {
  const machine::cpu::Peak& peak = group.peak;
  std::ostringstream out;
  out << "{\"peak\":" << quoted(dtype_of(group) == "bf16" ? "dot_bf16" : "fma_f32")
      << ",\"target\":" << quoted(std::string(machine::cpu::name(group.target))) << ",\"threads\":" << workers
      << ",\"gflops\":" << formatted("%.1f", peak.gflops) << ",\"accumulators\":" << peak.accumulators
      << ",\"clock_ghz\":" << formatted("%.3f", peak.clock_ghz) << ",\"flop_per_cycle\":" << formatted("%.1f", peak.flop_per_cycle)
      << ",\"expected_flop_per_cycle\":" << formatted("%.0f", peak.expected) << ",\"is_sound\":" << (peak.is_sound(workers) ? "true" : "false")
      << "}";
  return out.str();
}

std::string row_json(const bench::Group& group, const bench::Row& row, int workers) {
  std::ostringstream out;
  out << "{\"row\":" << quoted(row.name) << ",\"target\":" << quoted(std::string(machine::cpu::name(group.target)))
      << ",\"dtype\":" << quoted(dtype_of(group)) << ",\"shape\":" << quoted(row.shape) << ",\"threads\":" << workers
      << ",\"density\":" << formatted("%.4f", row.density) << ",\"median_ms\":" << formatted("%.3f", row.times.median())
      << ",\"p10_ms\":" << formatted("%.3f", row.times.at(0.1)) << ",\"min_ms\":" << formatted("%.3f", row.times.minimum());
  if (row.flop > 0) {
    out << ",\"effective_gflops\":" << formatted("%.1f", row.gflops())
        << ",\"dense_equivalent_gflops\":" << formatted("%.1f", row.gflops() / (row.density > 0 ? row.density : 1));
  }
  if (row.bytes > 0) out << ",\"gbytes_per_s\":" << formatted("%.2f", row.gbytes());
  out << ",\"figure\":" << quoted(figure_name(row.figure));
  if (!group.has_bar(row)) return out.str() + "}";
  out << ",\"value\":" << formatted("%.4f", group.figure(row)) << ",\"bar\":" << formatted("%.2f", row.bar)
      << ",\"pass\":" << (group.passes(row) ? "true" : "false") << "}";
  return out.str();
}

void print_group(const bench::Group& group, int workers) {
  const machine::cpu::Peak& peak = group.peak;
  std::printf("%s\n", styled(std::string(machine::cpu::name(group.target)) + " " + dtype_of(group), Style::bold).c_str());
  std::printf("  peak loop %.0f GFLOP/s with %d accumulators, clock %.2f GHz: %.1f FLOP per cycle and core of %.0f expected%s\n", peak.gflops,
              peak.accumulators, peak.clock_ghz, peak.flop_per_cycle, peak.expected,
              peak.is_sound(workers) ? "" : styled(" (below 97 %: the machine is busy, figures are not to be quoted)", Style::bad).c_str());
  for (const bench::Row& row : group.rows) {
    const bool passes = group.passes(row);
    const std::string rate = row.flop > 0    ? formatted("%7.1f GFLOP/s", row.gflops())
                             : row.bytes > 0 ? formatted("%7.1f GB/s   ", row.gbytes())
                                             : std::string(15, ' ');
    std::printf("  %-22s %-20s min %9.2f ms  median %9.2f ms  %s", row.name.c_str(), row.shape.c_str(), row.times.minimum(), row.times.median(),
                rate.c_str());
    if (!group.has_bar(row)) {
      std::printf("\n");
      continue;
    }
    std::printf("  %5.3f %-13s %s %.2f  %s\n", group.figure(row), figure_name(row.figure),
                row.figure == bench::Row::Figure::of_time ? "<=" : ">=", row.bar,
                styled(passes ? "pass" : "short", passes ? Style::good : Style::bad).c_str());
  }
  std::fflush(stdout);
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[16];
  std::strftime(text, sizeof text, "%Y-%m-%d", &utc);
  return text;
}

// The targets and dtypes that bars are stated for, and that this machine has.
std::vector<std::pair<Target, Dtype>> kinds_of(const BenchOptions& options) {
  std::vector<std::pair<Target, Dtype>> kinds;
  for (const Target target : machine::cpu::available_targets()) {
    const std::string name(machine::cpu::name(target));
    if (options.targets.empty() ? target == Target::portable
                                : std::find(options.targets.begin(), options.targets.end(), name) == options.targets.end())
      continue;
    kinds.emplace_back(target, target == Target::avx512bf16 ? Dtype::bf16 : Dtype::f32);
  }
  if (kinds.empty()) throw UsageError("bench: this machine has none of the targets asked for; doctor lists what it has");
  return kinds;
}

// TILEWISE_TARGET while a group runs, and what it was before.
class Forced {
 public:
  explicit Forced(Target target) {
    if (const char* const text = std::getenv("TILEWISE_TARGET")) before_ = text;
    setenv("TILEWISE_TARGET", std::string(machine::cpu::name(target)).c_str(), 1);
  }
  Forced(const Forced&) = delete;
  Forced& operator=(const Forced&) = delete;
  ~Forced() { before_.empty() ? unsetenv("TILEWISE_TARGET") : setenv("TILEWISE_TARGET", before_.c_str(), 1); }

 private:
  std::string before_;
};

// A whole dense prefill of 16,384 bytes: the FLOP that attention and linear layers need, over wall time.
bench::Row model_row(const std::string& directory, Context& context) {
  constexpr size_t kBytes = 16384;
  const std::string text = read_file(directory + "/documents/postgresql-wal.txt", size_t{1} << 30);
  check(text.size() >= kBytes, Error::Kind::value, "bench: ", directory, "/documents/postgresql-wal.txt has ", text.size(), " bytes, takes ", kBytes);
  auto tokens = std::make_shared<std::vector<int32_t>>();
  for (size_t i = 0; i < kBytes; ++i) tokens->push_back(static_cast<unsigned char>(text[i]));
  const auto model = std::make_shared<Model>(Model::load(directory, context));
  const auto last = std::make_shared<ModelTiming>(time_model(*model, *tokens, 1, context));
  bench::Row row;
  row.name = "model prefill";
  row.shape = "16384 bytes";
  row.flop = last->flops.total();
  row.bar = 0.75;
  row.run = [model, tokens, last, &context] { *last = time_model(*model, *tokens, 1, context); };
  row.fault = [last]() -> std::string {
    constexpr double kCard = 0.99407;  // the model card's bits per byte
    return std::fabs(last->bits_per_token - kCard) <= 1e-4 ? "" : "bits per byte " + std::to_string(last->bits_per_token) + ", the card says 0.99407";
  };
  return row;
}

void run_bench(const BenchOptions& options) {
  Context context = make_context(options.threads);
  const int workers = context.concurrency();
  const std::string folder = "bench/results";
  if (options.has_bars && !std::filesystem::is_directory(folder)) {
    throw UsageError("bench: --bars writes to " + folder + ", which is not here; run it from the root of the repository");
  }
  std::vector<std::string> lines{"{\"schema\":1,\"version\":" + quoted(std::string(version())) + ",\"commit\":" + quoted(std::string(commit())) +
                                 ",\"device\":" + quoted(machine::cpu::processor_name()) + ",\"threads\":" + std::to_string(workers) +
                                 ",\"date\":" + quoted(today()) + ",\"command\":" + quoted(command_line()) + "}"};
  if (!options.is_json) std::printf("%s, %d threads, commit %s\n", machine::cpu::processor_name().c_str(), workers, std::string(commit()).c_str());
  int passed = 0, all = 0;
  const auto kinds = kinds_of(options);
  // The model runs once, under the fastest f32 target.
  const auto model_kind = std::find_if(kinds.rbegin(), kinds.rend(), [](const auto& kind) { return kind.second == Dtype::f32; });
  const bool has_attention = options.rows != "decode", has_decode = options.rows != "attention";
  const bool has_model = has_attention && !options.model.empty() && model_kind != kinds.rend();
  for (const auto& [target, dtype] : kinds) {
    const Forced forced(target);
    for (const int head_dim : options.head_dims) {
      bench::Group group = bench::empty_group(target, dtype);
      const bench::Shapes shapes{.heads = options.heads, .length = options.length, .long_length = 2 * options.length};
      if (has_attention) bench::add_attention_rows(group, dtype, head_dim, shapes, context);
      if (has_decode) bench::add_decode_rows(group, dtype, head_dim, shapes.long_length, context);
      if (has_model && target == model_kind->first && dtype == Dtype::f32 && head_dim == options.head_dims.front()) {
        group.rows.push_back(model_row(options.model, context));
      }
      ProgressLine progress;
      bench::run(group, options.rounds, context,
                 [&](const std::string& text) { progress.show(std::string(machine::cpu::name(target)) + " " + text); });
      progress.clear();
      lines.push_back(peak_json(group, workers));
      for (const bench::Row& row : group.rows) {
        lines.push_back(row_json(group, row, workers));
        passed += group.has_bar(row) && group.passes(row) ? 1 : 0;
        all += group.has_bar(row) ? 1 : 0;
      }
      if (!options.is_json) print_group(group, workers);
    }
  }
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  if (options.is_json) std::fputs(text.c_str(), stdout);
  if (!options.is_json) std::printf("%d of %d bars pass\n", passed, all);
  if (options.has_bars) {
    const std::string path = folder + "/" + today() + "-cpu-" + std::string(commit()) + ".json";
    write_whole(path, text);
    std::fprintf(stderr, "written: %s\n", path.c_str());
  }
}

}  // namespace

void add_bench_command(CLI::App& app) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App* const command = app.add_subcommand("bench", "time attention, decode and selection against this machine's peak");
  add_threads_option(*command, options->threads);
  command->add_option("--rounds", options->rounds, "how often every row is timed, interleaved with the peak loop")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--heads", options->heads, "heads of q, k and v; decode rows have 8 on 2")->check(CLI::Range(1, 1024))->capture_default_str();
  command->add_option("--length", options->length, "tokens; causal, selection and decode rows take twice as many")
      ->check(CLI::Range(int64_t{256}, int64_t{1} << 20))
      ->capture_default_str();
  command->add_option("--targets", options->targets, "portable, avx2, avx512, avx512bf16; default: all above portable")
      ->delimiter(',')
      ->check(CLI::IsMember({"portable", "avx2", "avx512", "avx512bf16"}));
  command->add_option("--head-dims", options->head_dims, "channels")
      ->delimiter(',')
      ->check(CLI::IsMember({32, 64, 96, 128, 256}))
      ->capture_default_str();
  command->add_option("--model", options->model, "directory of the reference model for the prefill row; \"\": leave the row out")
      ->capture_default_str();
  command->add_option("--rows", options->rows, "which rows: all, attention (with selection and the model), or decode")
      ->check(CLI::IsMember({"all", "attention", "decode"}))
      ->capture_default_str();
  command->add_flag("--bars", options->has_bars, "write bench/results/<date>-cpu-<commit>.json");
  command->add_flag("--json", options->is_json, "one JSON line a row, no table");
  command->callback([options] { run_bench(*options); });
}

}  // namespace tilewise::app
