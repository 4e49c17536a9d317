// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tilewise/machine/cpu/peak.h"

// Times rows that are held against one peak: in every round the peak loop runs first, then each row once, so that all see the same weather.
namespace tilewise::bench {

inline double now_ms() { return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Times {
  std::vector<double> ms;  // one a round

  double at(double share) const {
    std::vector<double> sorted = ms;
    std::sort(sorted.begin(), sorted.end());
    return sorted.empty() ? 0 : sorted[static_cast<size_t>(share * static_cast<double>(sorted.size() - 1) + 0.5)];
  }
  double minimum() const { return at(0); }
  double median() const { return at(0.5); }
};

/// One thing to be timed. Its figure, which the bar is about, comes from its times and those of the row `against`.
struct Row {
  enum class Figure : uint8_t {
    of_peak,   // FLOP per second over the peak loop's; bar: at least
    of_rate,   // FLOP per second over that of `against`; bar: at least
    of_time,   // time over that of `against`; bar: at most
    of_reading,     // bytes per second over those of `against`, which does nothing but read them; bar: at least
    of_contiguous,  // the same over those of `against`, which reads them in one piece
    none,           // what others are held against: no bar
  };

  std::string name, shape;
  double flop = 0, bytes = 0;  // one of them: what the row is about
  double density = 1;
  Figure figure = Figure::of_peak;
  int against = -1;  // row of the group
  double bar = 0;
  int repeats = 1;       // runs in a round: more where one takes a few milliseconds
  std::function<void()> run = {};
  std::function<std::string()> fault = {};  // what is wrong with the output after run(); empty: nothing
  Times times = {};

  double gflops() const { return flop / times.minimum() * 1e-6; }
  double gbytes() const { return bytes / times.minimum() * 1e-6; }
};

struct Group {
  machine::cpu::Target target;
  machine::cpu::Instruction instruction;
  std::vector<Row> rows;
  machine::cpu::Peak peak = {};

  double figure(const Row& row) const {
    switch (row.figure) {
      case Row::Figure::of_peak: return row.gflops() / peak.gflops;
      case Row::Figure::of_rate: return row.gflops() / rows[static_cast<size_t>(row.against)].gflops();
      case Row::Figure::of_time: return row.times.minimum() / rows[static_cast<size_t>(row.against)].times.minimum();
      case Row::Figure::of_reading:
      case Row::Figure::of_contiguous: return row.gbytes() / rows[static_cast<size_t>(row.against)].gbytes();
      case Row::Figure::none: break;
    }
    return 0;
  }
  bool has_bar(const Row& row) const { return row.figure != Row::Figure::none; }
  bool passes(const Row& row) const { return row.figure == Row::Figure::of_time ? figure(row) <= row.bar : figure(row) >= row.bar; }
};

/// Checks each row's output once, then times all of them. Errors: value (a wrong output); cancelled.
inline void run(Group& group, int rounds, Context& context, const std::function<void(const std::string&)>& progress) {
  for (Row& row : group.rows) {
    progress(row.name + " " + row.shape + ": checking");
    context.check_cancel();
    row.run();
    if (!row.fault) continue;
    const std::string fault = row.fault();
    check(fault.empty(), Error::Kind::value, "bench: ", row.name, " ", row.shape, " gives a wrong result: ", fault);
  }
  for (int round = 0; round < rounds; ++round) {
    const machine::cpu::Peak peak = machine::cpu::measure_peak(group.target, group.instruction, 0.2, context);
    const double clock = std::max(group.peak.clock_ghz, peak.clock_ghz);
    if (peak.gflops > group.peak.gflops) group.peak = peak;
    group.peak.clock_ghz = clock;
    group.peak.flop_per_cycle = group.peak.gflops / context.concurrency() / clock;
    const auto all = static_cast<int>(group.rows.size());
    int repeats = 0;
    for (const Row& row : group.rows) repeats = std::max(repeats, row.repeats);
    for (int i = 0; i < repeats * all; ++i) {  // all rows in turn, then those again that repeat
      Row& row = group.rows[static_cast<size_t>(i % all)];
      if (i / all >= row.repeats) continue;
      progress(row.name + " " + row.shape + ": round " + std::to_string(round + 1) + " of " + std::to_string(rounds));
      context.check_cancel();
      const double start = now_ms();
      row.run();
      row.times.ms.push_back(now_ms() - start);
    }
  }
}

}  // namespace tilewise::bench
