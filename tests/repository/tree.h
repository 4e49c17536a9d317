// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <vector>

// What the tests of the repository itself read. They run in the root of the source tree.
namespace tilewise::tests::repository {

/// Paths of the files that git tracks and that exist, sorted; in a tree without git, all files outside of build folders.
std::vector<std::string> tracked_files();

/// The file as text; throws when it cannot be read.
std::string read_text(const std::string& path);

std::vector<std::string> lines_of(const std::string& text);

bool ends_with(const std::string& text, const std::string& end);
bool starts_with(const std::string& text, const std::string& start);

/// A fenced block of a document.
struct Block {
  std::string where, language, text;  // where: path:line of the opening fence
};

/// Those of all tracked Markdown files. Throws for a block without an end.
std::vector<Block> blocks_of_documents();

/// The first fenced block behind the line `heading`, without its fences. `language` is what follows the opening fence. Throws when there is none.
std::string fenced_block(const std::string& markdown, const std::string& heading, const std::string& language);

/// libtilewise's folders in the order in which they may include one another, as docs/architecture.md lists them under "## Folders".
std::vector<std::string> library_folders();

}  // namespace tilewise::tests::repository
