// SPDX-License-Identifier: Apache-2.0
#include "app/report/report.h"

#include <nlohmann/json.hpp>
#include <regex>

#include "tests/app/browser.h"
#include "tests/app/process.h"
#include "tests/app/synthetic.h"
#include "tilewise/base/file.h"

namespace tilewise::app {
namespace {

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++found;
  return found;
}

/// The part of a page from `begin` to the next `end`.
std::string between(const std::string& page, const std::string& begin, const std::string& end) {
  const size_t from = page.find(begin);
  if (from == std::string::npos) return "";
  return page.substr(from, page.find(end, from) - from);
}

/// The page after its script ran, and what the browser's console said.
Ended render(const std::string& program, const std::string& page, int width, const std::string& place = "") {
  const TemporaryFolder profile;
  return Process({program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
                  "--user-data-dir=" + profile.path(), "--enable-logging=stderr", "--log-level=0", "--window-size=" + std::to_string(width) + ",2000",
                  "--dump-dom", "file://" + page + place})
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
  EXPECT_LT(page.size(), size_t{5} << 20) << "8 rows of 48 heads with their maps";
  EXPECT_EQ(count(page, "</script"), 2u) << "the data and the program";
  const size_t begin = page.find("id=\"data\">") + 10;
  const auto data = nlohmann::json::parse(page.substr(begin, page.find("</script", begin) - begin));
  EXPECT_EQ(data, nlohmann::json::parse(to_json(comparison)));
}

TEST(Report, RendersWithoutAWordOnTheConsole) {
  const std::string program = find_browser();
  if (program.empty()) GTEST_SKIP() << "no browser: neither chromium nor google-chrome is in PATH";
  TemporaryFolder folder;
  Comparison empty;  // no method at all, no needles, no text
  const std::pair<std::string, Comparison> pages[] = {{"plain", synthetic_comparison("reference-lm")},
                                                      {"hostile", synthetic_comparison(kHostile)},
                                                      {"empty", empty},
                                                      {"tensors", synthetic_tensors(kHostile)}};
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
  for (const char* part :
       {"head 5: density", "+0.0034", "10/10", "4.07", "refused: xattention", "<svg", "aria-label=\"Missed mass", "layer 7, head 3"}) {
    EXPECT_NE(ended.out.find(part), std::string::npos) << part;
  }
  const auto svg_of = [&](const char* id) { return between(ended.out, std::string("<figure id=\"") + id + "\"", "</figure>"); };
  EXPECT_EQ(count(svg_of("pareto"), "class=\"point\""), 8u) << "one a row that ran";
  EXPECT_EQ(count(svg_of("pareto"), "class=\"front\""), 1u);
  EXPECT_EQ(count(svg_of("times"), "class=\"bar\""), 9u) << "and dense";
  EXPECT_EQ(count(svg_of("times"), "class=\"rest\""), 10u) << "and the key";
  EXPECT_EQ(count(svg_of("tune"), "class=\"point\""), 3u) << "of five settings two have no figure";
  EXPECT_EQ(count(between(ended.out, "id=\"tune-table\"", "</table>"), "<tr"), 6u);
  EXPECT_EQ(count(between(ended.out, "id=\"atlas\"", "id=\"atlas-detail\""), "<button"), 96u) << "two tables of 8 layers and 6 heads";
  EXPECT_EQ(count(between(ended.out, "id=\"worst\"", "</table>"), "<tr"), 3u);
  EXPECT_EQ(count(between(ended.out, "id=\"needles\"", "</table>"), "<th scope=\"row\""), 9u);
  EXPECT_EQ(between(ended.out, "<dialog", ">").find(" open"), std::string::npos);
}

TEST(Report, TheAtlasOpensAHead) {
  const std::string program = find_browser();
  if (program.empty()) GTEST_SKIP() << "no browser: neither chromium nor google-chrome is in PATH";
  TemporaryFolder folder;
  Comparison without = synthetic_comparison("reference-lm");
  without.map.reset();
  for (MethodFigures& row : without.methods) {
    for (HeadFigures& head : row.heads) head.map = {};
  }
  const std::tuple<std::string, Comparison, std::string, bool> pages[] = {{"texts", synthetic_comparison("reference-lm"), "#head=3/7/2", true},
                                                                          {"tensors", synthetic_tensors("saved"), "#head=1/0/5", true},
                                                                          {"without", without, "#head=1/7/5", false}};
  for (const auto& [name, comparison, place, has_map] : pages) {
    SCOPED_TRACE(name);
    write_file(folder.file(name + ".html"), make_report(comparison));
    const Ended ended = render(program, folder.file(name + ".html"), 1280, place);
    EXPECT_EQ(ended.err.find("CONSOLE"), std::string::npos) << ended.err;
    EXPECT_NE(between(ended.out, "<dialog", ">").find(" open"), std::string::npos);
    EXPECT_NE(ended.out.find(">Layer " + place.substr(8, 1) + ", head " + place.substr(10, 1) + "<"), std::string::npos);
    EXPECT_EQ(between(ended.out, "id=\"head-map\"", ">").find("hidden") == std::string::npos, has_map);
    if (has_map) {
      EXPECT_NE(between(ended.out, "<canvas", ">").find("most is missed by queries from"), std::string::npos) << "the map was read and drawn";
    }
  }
  // A head that is not there opens nothing.
  const Ended ended = render(program, folder.file("texts.html"), 1280, "#head=3/8/2");
  EXPECT_EQ(between(ended.out, "<dialog", ">").find(" open"), std::string::npos);
  EXPECT_NE(ended.out.find("data-ready=\"yes\""), std::string::npos);
}

}  // namespace
}  // namespace tilewise::app
