// SPDX-License-Identifier: Apache-2.0
#include "app/command.h"

#include <charconv>
#include <filesystem>

#include "app/interrupt.h"
#include "tilewise/base/file.h"
#include "tilewise/machine/cpu/context.h"
#include "tilewise/machine/device.h"

namespace tilewise::app {
namespace {

std::string& kept() {
  static std::string line;
  return line;
}

}  // namespace

std::string quote_for_shell(std::string_view argument) {
  constexpr std::string_view kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+:,./@%";
  if (!argument.empty() && argument.find_first_not_of(kPlain) == std::string_view::npos) return std::string(argument);
  std::string out = "'";
  for (const char c : argument) {
    if (c == '\'') {
      out += "'\\''";
    } else {
      out += c;
    }
  }
  return out + "'";
}

void keep_command(int argc, char** argv) {
  kept() = "tilewise";
  for (int i = 1; i < argc; ++i) kept() += " " + quote_for_shell(argv[i]);
}

const std::string& command_line() { return kept(); }

Context make_context(int threads) {
  Context context = usage([&] { return cpu_context(threads); });
  context.cancel = interrupt_token();
  return context;
}

Device parse_device(const std::string& text) {
  constexpr std::string_view kCuda = "cuda";
  if (text == "cpu") return {};
  if (text == kCuda) return {Device::Type::cuda, 0};
  Device device{Device::Type::cuda, 0};
  const char* const end = text.data() + text.size();
  if (text.starts_with("cuda:")) {
    const auto [stop, code] = std::from_chars(text.data() + kCuda.size() + 1, end, device.index);
    if (code == std::errc() && stop == end && device.index >= 0) return device;
  }
  throw UsageError("--device " + text + " is no device; takes cpu, cuda, or cuda:N for GPU N, counted from 0");
}

Context make_context(int threads, Device device) {
  const Context context = make_context(threads);
  return device.type == Device::Type::cpu ? context : machine::on_gpu(context, device.index);
}

void add_threads_option(CLI::App& app, int& threads) {
  app.add_option("--threads", threads, "worker threads; 0: TILEWISE_THREADS, else what affinity and cgroup quota leave")->check(CLI::Range(0, 1024));
}

bool is_same_file(const std::string& a, const std::string& b) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (fs::exists(a, error) && !fs::is_regular_file(a, error)) return false;
  if (fs::equivalent(a, b, error)) return true;
  const fs::path first = fs::weakly_canonical(a, error), second = fs::weakly_canonical(b, error);
  return !error && first == second;
}

void write_whole(const std::string& path, std::string_view text) {
  const WritingFiles guard;
  write_file(path, text);
}

void check_writable(const std::string& path) {
  const WritingFiles guard;
  const AtomicFile probe(path);
}

}  // namespace tilewise::app
