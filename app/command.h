// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <CLI/CLI.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "tilewise/base/context.h"

namespace tilewise::app {

/// The command line itself is wrong: exit code 2.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
/// Ends the program quietly with a code of its own: what had to be said has been printed.
struct ExitWith {
  int code;
};

/// As main got it, quoted for a shell.
void keep_command(int argc, char** argv);
const std::string& command_line();
std::string quote_for_shell(std::string_view argument);

/// A pool of `threads` (0: the default) that Ctrl-C stops. Errors: UsageError where the number or an environment variable cannot be used.
Context make_context(int threads);
/// "cpu", "cuda" (GPU 0) or "cuda:N". Errors: UsageError.
Device parse_device(const std::string& text);
/// make_context with its work on a device. Errors: device, where it cannot be used, with the reason.
Context make_context(int threads, Device device);
/// Adds --threads.
void add_threads_option(CLI::App& app, int& threads);

/// Runs `parse` and turns an Error of kind value (an unknown method, an option out of its range) into a UsageError.
template <class Parse>
decltype(auto) usage(Parse&& parse) {
  try {
    return parse();
  } catch (const Error& error) {
    if (error.kind() == Error::Kind::value) throw UsageError(error.what());
    throw;
  }
}

/// Whether two paths name one file, however they are written. Terminals, pipes and /dev/null may be named twice.
bool is_same_file(const std::string& a, const std::string& b);
/// Writes a whole file beside its target and renames it; Ctrl-C waits for it.
void write_whole(const std::string& path, std::string_view text);
/// Throws what write_whole would throw about the path, and leaves nothing there.
void check_writable(const std::string& path);

void add_compare_command(CLI::App& app);
void add_doctor_command(CLI::App& app);
void add_generate_command(CLI::App& app);
void add_methods_command(CLI::App& app);
void add_plan_command(CLI::App& app);
void add_report_command(CLI::App& app);
void add_search_command(CLI::App& app);

}  // namespace tilewise::app
