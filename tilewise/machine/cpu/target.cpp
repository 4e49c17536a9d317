// SPDX-License-Identifier: Apache-2.0
#include "tilewise/machine/cpu/target.h"

#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "tilewise/base/error.h"

namespace tilewise::machine::cpu {
namespace {

constexpr std::array<std::string_view, kNumTargets> kNames{"portable", "avx2", "avx512", "avx512bf16"};
constexpr std::array kTargets{Target::portable, Target::avx2, Target::avx512, Target::avx512bf16};

#if defined(__x86_64__)
struct Registers {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(uint32_t leaf, uint32_t part) {
  Registers r;
  if (__get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d) == 0) return {};
  return r;
}

bool has(uint32_t bits, int bit) { return ((bits >> bit) & 1u) != 0; }

// Which registers the operating system saves on a context switch (XCR0). Without its consent the instructions fault or lose their values.
uint64_t saved_state() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

Target detect() {
  const Registers one = cpuid(1, 0);
  const bool has_osxsave = has(one.c, 27);
  if (!has_osxsave) return Target::portable;
  const uint64_t saved = saved_state();
  const Registers seven = cpuid(7, 0);
  const bool has_ymm = (saved & 0x6u) == 0x6u;
  if (!has_ymm || !has(one.c, 28) || !has(one.c, 12) || !has(one.c, 29) || !has(seven.b, 5)) return Target::portable;  // AVX, FMA, F16C, AVX2
  const bool has_zmm = (saved & 0xe6u) == 0xe6u;
  if (!has_zmm || !has(seven.b, 16) || !has(seven.b, 17) || !has(seven.b, 30) || !has(seven.b, 31)) return Target::avx2;  // F, DQ, BW, VL
  return has(cpuid(7, 1).a, 5) ? Target::avx512bf16 : Target::avx512;
}
#else
Target detect() { return Target::portable; }
#endif

Target highest() {
  static const Target target = detect();
  return target;
}

std::string names(std::span<const Target> targets) {
  std::string text;
  for (const Target target : targets) text.append(text.empty() ? "" : ", ").append(name(target));
  return text;
}

}  // namespace

std::string_view name(Target target) { return kNames[static_cast<size_t>(target)]; }

std::span<const Target> available_targets() { return {kTargets.data(), static_cast<size_t>(highest()) + 1}; }

Target current_target() {
  const char* const text = std::getenv("TILEWISE_TARGET");
  if (text == nullptr || *text == '\0') return highest();
  for (const Target target : kTargets) {
    if (name(target) != text) continue;
    check(target <= highest(), Error::Kind::unsupported, "TILEWISE_TARGET is ", text,
          ", which this machine cannot run; it can run: ", names(available_targets()), "; unset it to use the highest");
    return target;
  }
  fail(Error::Kind::value, "TILEWISE_TARGET is \"", text, "\", takes one of: ", names(kTargets),
       "; unset it to use the highest that this machine runs");
}

std::string processor_name() {
#if defined(__x86_64__)
  std::array<char, 49> text{};
  for (uint32_t i = 0; i < 3; ++i) {
    const Registers r = cpuid(0x80000002u + i, 0);
    std::memcpy(text.data() + 16 * i, &r, 16);
  }
  std::string name = text.data();
  while (!name.empty() && name.back() == ' ') name.pop_back();
  if (!name.empty()) {
    const uint32_t a = cpuid(1, 0).a;
    const uint32_t family = ((a >> 8) & 15u) + ((a >> 20) & 255u), model = ((a >> 4) & 15u) | ((a >> 12) & 0xf0u);
    return name + " (family " + std::to_string(family) + ", model " + std::to_string(model) + ")";
  }
#endif
  return "unknown";
}

}  // namespace tilewise::machine::cpu
