// SPDX-License-Identifier: Apache-2.0
#include "tests/repository/tree.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>
#include <stdexcept>

namespace tilewise::tests::repository {
namespace {

std::vector<std::string> from_git() {
  std::FILE* pipe = ::popen("git -c safe.directory='*' ls-files -z 2>/dev/null", "r");
  if (pipe == nullptr) return {};
  std::string text;
  char chunk[4096];
  for (size_t got = 0; (got = std::fread(chunk, 1, sizeof chunk, pipe)) > 0;) text.append(chunk, got);
  if (::pclose(pipe) != 0) return {};
  std::vector<std::string> paths;
  std::istringstream stream(text);
  for (std::string path; std::getline(stream, path, '\0');) paths.push_back(path);
  return paths;
}

std::vector<std::string> from_walk() {
  std::vector<std::string> paths;
  for (auto entry = std::filesystem::recursive_directory_iterator("."); entry != std::filesystem::recursive_directory_iterator(); ++entry) {
    const std::string name = entry->path().filename().string();
    if (entry->is_directory() && (name == ".git" || name == "__pycache__" || starts_with(name, "build"))) {
      entry.disable_recursion_pending();
    } else if (entry->is_regular_file()) {
      paths.push_back(std::filesystem::relative(entry->path(), ".").generic_string());
    }
  }
  return paths;
}

}  // namespace

std::vector<std::string> tracked_files() {
  std::vector<std::string> paths = from_git();
  if (paths.empty()) paths = from_walk();
  std::erase_if(paths, [](const std::string& path) { return !std::filesystem::is_regular_file(path); });  // deleted, not yet committed
  std::sort(paths.begin(), paths.end());
  return paths;
}

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path + "; the tests run in the root of the source tree");
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

bool ends_with(const std::string& text, const std::string& end) { return text.ends_with(end); }
bool starts_with(const std::string& text, const std::string& start) { return text.starts_with(start); }

std::vector<Block> blocks_of_documents() {
  std::vector<Block> blocks;
  for (const std::string& path : tracked_files()) {
    if (!ends_with(path, ".md")) continue;
    bool is_inside = false;
    int number = 0;
    for (const std::string& line : lines_of(read_text(path))) {
      ++number;
      if (starts_with(line, "```")) {
        is_inside = !is_inside;
        if (is_inside) blocks.push_back({path + ":" + std::to_string(number), line.substr(3), ""});
      } else if (is_inside) {
        blocks.back().text += line + "\n";
      }
    }
    if (is_inside) throw std::runtime_error(blocks.back().where + ": a block without an end");
  }
  return blocks;
}

std::string fenced_block(const std::string& markdown, const std::string& heading, const std::string& language) {
  bool is_behind = false, is_inside = false;
  std::string block;
  for (const std::string& line : lines_of(markdown)) {
    if (line == heading) is_behind = true;
    if (!is_behind) continue;
    if (!is_inside && line == "```" + language) {
      is_inside = true;
    } else if (is_inside && line == "```") {
      return block;
    } else if (is_inside) {
      block += line + "\n";
    }
  }
  throw std::runtime_error("no block ```" + language + " behind the line '" + heading + "'");
}

std::vector<std::string> library_folders() {
  std::vector<std::string> folders;
  const std::regex entry("^  ([a-z_]+)/ .*");
  bool is_library = false;
  for (const std::string& line : lines_of(fenced_block(read_text("docs/architecture.md"), "## Folders", "text"))) {
    if (!starts_with(line, " ")) is_library = starts_with(line, "tilewise/");
    std::smatch match;
    if (is_library && std::regex_match(line, match, entry)) folders.push_back(match[1]);
  }
  return folders;
}

}  // namespace tilewise::tests::repository
