// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "app/bench.h"
#include "app/command.h"
#include "app/interrupt.h"
#include "tilewise/base/version.h"

namespace tilewise::app {
namespace {

int complain(std::string text, int code, bool may_have_lines = false) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  if (!may_have_lines) std::replace(text.begin(), text.end(), '\n', ' ');
  std::fprintf(stderr, "tilewise: %s\n", text.c_str());
  return code;
}

int run(int argc, char** argv) {
  keep_command(argc, argv);
  install_interrupt();
  CLI::App app("Runs any block-sparse attention from a plan, and tells what it cost.", "tilewise");
  app.require_subcommand(1);
  app.set_version_flag("--version", "tilewise " + std::string(version()) + " (" + std::string(commit()) + ")");
  add_compare_command(app);
  add_generate_command(app);
  add_methods_command(app);
  add_plan_command(app);
  add_report_command(app);
  add_search_command(app);
  add_doctor_command(app);
  add_bench_command(app);
  try {
    app.parse(argc, argv);
    if (std::fflush(stdout) != 0) return complain("cannot write to standard output", 1);
    return 0;
  } catch (const CLI::Success& success) {  // --help, --version
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    const CLI::App* command = &app;
    std::string name = app.get_name();
    while (!command->get_subcommands().empty()) {
      command = command->get_subcommands().front();
      name += " " + command->get_name();
    }
    return complain(std::string(error.what()) + "; see " + name + " --help", 2);
  } catch (const UsageError& error) {
    return complain(error.what(), 2);
  } catch (const ExitWith& exit) {
    std::fflush(stdout);
    return exit.code;
  } catch (const Error& error) {
    if (error.kind() == Error::Kind::cancelled) {
      say_interrupted();
      return kInterruptedExit;
    }
    // A refusal has one more line per backend.
    return complain(error.what(), 1, error.kind() == Error::Kind::unsupported);
  } catch (const std::bad_alloc&) {
    return complain("out of memory", 1);
  } catch (const std::exception& error) {
    return complain(error.what(), 1);
  }
}

}  // namespace
}  // namespace tilewise::app

int main(int argc, char** argv) { return tilewise::app::run(argc, argv); }
