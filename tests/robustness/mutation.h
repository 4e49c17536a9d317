// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cstdlib>
#include <random>
#include <string>

namespace tilewise::testing {

/// How many damaged files a test reads: TILEWISE_TEST_CASES, or `usual`.
inline int mutations(int usual) {
  const char* text = std::getenv("TILEWISE_TEST_CASES");
  return text == nullptr ? usual : std::max(1, std::atoi(text));
}

/// The bytes with one to four things done to them: bits flipped, bytes set, digits changed, pieces cut out, doubled, moved or appended, an end cut off.
inline std::string mutated(std::string bytes, std::mt19937_64& rng) {
  const auto below = [&](size_t most) { return most == 0 ? size_t{0} : static_cast<size_t>(rng() % most); };
  for (size_t left = 1 + below(4); left > 0 && !bytes.empty(); --left) {
    const size_t at = below(bytes.size()), length = 1 + below(std::min<size_t>(bytes.size() - at, 16));
    switch (below(10)) {
      case 0: bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8))); break;
      case 1: bytes[at] = static_cast<char>(rng()); break;
      case 2: bytes.resize(at); break;
      case 3: bytes.erase(at, length); break;
      case 4: bytes.insert(at, bytes.substr(at, length)); break;
      case 5: bytes += bytes.substr(at, length); break;
      case 6: bytes.replace(at, length, length, "\x00\xff\x7f\x80{}[]\",:-"[below(12)]); break;
      case 7:
      case 8: {  // a digit of the text, so that numbers change while it stays well formed
        const size_t digit = bytes.find_first_of("0123456789", at);
        if (digit != std::string::npos) bytes[digit] = static_cast<char>('0' + below(10));
        break;
      }
      default: std::swap(bytes[at], bytes[below(bytes.size())]);
    }
  }
  return bytes;
}

}  // namespace tilewise::testing
