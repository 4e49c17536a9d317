// SPDX-License-Identifier: Apache-2.0
#include "tests/robustness/bad_call.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <iostream>
#include <regex>
#include <set>

#include "tilewise/base/file.h"

namespace tilewise::testing {
namespace {

void expect_error(const BadCall& bad) {
  SCOPED_TRACE(bad.call);
  try {
    bad.run();
    ADD_FAILURE() << "was accepted";
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_EQ(name(error.kind()), name(bad.kind)) << text;
    EXPECT_FALSE(bad.says.empty());
    for (const std::string& part : bad.says) EXPECT_NE(text.find(part), std::string::npos) << part << " in: " << text;
  }
}

/// What a public header declares with TILEWISE_API: functions outside of classes, and classes.
std::set<std::string> entries_of(const std::filesystem::path& header) {
  const std::string text = read_file(header.string(), 1 << 20);
  std::set<std::string> entries;
  const std::regex entry("TILEWISE_API (?:[^;({]*[ &*])?(\\w+)\\(|(?:class|struct) TILEWISE_API (\\w+)");
  const size_t begin = text.find("TILEWISE_BEGIN_PUBLIC");
  if (begin == std::string::npos) return entries;
  const std::string open = text.substr(begin, text.find("TILEWISE_END_PUBLIC") - begin);
  for (auto it = std::sregex_iterator(open.begin(), open.end(), entry); it != std::sregex_iterator(); ++it)
    entries.insert((*it)[1].matched ? (*it)[1].str() : (*it)[2].str());
  return entries;
}

}  // namespace

void expect_bad_calls(const std::vector<std::pair<std::string, std::vector<BadCall>>>& groups, const std::vector<std::string>& folders,
                      const std::vector<std::string>& cannot_fail, size_t least) {
  std::set<std::string> names, called(cannot_fail.begin(), cannot_fail.end());
  for (const auto& [group, calls] : groups) {
    for (const BadCall& bad : calls) {
      expect_error(bad);
      EXPECT_TRUE(names.insert(bad.call).second) << bad.call << " is listed twice";
      called.insert(bad.call.substr(0, bad.call.find(':')));
    }
    std::cout << "  " << group << ": " << calls.size() << "\n";
  }
  std::cout << "  " << names.size() << " bad calls\n";
  EXPECT_GE(names.size(), least);
  int entries = 0;
  for (const std::string& folder : folders) {
    for (const auto& file : std::filesystem::recursive_directory_iterator("tilewise/" + folder)) {
      if (file.path().extension() != ".h" || file.path().filename() == "api.h") continue;
      for (const std::string& entry : entries_of(file.path())) {
        EXPECT_EQ(called.count(entry), 1U) << entry << " of " << file.path().string() << " has no bad call; add one, or say that it cannot fail";
        ++entries;
      }
    }
  }
  EXPECT_GE(entries, 20) << "are these the headers?";
}

}  // namespace tilewise::testing
