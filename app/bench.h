// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <CLI/CLI.hpp>

namespace tilewise::app {

/// `tilewise bench`: peak loops, attention and selection on this machine, against the project's bars.
void add_bench_command(CLI::App& app);

}  // namespace tilewise::app
