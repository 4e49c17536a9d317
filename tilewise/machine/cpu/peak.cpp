// SPDX-License-Identifier: Apache-2.0
#include "tilewise/machine/cpu/peak.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>

#include "tilewise/machine/cpu/peak_table.h"

namespace tilewise::machine::cpu {
namespace {

#if defined(__x86_64__)
constexpr PerTarget<PeakTable> kTables{{&portable::peak_table, &avx2::peak_table, &avx512::peak_table, &avx512bf16::peak_table}};
#else
constexpr PerTarget<PeakTable> kTables{{&portable::peak_table, nullptr, nullptr, nullptr}};
#endif

constexpr int kDepth = 32;  // as in peak-inl.h

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// FLOP per cycle and core that a processor is known for; 0: not known here.
double known_flop_per_cycle(Target target, Instruction instruction) {
  const std::string name = processor_name();
  const bool is_wide = target == Target::avx512 || target == Target::avx512bf16;
  if (target == Target::portable) return 0;
  if (name.find("family 25") != std::string::npos) return instruction == Instruction::dot_bf16 ? 64 : 32;  // Zen 3, Zen 4: 256-bit units
  if (name.find("family 26") != std::string::npos)
    return instruction == Instruction::dot_bf16 ? 128 : is_wide ? 64 : 32;  // Zen 5, server: 512-bit units
  return 0;
}

}  // namespace

double measure_clock_ghz() {
  double best = 0;
  for (int trial = 0; trial < 5; ++trial) {
    constexpr int64_t kRounds = 20'000;
    uint64_t x = 1;
    const uint64_t step = static_cast<uint64_t>(trial) + 3;
    const double start = now();
    for (int64_t i = 0; i < kRounds; ++i) {
#if defined(__x86_64__)
      // Register operands: some processors fold additions of constants.
      __asm__ volatile(".rept 64\n\tadd %1, %0\n\t.endr" : "+r"(x) : "r"(step));
#else
      for (int j = 0; j < 64; ++j) __asm__ volatile("" : "+r"(x = x + step));
#endif
    }
    best = std::max(best, 64.0 * kRounds / (now() - start) * 1e-9);
  }
  return best;
}

bool has_instruction(Target target, Instruction instruction) {
  return target <= available_targets().back() && (instruction == Instruction::fma_f32 || kTables[target].dot_bf16 != nullptr);
}

Peak measure_peak(Target target, Instruction instruction, double seconds, Context& context) {
  check(has_instruction(target, instruction), Error::Kind::unsupported, "measure_peak: target ", name(target), " cannot run this instruction here");
  const PeakTable& table = kTables[target];
  const auto loop = instruction == Instruction::fma_f32 ? table.fma_f32 : table.dot_bf16;
  const double flop = table.width * (instruction == Instruction::fma_f32 ? 2.0 : 4.0);
  const int workers = context.concurrency();
  Peak peak;
  peak.clock_ghz = measure_clock_ghz();
  constexpr std::array kAccumulators{6, 8, 10, 12, 14, 16};
  constexpr int kTrials = 4;
  for (const int accumulators : kAccumulators) {
    // About 100 GFLOP/s a core is near enough to choose a length.
    const auto rounds = static_cast<int64_t>(std::max(1.0, seconds / (kTrials * kAccumulators.size()) * 1e11 / (flop * accumulators * kDepth)));
    for (int trial = 0; trial < kTrials; ++trial) {
      std::atomic<float> sink{0};
      const double start = now();
      context.executor->run(workers, [&](int64_t, int) { sink = loop(accumulators, rounds); });
      const double gflops = workers * flop * accumulators * kDepth * static_cast<double>(rounds) / (now() - start) * 1e-9;
      if (gflops > peak.gflops) {
        peak.gflops = gflops;
        peak.accumulators = accumulators;
      }
    }
  }
  peak.clock_ghz = std::max(peak.clock_ghz, measure_clock_ghz());
  peak.flop_per_cycle = peak.gflops / workers / peak.clock_ghz;
  const double known = known_flop_per_cycle(target, instruction);
  peak.expected = known != 0 ? known : std::exp2(std::round(std::log2(peak.flop_per_cycle)));
  return peak;
}

float sum(Target target, const float* data, int64_t count) {
  check(target <= available_targets().back(), Error::Kind::unsupported, "sum: target ", name(target), " cannot run here");
  return kTables[target].sum(data, count);
}

}  // namespace tilewise::machine::cpu
