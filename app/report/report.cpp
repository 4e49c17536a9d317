// SPDX-License-Identifier: Apache-2.0
#include "app/report/report.h"

#include <map>

#include "app/report/resources.h"
#include "tilewise/base/error.h"

namespace tilewise::app {
namespace {

/// Fills {{name}} in one pass, so that what is put in is never read again as a template.
std::string fill(std::string_view text, const std::map<std::string, std::string, std::less<>>& values) {
  std::string out;
  while (true) {
    const size_t open = text.find("{{");
    out += text.substr(0, open);
    if (open == std::string_view::npos) return out;
    const size_t close = text.find("}}", open);
    check(close != std::string_view::npos, Error::Kind::value, "make_report: the template has an open {{");
    const auto place = values.find(text.substr(open + 2, close - open - 2));
    check(place != values.end(), Error::Kind::value, "make_report: the template asks for {{", text.substr(open + 2, close - open - 2), "}}");
    out += place->second;
    text.remove_prefix(close + 2);
  }
}

/// Bytes that are not UTF-8 become '?', so the page is always valid. (The JSON has its own way: U+FFFD.)
bool is_utf8_tail(char c) { return (static_cast<unsigned char>(c) & 0xc0u) == 0x80u; }

size_t utf8_length(std::string_view text, size_t i) {
  const unsigned char c = static_cast<unsigned char>(text[i]);
  const size_t length = c < 0x80 ? 1 : (c >= 0xc2 && c < 0xe0) ? 2 : (c >= 0xe0 && c < 0xf0) ? 3 : (c >= 0xf0 && c < 0xf5) ? 4 : 0;
  if (length == 0 || i + length > text.size()) return 0;
  for (size_t j = 1; j < length; ++j) {
    if (!is_utf8_tail(text[i + j])) return 0;
  }
  return length;
}

/// One function of all script files, in the order in which they use one another.
std::string script() {
  std::string text;
  for (const std::string_view part : {common_js(), table_js(), plots_js(), atlas_js(), main_js()}) text += part;
  return text;
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const size_t length = utf8_length(text, i);
    if (length == 0) {
      out += '?';
      ++i;
      continue;
    }
    switch (text[i]) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      case '\'': out += "&#39;"; break;
      case '\0': out += '?'; break;
      default: out += text.substr(i, length);
    }
    i += length;
  }
  return out;
}

std::string escape_script_json(std::string_view json) {
  std::string out;
  out.reserve(json.size());
  for (size_t i = 0; i < json.size(); ++i) {
    const std::string_view rest = json.substr(i, 3);
    if (json[i] == '<') {
      out += "\\u003c";
    } else if (json[i] == '>') {
      out += "\\u003e";
    } else if (json[i] == '&') {
      out += "\\u0026";
    } else if (rest == "\xe2\x80\xa8") {
      out += "\\u2028";
      i += 2;
    } else if (rest == "\xe2\x80\xa9") {
      out += "\\u2029";
      i += 2;
    } else {
      out += json[i];
    }
  }
  return out;
}

std::string make_report(const Comparison& comparison) {
  const Verdict verdict = verdict_of(comparison);
  return fill(template_html(), {{"style", std::string(style_css())},
                                {"script", script()},
                                {"verdict", escape_html(verdict.text)},
                                {"verdict_class", verdict.best ? "good" : "none"},
                                {"command", escape_html(comparison.environment.command)},
                                {"model", escape_html(comparison.input.has_model() ? comparison.input.model : comparison.input.qkv)},
                                {"json", escape_script_json(to_json(comparison))}});
}

}  // namespace tilewise::app
