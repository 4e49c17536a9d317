// SPDX-License-Identifier: Apache-2.0
// docs/methods.md shows the options that the registry has, no others, with their defaults and ranges.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "tilewise/methods/options.h"
#include "tilewise/methods/registry.h"

namespace tilewise {
namespace {

std::string expected_table() {
  std::string text = "| method | option | default | takes | `--tune` tries | what it is |\n|---|---|---|---|---|---|\n";
  for (const MethodInfo& info : methods()) {
    for (const OptionInfo& option : info.options) {
      std::vector<std::string> tried;
      for (const OptionValue& value : option.grid) tried.push_back(method::to_text(value));
      text += "| `" + info.name + "` | `" + option.name + "` | " + method::to_text(option.default_value) + " | " + option.range + " | " +
              (tried.empty() ? "" : method::join(tried)) + " | " + option.help + " |\n";
    }
  }
  return text;
}

TEST(MethodsPage, ShowsTheRegistrysOptions) {
  std::ifstream file("docs/methods.md");
  ASSERT_TRUE(file.good()) << "run from the root of the repository";
  std::stringstream page;
  page << file.rdbuf();
  const std::string text = page.str(), begin = "<!-- begin options -->\n", end = "<!-- end options -->";
  const size_t first = text.find(begin), last = text.find(end);
  ASSERT_NE(first, std::string::npos);
  ASSERT_NE(last, std::string::npos);
  EXPECT_EQ(text.substr(first + begin.size(), last - first - begin.size()), expected_table()) << "paste the expected text between the marks";
  for (const MethodInfo& info : methods()) EXPECT_NE(text.find("## " + info.name + "\n"), std::string::npos) << info.name << " has no section";
}

}  // namespace
}  // namespace tilewise
