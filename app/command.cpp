// SPDX-License-Identifier: Apache-2.0
#include "app/command.h"

#include <filesystem>

#include "app/interrupt.h"
#include "tilewise/base/file.h"
#include "tilewise/machine/cpu/context.h"

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
