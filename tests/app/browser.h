// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tests/base/temporary_folder.h"

namespace tilewise::app {

/// Path of a browser that speaks the DevTools protocol; empty: none is installed.
inline std::string find_browser() {
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

/// A headless browser with one page, driven over a pipe by the DevTools protocol: real keys, so that what the browser itself does with them (moving the
/// focus, pressing buttons, closing dialogs) is tested, too. Throws std::runtime_error where the browser does not answer.
class Browser {
 public:
  using Json = nlohmann::json;

  explicit Browser(const std::string& program) {
    int to_child[2], from_child[2];
    if (::pipe2(to_child, O_CLOEXEC) != 0 || ::pipe2(from_child, O_CLOEXEC) != 0) throw std::runtime_error("no pipe");
    std::vector<std::string> arguments{program,
                                       "--headless",
                                       "--no-sandbox",
                                       "--disable-gpu",
                                       "--no-first-run",
                                       "--disable-dev-shm-usage",
                                       "--hide-scrollbars",
                                       "--remote-debugging-pipe",
                                       "--user-data-dir=" + profile_.path()};
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    child_ = ::fork();
    if (child_ < 0) throw std::runtime_error("cannot fork");
    if (child_ == 0) {
      ::setpgid(0, 0);
      const int nowhere = ::open("/dev/null", O_RDWR);
      for (const int standard : {0, 1, 2}) ::dup2(nowhere, standard);
      // Pipes may lie on 3 and 4 already: moved up first, so that neither is overwritten.
      const int in = ::fcntl(to_child[0], F_DUPFD, 10), out = ::fcntl(from_child[1], F_DUPFD, 10);
      ::dup2(in, 3);
      ::dup2(out, 4);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    ::setpgid(child_, child_);  // here, too: whoever comes first
    ::signal(SIGPIPE, SIG_IGN);  // a browser that has gone is an error of write()
    ::close(to_child[0]);
    ::close(from_child[1]);
    write_ = to_child[1];
    read_ = from_child[0];
    const Json target = call("Target.createTarget", {{"url", "about:blank"}});
    session_ = call("Target.attachToTarget", {{"targetId", target.at("targetId")}, {"flatten", true}}).at("sessionId");
    for (const char* domain : {"Page.enable", "Runtime.enable", "Log.enable"}) call(domain);
  }
  Browser(const Browser&) = delete;
  Browser& operator=(const Browser&) = delete;
  ~Browser() {
    ::close(write_);
    ::close(read_);
    // Its own group: the helpers of the browser go with it.
    if (child_ > 0) {
      ::kill(-child_, SIGKILL);
      ::waitpid(child_, nullptr, 0);
    }
  }

  /// Sends a command and waits for its result.
  Json call(const std::string& method, Json params = Json::object()) {
    const int id = ++last_id_;
    Json message{{"id", id}, {"method", method}, {"params", std::move(params)}};
    if (!session_.empty()) message["sessionId"] = session_;
    const std::string text = message.dump();
    for (size_t done = 0; done <= text.size();) {  // the 0 behind it ends a message
      const ssize_t count = ::write(write_, text.c_str() + done, text.size() + 1 - done);
      if (count <= 0) throw std::runtime_error("the browser does not listen to " + method);
      done += static_cast<size_t>(count);
    }
    for (;;) {
      const Json answer = receive(method);
      if (answer.value("id", 0) != id) continue;
      if (answer.contains("error")) throw std::runtime_error(method + ": " + answer.at("error").dump());
      return answer.at("result");
    }
  }

  /// A window of this size; a phone has touch and its own idea of a page's width.
  void resize(int width, int height, bool is_phone = false) {
    call("Emulation.setDeviceMetricsOverride",
         {{"width", width}, {"height", height}, {"deviceScaleFactor", 1}, {"mobile", is_phone}, {"screenWidth", width}, {"screenHeight", height}});
  }
  /// "screen" or "print", "light" or "dark".
  void set_media(const std::string& media, const std::string& scheme) {
    call("Emulation.setEmulatedMedia", {{"media", media}, {"features", Json::array({{{"name", "prefers-color-scheme"}, {"value", scheme}}})}});
  }
  /// Opens a file and waits until it has been loaded.
  void open(const std::string& path) {
    console.clear();
    is_loaded_ = false;
    call("Page.navigate", {{"url", "about:blank"}});
    while (!is_loaded_) receive("Page.navigate");
    is_loaded_ = false;
    call("Page.navigate", {{"url", "file://" + path}});
    while (!is_loaded_) receive("Page.navigate");
  }
  /// The value of an expression; of a promise what it comes to.
  Json evaluate(const std::string& expression) {
    const Json result = call("Runtime.evaluate", {{"expression", expression}, {"returnByValue", true}, {"awaitPromise", true}});
    if (result.contains("exceptionDetails")) throw std::runtime_error(expression + ": " + result.at("exceptionDetails").dump());
    return result.at("result").value("value", Json());
  }
  /// Presses and releases a key: "Tab", "Enter", "Escape", " ", "ArrowUp", ...
  void press(const std::string& key, bool has_shift = false) {
    static const std::vector<std::pair<std::string, int>> codes = {{"Tab", 9},         {"Enter", 13},    {"Escape", 27},    {" ", 32},
                                                                   {"End", 35},        {"Home", 36},     {"ArrowLeft", 37}, {"ArrowUp", 38},
                                                                   {"ArrowRight", 39}, {"ArrowDown", 40}};
    for (const auto& [name, code] : codes) {
      if (name != key) continue;
      const std::string text = key == "Enter" ? "\r" : key == " " ? " " : "";
      Json event{{"type", text.empty() ? "rawKeyDown" : "keyDown"},
                 {"key", key},
                 {"code", key == " " ? "Space" : key},
                 {"windowsVirtualKeyCode", code},
                 {"modifiers", has_shift ? 8 : 0}};
      if (!text.empty()) event["text"] = text;
      call("Input.dispatchKeyEvent", event);
      event["type"] = "keyUp";
      event.erase("text");
      call("Input.dispatchKeyEvent", event);
      return;
    }
    throw std::runtime_error("no code for the key " + key);
  }
  /// Writes what the page looks like, whole, as PNG in base64.
  std::string screenshot() { return call("Page.captureScreenshot", {{"captureBeyondViewport", true}}).at("data"); }

  std::vector<std::string> console;  // what the page has said since it was opened: messages, warnings and errors

 private:
  /// The next message; events are noted.
  Json receive(const std::string& during) {
    size_t end = 0;
    while ((end = buffer_.find('\0')) == std::string::npos) {
      pollfd waiting{read_, POLLIN, 0};
      if (::poll(&waiting, 1, 60000) <= 0) throw std::runtime_error("the browser does not answer " + during);
      char bytes[65536];
      const ssize_t count = ::read(read_, bytes, sizeof bytes);
      if (count <= 0) throw std::runtime_error("the browser has gone during " + during);
      buffer_.append(bytes, static_cast<size_t>(count));
    }
    Json message = Json::parse(buffer_.substr(0, end));
    buffer_.erase(0, end + 1);
    const std::string method = message.value("method", "");
    is_loaded_ |= method == "Page.loadEventFired";
    if (method == "Runtime.consoleAPICalled" || method == "Runtime.exceptionThrown" || method == "Log.entryAdded")
      console.push_back(message.at("params").dump());
    return message;
  }

  TemporaryFolder profile_;
  pid_t child_ = -1;
  int write_ = -1, read_ = -1, last_id_ = 0;
  bool is_loaded_ = false;
  std::string session_, buffer_;
};

}  // namespace tilewise::app
