// SPDX-License-Identifier: Apache-2.0
#include "app/report/report.h"

#include <unistd.h>

#include <nlohmann/json.hpp>
#include <regex>

#include "tests/app/process.h"
#include "tests/app/synthetic.h"
#include "tilewise/base/file.h"

namespace tilewise::app {
namespace {

std::string browser() {
  for (const char* name : {"chromium", "chromium-browser", "google-chrome"}) {
    std::string path = std::getenv("PATH") == nullptr ? "" : std::getenv("PATH");
    while (!path.empty()) {
      const size_t colon = std::min(path.find(':'), path.size());
      const std::string file = path.substr(0, colon) + "/" + name;
      path.erase(0, colon + 1);
      if (::access(file.c_str(), X_OK) == 0) return file;
    }
  }
  return "";
}

/// The page after its script ran, and what the browser's console said.
Ended render(const std::string& program, const std::string& page, int width) {
  const TemporaryFolder profile;
  return Process({program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
                  "--user-data-dir=" + profile.path(), "--enable-logging=stderr", "--log-level=0", "--window-size=" + std::to_string(width) + ",2000",
                  "--dump-dom", "file://" + page})
      .wait();
}

TEST(Report, EscapesForHtmlAndForScripts) {
  EXPECT_EQ(escape_html("<a b=\"c\" d='e'>&"), "&lt;a b=&quot;c&quot; d=&#39;e&#39;&gt;&amp;");
  EXPECT_EQ(escape_html("\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80"), "\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80");
  EXPECT_EQ(escape_html(std::string("a\xff\xc3(\xe2\x82") + '\0'), "a?"
                                                                   "?(?"
                                                                   "?"
                                                                   "?");
  const std::string json = nlohmann::json(std::string("</script><!-- & \xe2\x80\xa8 \xe2\x80\xa9 \xc3\xa4")).dump();
  const std::string escaped = escape_script_json(json);
  EXPECT_EQ(escaped.find_first_of("<>&"), std::string::npos) << escaped;
  EXPECT_EQ(escaped.find("\xe2\x80\xa8"), std::string::npos);
  EXPECT_EQ(nlohmann::json::parse(escaped), nlohmann::json::parse(json));
}

TEST(Report, HoldsNothingThatNeedsANetworkOrBreaksOut) {
  const Comparison comparison = synthetic_comparison(kHostile);
  const std::string page = make_report(comparison);
  // The only addresses are namespaces and the empty icon.
  const std::regex address(R"((src|href)\s*=\s*(?!["']?(#|data:,))|@import|url\()");
  EXPECT_FALSE(std::regex_search(page, address));
  EXPECT_EQ(page.find("<script>document.title"), std::string::npos);
  size_t scripts = 0;
  for (size_t at = page.find("</script"); at != std::string::npos; at = page.find("</script", at + 1)) ++scripts;
  EXPECT_EQ(scripts, 2u) << "the data and the program";
  const size_t begin = page.find("id=\"data\">") + 10;
  const auto data = nlohmann::json::parse(page.substr(begin, page.find("</script", begin) - begin));
  EXPECT_EQ(data, nlohmann::json::parse(to_json(comparison)));
}

TEST(Report, RendersWithoutAWordOnTheConsole) {
  const std::string program = browser();
  if (program.empty()) GTEST_SKIP() << "no browser: neither chromium nor google-chrome is in PATH";
  TemporaryFolder folder;
  Comparison empty;  // no method at all, no needles, no text
  const std::pair<std::string, Comparison> pages[] = {
      {"plain", synthetic_comparison("reference-lm")}, {"hostile", synthetic_comparison(kHostile)}, {"empty", empty}};
  for (const auto& [name, comparison] : pages) {
    SCOPED_TRACE(name);
    write_file(folder.file(name + ".html"), make_report(comparison));
    for (const int width : name == "plain" ? std::vector<int>{1280, 390} : std::vector<int>{1280}) {
      const Ended ended = render(program, folder.file(name + ".html"), width);
      ASSERT_EQ(ended.code, 0) << ended.err;
      EXPECT_EQ(ended.err.find("CONSOLE"), std::string::npos) << ended.err;
      EXPECT_NE(ended.out.find("data-ready=\"yes\""), std::string::npos) << "the script did not run to its end";
      EXPECT_EQ(ended.out.find("<title>broken"), std::string::npos);
    }
  }
  const Ended ended = render(program, folder.file("plain.html"), 1280);
  for (const char* part : {"head 5: density", "+0.0034", "10/10", "4.07", "refused: xattention", "<svg", "aria-label=\"Missed mass"}) {
    EXPECT_NE(ended.out.find(part), std::string::npos) << part;
  }
}

}  // namespace
}  // namespace tilewise::app
