// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <filesystem>
#include <optional>

#include "app/report/report.h"
#include "tests/app/browser.h"
#include "tests/app/synthetic.h"
#include "tilewise/base/file.h"

namespace tilewise::app {
namespace {

using Json = nlohmann::json;

/// What has the focus, in words.
constexpr const char* kFocus = R"((() => {
  const e = document.activeElement;
  return e.id || e.getAttribute("aria-label") || (e.closest("[id]") || {}).id + " " + e.textContent.trim();
})())";

/// Whether whoever uses the keys sees where they are: a focus ring, inside of the window.
constexpr const char* kIsFocusSeen = R"((() => {
  const e = document.activeElement, style = getComputedStyle(e), box = e.getBoundingClientRect();
  return e.matches(":focus-visible") && style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 && box.width > 0 &&
    box.right > 0 && box.bottom > 0 && box.left < innerWidth && box.top < innerHeight;
})())";

/// Text whose contrast with what lies behind it is below what WCAG 2 asks for (4.5, 3 for large text).
constexpr const char* kFaint = R"((() => {
  const channels = (text) => (text.match(/[\d.]+/g) || []).map(Number);
  const over = (top, under) => { const a = top.length > 3 ? top[3] : 1; return [0, 1, 2].map((c) => a * top[c] + (1 - a) * under[c]); };
  const light = (rgb) => { const [r, g, b] = rgb.map((v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const faint = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !e.checkVisibility() || e.closest("script,style,noscript,title,.skip")) continue;
    const style = getComputedStyle(e);
    if (!parseFloat(style.fontSize)) continue;
    let paper = [255, 255, 255];
    const layers = [];
    for (let up = e; up; up = up.parentElement) layers.unshift(getComputedStyle(up).backgroundColor);
    for (const layer of layers) paper = over(channels(layer), paper);
    const ink = over(channels(e instanceof SVGElement ? style.fill : style.color), paper);
    const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5)) faint.push(`${walk.currentNode.textContent.trim().slice(0, 40)} ${ratio.toFixed(2)}`);
  }
  return faint;
})())";

/// Elements that reach beyond the window and do not lie in a box that scrolls by itself.
constexpr const char* kWide = R"((() => {
  const wide = [];
  for (const e of document.querySelectorAll("body *")) {
    const box = e.getBoundingClientRect();
    if (box.width && box.right > screen.width + 1 && !e.closest(".scroll, .skip") && e.checkVisibility()) wide.push(e.tagName + "#" + e.id + "." + e.className + " " + box.right);
  }
  return wide;
})())";

class ReportInBrowser : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string program = find_browser();
    if (program.empty()) GTEST_SKIP() << "no browser: neither chromium nor google-chrome is in PATH";
    browser_.emplace(program);
  }
  void TearDown() override {
    if (!browser_) return;
    EXPECT_EQ(browser_->console, std::vector<std::string>());
  }

  void open(const Comparison& comparison) {
    write_file(folder_.file("report.html"), make_report(comparison));
    browser_->open(folder_.file("report.html"));
    ASSERT_EQ(browser_->evaluate("document.documentElement.dataset.ready || document.body.dataset.ready"), "yes");
  }
  std::string focus() { return browser_->evaluate(kFocus); }
  bool is_true(const std::string& expression) { return browser_->evaluate(expression) == true; }
  /// Presses Tab until something has the focus whose name begins so.
  void tab_to(const std::string& name) {
    for (int i = 0; i < 100; ++i) {
      browser_->press("Tab");
      if (focus().rfind(name, 0) == 0) return;
    }
    FAIL() << "Tab does not come to " << name;
  }

  /// Closes the dialog by Escape and waits until the page has been told: the browser moves the focus at once, but sends the event that puts it right later.
  void escape() {
    browser_->evaluate(
        "void (window.dialogClosed = new Promise((done) => document.getElementById('head').addEventListener('close', done, {once: true})))");
    browser_->press("Escape");
    EXPECT_TRUE(is_true("Promise.race([window.dialogClosed.then(() => true), new Promise((late) => setTimeout(late, 20000, false))])"))
        << "the dialog stays open";
  }

  TemporaryFolder folder_;
  std::optional<Browser> browser_;
};

TEST_F(ReportInBrowser, TabGoesThroughEverythingInOrderAndShowsWhereItIs) {
  browser_->resize(1280, 800);
  open(synthetic_comparison("reference-lm"));
  // Roving: of each atlas one head takes the focus, arrow keys do the rest.
  const int stops = browser_->evaluate("[...document.querySelectorAll('a[href], button, select, input, summary, [tabindex]')].filter((e) => "
                                       "e.tabIndex >= 0 && e.checkVisibility()).length");
  EXPECT_GT(stops, 25);
  std::vector<std::string> names;
  browser_->evaluate("window.last = null");
  for (int i = 0; i < stops; ++i) {
    browser_->press("Tab");
    names.push_back(focus());
    SCOPED_TRACE(names.back());
    EXPECT_TRUE(is_true(kIsFocusSeen));
    EXPECT_TRUE(is_true("(() => { const e = document.activeElement, ok = !window.last || window.last.compareDocumentPosition(e) & 4; window.last = "
                        "e; return !!ok; })()"))
        << "not in the order of the page";
  }
  EXPECT_EQ(names.front().find("environment"), std::string::npos);
  EXPECT_NE(names.front().find("Skip to the table"), std::string::npos);
  for (const char* part :
       {"pareto-y", "pareto-x", "tune-count", "atlas-method", "layer 0, head 0", "worst layer 7, head 3", "download-json", "download-csv"}) {
    EXPECT_TRUE(std::any_of(names.begin(), names.end(), [&](const std::string& name) { return name.find(part) != std::string::npos; })) << part;
  }
  // And back.
  browser_->press("Tab", true);
  EXPECT_NE(focus(), names.back());
}

TEST_F(ReportInBrowser, KeysOpenAHeadWalkItsNeighboursAndCloseIt) {
  browser_->resize(1280, 800);
  open(synthetic_comparison("reference-lm"));
  tab_to("layer 0, head 0");
  browser_->press("ArrowDown");
  browser_->press("ArrowRight");
  EXPECT_EQ(focus().rfind("layer 1, head 1", 0), 0u) << focus();
  EXPECT_TRUE(is_true(kIsFocusSeen));
  EXPECT_EQ(browser_->evaluate("document.getElementById('atlas-detail').textContent.slice(0, 15)"), "layer 1, head 1");
  browser_->press("ArrowUp");
  browser_->press("ArrowUp");  // there is nothing above
  EXPECT_EQ(focus().rfind("layer 0, head 1", 0), 0u) << focus();
  browser_->press("Enter");
  const auto title = [&] { return browser_->evaluate("document.getElementById('head-title').textContent"); };
  EXPECT_TRUE(is_true("document.getElementById('head').open"));
  EXPECT_EQ(title(), "Layer 0, head 1");
  EXPECT_TRUE(is_true("document.getElementById('head').contains(document.activeElement)")) << "the focus goes with it";
  EXPECT_TRUE(is_true("document.getElementById('head-canvas').getContext('2d').getImageData(0, 0, 640, 640).data.some((v) => v !== 255 && v !== 0)"));
  // The neighbours, and not beyond the last.
  browser_->press("ArrowDown");
  browser_->press("ArrowLeft");
  browser_->press("ArrowLeft");
  EXPECT_EQ(title(), "Layer 1, head 0");
  // Tab stays inside; Space takes a layer of the map away.
  const std::string drawn = browser_->evaluate("document.getElementById('head-canvas').toDataURL()");
  tab_to("show-mass");
  browser_->press(" ");
  EXPECT_TRUE(is_true("!document.getElementById('show-mass').checked"));
  EXPECT_NE(browser_->evaluate("document.getElementById('head-canvas').toDataURL()"), drawn);
  for (int i = 0; i < 12; ++i) {
    browser_->press("Tab");
    EXPECT_TRUE(is_true("document.activeElement === document.body || document.getElementById('head').contains(document.activeElement)"));
  }
  // A cell of the map without a mouse.
  tab_to("head-canvas");
  EXPECT_TRUE(is_true(kIsFocusSeen));
  const auto cell = [&] { return browser_->evaluate("document.getElementById('head-cell').textContent").get<std::string>(); };
  browser_->press("End");
  EXPECT_NE(cell().find("Queries 16\u2009128\u201316\u2009383, keys 16\u2009128\u201316\u2009383"), std::string::npos) << cell();
  browser_->press("ArrowLeft");
  browser_->press("ArrowUp");
  browser_->press("ArrowRight");  // above the diagonal there is nothing
  EXPECT_NE(cell().find("Queries 15\u2009872\u201316\u2009127, keys 15\u2009872\u201316\u2009127"), std::string::npos) << cell();
  EXPECT_EQ(title(), "Layer 1, head 0") << "arrow keys on the map stay in it";
  escape();
  EXPECT_TRUE(is_true("!document.getElementById('head').open"));
  EXPECT_EQ(focus().rfind("layer 1, head 0", 0), 0u) << "the focus goes back to the head that was shown: " << focus();
  browser_->press("Enter");
  EXPECT_TRUE(is_true("document.getElementById('head').open"));
}

TEST_F(ReportInBrowser, KeysSortTheTableOpenTheSettingsAndTheWorstTiles) {
  browser_->resize(1280, 800);
  open(synthetic_comparison("reference-lm"));
  tab_to("methods Density");
  browser_->press("Enter");
  const auto first = [&] { return browser_->evaluate("document.querySelectorAll('#methods tbody tr')[1].querySelector('.number').textContent"); };
  EXPECT_EQ(browser_->evaluate("document.activeElement.closest('th').getAttribute('aria-sort')"), "ascending");
  EXPECT_EQ(first(), "8");
  browser_->press(" ");
  EXPECT_EQ(browser_->evaluate("document.activeElement.closest('th').getAttribute('aria-sort')"), "descending");
  EXPECT_EQ(first(), "5");
  tab_to("tune-count");
  EXPECT_TRUE(is_true("document.getElementById('tune-count').parentElement.open")) << "there is room beside the plot";
  browser_->press("Enter");
  EXPECT_TRUE(is_true("!document.getElementById('tune-count').parentElement.open"));
  browser_->press("Enter");
  EXPECT_TRUE(is_true("document.querySelector('#tune-table table').checkVisibility()"));
  tab_to("worst layer 5, head 0");
  browser_->press("Enter");
  EXPECT_EQ(browser_->evaluate("document.getElementById('head-title').textContent"), "Layer 5, head 0");
  escape();
  EXPECT_EQ(focus(), "worst layer 5, head 0");
}

TEST_F(ReportInBrowser, KeysDownloadTheJsonAndTheTable) {
  const Comparison comparison = synthetic_comparison(kHostile);
  const TemporaryFolder downloads;
  open(comparison);
  browser_->call("Page.setDownloadBehavior", {{"behavior", "allow"}, {"downloadPath", downloads.path()}});
  for (const std::string kind : {"json", "csv"}) {
    const std::string file = downloads.file("tilewise-compare." + kind);
    browser_->evaluate("document.getElementById('download-" + kind + "').focus()");
    browser_->press("Enter");
    for (int i = 0; i < 600 && !std::filesystem::exists(file); ++i) browser_->evaluate("new Promise((done) => setTimeout(done, 100))");
    ASSERT_TRUE(std::filesystem::exists(file)) << kind;
  }
  EXPECT_EQ(Json::parse(TemporaryFolder::read(downloads.file("tilewise-compare.json"))), Json::parse(to_json(comparison)));
  const std::string csv = TemporaryFolder::read(downloads.file("tilewise-compare.csv"));
  EXPECT_EQ(csv.rfind("name,label,density", 0), 0u);
  EXPECT_NE(csv.find("\r\nxattention,\"xattention stride=16,threshold=0.97,tile=64\",0.194,"), std::string::npos) << csv;
  EXPECT_NE(csv.find("\"xattention tile=256 </script><script>document.title='broken'</script><b a=\"\"x\"\" c='y'>"), std::string::npos) << csv;
}

TEST_F(ReportInBrowser, APhoneNeedsNoScrollingSideways) {
  for (const int width : {320, 390, 768}) {
    browser_->resize(width, 800, true);
    for (const bool has_model : {true, false}) {
      SCOPED_TRACE(testing::Message() << width << " " << has_model);
      open(has_model ? synthetic_comparison("a_model_with_a_name_that_has_no_place_to_break") : synthetic_tensors(kHostile));
      EXPECT_LE(browser_->evaluate("document.documentElement.scrollWidth"), width);
      EXPECT_EQ(browser_->evaluate(kWide), Json::array());
      EXPECT_EQ(browser_->evaluate("!!document.querySelector('details[open]')"), has_model && width >= 640);
      browser_->evaluate("document.querySelector('.atlas button').click()");
      EXPECT_TRUE(is_true("document.getElementById('head').open"));
      EXPECT_TRUE(is_true("document.getElementById('head').scrollWidth <= document.getElementById('head').clientWidth"));
      EXPECT_EQ(browser_->evaluate(kWide), Json::array());
    }
  }
}

TEST_F(ReportInBrowser, TextIsReadableInLightAndDark) {
  browser_->resize(1280, 800);
  for (const char* scheme : {"light", "dark"}) {
    SCOPED_TRACE(scheme);
    browser_->set_media("screen", scheme);
    open(synthetic_comparison("reference-lm"));
    const bool is_dark = is_true("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((v) => Number(v) < 60)");
    EXPECT_EQ(is_dark, std::string(scheme) == "dark");
    browser_->evaluate("document.querySelector('details').open = true");
    EXPECT_EQ(browser_->evaluate(kFaint), Json::array());
    browser_->evaluate("document.querySelector('.atlas button').click()");
    EXPECT_EQ(browser_->evaluate(kFaint), Json::array());
  }
}

TEST_F(ReportInBrowser, PrintsInDarkOnPaperWithoutButtonsOrCuts) {
  browser_->resize(718, 1000);  // A4 without its margins
  browser_->set_media("print", "dark");
  open(synthetic_comparison("reference-lm"));
  EXPECT_TRUE(is_true("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((v) => Number(v) > 240)"))
      << "ink on paper, whatever the screen";
  EXPECT_LE(browser_->evaluate("document.documentElement.scrollWidth"), 718);
  EXPECT_EQ(browser_->evaluate(kWide), Json::array());
  EXPECT_TRUE(is_true("[...document.querySelectorAll('.scroll')].every((e) => e.scrollWidth <= e.clientWidth + 1)")) << "paper does not scroll";
  EXPECT_TRUE(is_true("!document.getElementById('download-json').checkVisibility() && !document.getElementById('atlas-method').checkVisibility()"));
  EXPECT_EQ(browser_->evaluate(kFaint), Json::array());
  const std::string pdf = browser_->call("Page.printToPDF", {{"printBackground", true}}).at("data");
  EXPECT_EQ(pdf.rfind("JVBERi", 0), 0u) << "%PDF in base64";
}

TEST_F(ReportInBrowser, ChoicesRedrawWhatTheyChoose) {
  browser_->resize(1280, 800);
  open(synthetic_comparison("reference-lm"));
  const auto label = [&] { return browser_->evaluate("document.querySelector('#pareto svg').getAttribute('aria-label')").get<std::string>(); };
  const std::string before = label();
  tab_to("pareto-y");
  browser_->press("ArrowDown");
  EXPECT_NE(label(), before);
  EXPECT_EQ(label().rfind("output error against density", 0), 0u) << label();
  tab_to("pareto-x");
  browser_->press("ArrowDown");
  EXPECT_EQ(label().rfind("output error against plan and attend", 0), 0u) << label();
  tab_to("atlas-method");
  browser_->press("ArrowDown");
  EXPECT_EQ(browser_->evaluate("document.getElementById('worst-of').textContent"), "xattention");
}

}  // namespace
}  // namespace tilewise::app
