// SPDX-License-Identifier: Apache-2.0
// The order of folders in docs/architecture.md is the order in which the code may be read: an include points to a folder above or to one's own.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <regex>
#include <set>

#include "tests/repository/tree.h"

namespace tilewise::tests::repository {
namespace {

struct Include {
  std::string path;
  bool is_system = false;
  size_t line = 0;
};

std::vector<Include> includes_of(const std::string& path) {
  static const std::regex pattern("^\\s*#\\s*include\\s*([<\"])([^>\"]+)[>\"].*");
  std::vector<Include> includes;
  const std::vector<std::string> lines = lines_of(read_text(path));
  for (size_t i = 0; i < lines.size(); ++i) {
    std::smatch match;
    if (lines[i].find("include") != std::string::npos && std::regex_match(lines[i], match, pattern))
      includes.push_back({match[2], match[1] == "<", i + 1});
  }
  return includes;
}

bool is_source(const std::string& path) {
  for (const char* end : {".h", ".cpp", ".cuh", ".cu"})
    if (ends_with(path, end)) return true;
  return false;
}

std::vector<std::string> library_sources() {
  std::vector<std::string> sources;
  for (const std::string& path : tracked_files())
    if (starts_with(path, "tilewise/") && is_source(path)) sources.push_back(path);
  return sources;
}

// "plan" of "tilewise/plan/rows.h"; "" of "tilewise/tilewise.h", which only users include.
std::string folder_of(const std::string& path) {
  const size_t first = path.find('/') + 1, second = path.find('/', first);
  return second == std::string::npos ? "" : path.substr(first, second - first);
}

std::string at(const std::string& path, const Include& include) { return path + ":" + std::to_string(include.line) + ": " + include.path; }

TEST(IncludeOrder, ListsOfDocumentAndBuildAgree) {
  std::vector<std::string> built;
  const std::regex loop("foreach\\(folder IN ITEMS ([a-z_ ]+)\\)");
  const std::string text = read_text("CMakeLists.txt");
  for (auto match = std::sregex_iterator(text.begin(), text.end(), loop); match != std::sregex_iterator(); ++match) {
    std::istringstream names((*match)[1].str());
    for (std::string name; names >> name;) built.push_back(name);
  }
  EXPECT_EQ(built, library_folders())
      << "CMakeLists.txt and the list under '## Folders' of docs/architecture.md must name the same folders, in order";
  EXPECT_GE(built.size(), 12u);
}

TEST(IncludeOrder, EveryFolderIsListed) {
  const std::vector<std::string> order = library_folders();
  for (const std::string& path : library_sources()) {
    const std::string folder = folder_of(path);
    if (folder.empty()) continue;
    EXPECT_NE(std::find(order.begin(), order.end(), folder), order.end()) << path << ": its folder is not in the list";
  }
}

TEST(IncludeOrder, PointsOnlyUpwards) {
  std::map<std::string, size_t> place;
  for (const std::string& folder : library_folders()) place.emplace(folder, place.size());
  int checked = 0;
  for (const std::string& path : library_sources()) {
    if (folder_of(path).empty()) continue;
    for (const Include& include : includes_of(path)) {
      if (include.is_system || include.path == "tilewise_commit.h") continue;
      ASSERT_TRUE(starts_with(include.path, "tilewise/")) << at(path, include) << ": includes in quotes start at tilewise/";
      EXPECT_TRUE(std::filesystem::exists(include.path)) << at(path, include) << ": no such file";
      const std::string target = folder_of(include.path);
      ASSERT_TRUE(place.contains(target)) << at(path, include) << ": not a folder of the library";
      EXPECT_LE(place[target], place[folder_of(path)]) << at(path, include) << ": points to a folder further down the list";
      ++checked;
    }
  }
  EXPECT_GT(checked, 100);
}

// base/ to attend/ can be lifted out of the project: C++, the operating system, and in its own subfolders the chip's intrinsics, nothing else.
TEST(IncludeOrder, LowerFoldersIncludeOnlyTheStandardLibrary) {
  const std::set<std::string> lower = {"base", "machine", "plan", "prepare", "cache", "attend"};
  const std::regex standard("[a-z_0-9]+"), system("(sys|linux)/[a-z_]+\\.h|unistd\\.h|fcntl\\.h|sched\\.h|pthread\\.h|dirent\\.h|time\\.h");
  const std::regex intrinsics("immintrin\\.h|cpuid\\.h"), cuda("(cuda|cub|cooperative_groups)[a-zA-Z_0-9/.]*");
  for (const std::string& path : library_sources()) {
    if (!lower.contains(folder_of(path))) continue;
    const bool is_gpu = path.find("/cuda/") != std::string::npos || path.find("/sm90/") != std::string::npos;
    const bool is_cpu = path.find("/cpu/") != std::string::npos;
    for (const Include& include : includes_of(path)) {
      if (!include.is_system) continue;
      const bool is_known = std::regex_match(include.path, standard) || (std::regex_match(include.path, system) && ends_with(path, ".cpp")) ||
                            (is_cpu && std::regex_match(include.path, intrinsics)) || (is_gpu && std::regex_match(include.path, cuda));
      EXPECT_TRUE(is_known) << at(path, include) << ": neither the standard library nor the system (in a .cpp)";
    }
  }
}

// The reference is what kernels are held against, so it shares no code with them.
TEST(IncludeOrder, ReferenceSharesNoCodeWithKernels) {
  for (const std::string& path : library_sources()) {
    if (path.find("/reference/") == std::string::npos) continue;
    for (const Include& include : includes_of(path)) {
      for (const char* backend : {"/cpu/", "/cuda/", "/sm90/"}) EXPECT_EQ(include.path.find(backend), std::string::npos) << at(path, include);
    }
  }
}

TEST(IncludeOrder, HeadersAreGuarded) {
  for (const std::string& path : tracked_files()) {
    if (!ends_with(path, ".h") && !ends_with(path, ".cuh")) continue;
    if (ends_with(path, "-inl.h") || path == "tilewise/machine/cpu/simd.h") continue;  // once per target, perhaps several in a unit
    EXPECT_NE(read_text(path).find("#pragma once"), std::string::npos) << path;
  }
}

}  // namespace
}  // namespace tilewise::tests::repository
