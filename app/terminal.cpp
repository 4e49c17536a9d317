// SPDX-License-Identifier: Apache-2.0
#include "app/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace tilewise::app {
namespace {

size_t columns() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 10 ? size.ws_col : 80;
}

}  // namespace

bool has_colour() {
  static const bool answer = ::isatty(STDOUT_FILENO) != 0 && std::getenv("NO_COLOR") == nullptr;
  return answer;
}

std::string styled(const std::string& text, Style style) {
  if (!has_colour() || style == Style::plain) return text;
  const char* code = "";
  switch (style) {
    case Style::plain: break;
    case Style::bold: code = "\033[1m"; break;
    case Style::dim: code = "\033[2m"; break;
    case Style::good: code = "\033[32m"; break;
    case Style::bad: code = "\033[33m"; break;  // yellow: told from green by those who do not see red
  }
  return code + text + "\033[0m";
}

std::string clock_text(double seconds) {
  const long total = std::lround(std::max(0.0, seconds));
  char text[32];
  if (total >= 3600) {
    std::snprintf(text, sizeof text, "%ld:%02ld:%02ld", total / 3600, total / 60 % 60, total % 60);
  } else {
    std::snprintf(text, sizeof text, "%ld:%02ld", total / 60, total % 60);
  }
  return text;
}

ProgressLine::ProgressLine() : is_on_(::isatty(STDERR_FILENO) != 0) {}

void ProgressLine::show(const CompareProgress& progress) {
  char share[16];
  std::snprintf(share, sizeof share, "%3.0f %%", 100 * progress.share);
  std::string text = std::string(share);
  if (progress.seconds_left >= 0) text += "  " + clock_text(progress.seconds_left) + " left";
  text += "  " + progress.row + ", " + progress.part;
  const std::string kind = progress.row + ", " + progress.part.substr(0, progress.part.find_first_of("0123456789"));
  if (kind == kind_) return show(text);
  kind_ = kind;
  draw(text);
}

void ProgressLine::show(const std::string& text) {
  if (is_shown_ && std::chrono::steady_clock::now() - last_ < std::chrono::milliseconds(100)) return;
  draw(text);
}

void ProgressLine::draw(const std::string& text) {
  if (!is_on_) return;
  last_ = std::chrono::steady_clock::now();
  is_shown_ = true;
  const std::string line = "\r\033[K" + text.substr(0, columns() - 1);
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fflush(stderr);
}

void ProgressLine::clear() {
  if (!is_on_ || !is_shown_) return;
  std::fputs("\r\033[K", stderr);
  std::fflush(stderr);
  is_shown_ = false;
}

}  // namespace tilewise::app
