// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <iostream>
#include <memory>

#include "app/command.h"
#include "app/report/report.h"
#include "app/table.h"

namespace tilewise::app {
namespace {

struct ReportOptions {
  std::string file, out;
};

void run_report(ReportOptions options) {
  namespace fs = std::filesystem;
  if (options.out.empty()) options.out = fs::path(options.file).replace_extension(".html").string();
  if (is_same_file(options.out, options.file)) throw UsageError("--out " + options.out + " would write over the file that is read; name another");
  const Comparison comparison = read_comparison(options.file);
  check_writable(options.out);
  std::cout << comparison_text(comparison) << std::flush;
  write_whole(options.out, make_report(comparison));
  std::cout << "report: " << fs::absolute(options.out).string() << "\n";
}

}  // namespace

void add_report_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("report", "the table and the HTML report of figures that compare --json wrote, here or from Python");
  const auto options = std::make_shared<ReportOptions>();
  command->add_option("file", options->file, "a file of compare --json (docs/formats/compare.md)")->required();
  command->add_option("--out", options->out, "write one HTML file that needs no network (by default beside FILE, with the ending .html)");
  command->callback([options] { run_report(*options); });
}

}  // namespace tilewise::app
