// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/needles.h"

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "tilewise/base/error.h"
#include "tilewise/base/file.h"

namespace tilewise::study {
namespace {

constexpr size_t kMaxNeedlesBytes = size_t{64} << 20;
constexpr size_t kMaxDocumentBytes = size_t{1} << 30;

/// Documents of a model, read once each. Names are plain file names, so that a needles.json cannot point outside its folder.
class Documents {
 public:
  explicit Documents(std::string directory) : directory_(std::move(directory)) {}
  const std::string& text(const std::string& name) {
    check(!name.empty() && name.find('/') == std::string::npos && name != "." && name != "..", Error::Kind::io, "needles.json: document \"", name,
          "\" is not the name of a file in ", directory_);
    auto place = texts_.find(name);
    if (place == texts_.end()) place = texts_.emplace(name, read_file(directory_ + "/" + name, kMaxDocumentBytes)).first;
    return place->second;
  }

 private:
  std::string directory_;
  std::map<std::string, std::string> texts_;
};

NeedlePrompt make_prompt(const nlohmann::json& entry, Documents& documents, const std::string& path) {
  NeedlePrompt needle;
  needle.length = entry.at("length").get<int64_t>();
  needle.depth = entry.at("depth").get<double>();
  needle.answer = entry.at("answer").get<std::string>();
  const std::string& document = documents.text(entry.at("document").get<std::string>());
  const int64_t offset = entry.at("offset").get<int64_t>();
  const int64_t haystack = entry.at("haystack").get<int64_t>();
  const int64_t insert = entry.at("insert").get<int64_t>();
  const int64_t size = static_cast<int64_t>(document.size());
  check(offset >= 0 && haystack >= 0 && offset <= size && haystack <= size - offset, Error::Kind::io, path, ": the haystack [", offset, ", ", offset,
        " + ", haystack, ") does not lie in ", entry.at("document").get<std::string>(), ", which has ", size, " bytes");
  check(insert >= 0 && insert <= haystack, Error::Kind::io, path, ": insert ", insert, " lies outside a haystack of ", haystack, " bytes");
  const std::string text = document.substr(static_cast<size_t>(offset), static_cast<size_t>(haystack));
  const size_t cut = static_cast<size_t>(insert);
  needle.prompt = text.substr(0, cut) + entry.at("note").get<std::string>() + text.substr(cut) + entry.at("ask").get<std::string>();
  check(static_cast<int64_t>(needle.prompt.size()) == needle.length, Error::Kind::io, path, ": a prompt of length ", needle.length, " comes out as ",
        needle.prompt.size(), " bytes");
  check(!needle.answer.empty(), Error::Kind::io, path, ": a prompt has an empty answer");
  return needle;
}

}  // namespace
}  // namespace tilewise::study

TILEWISE_BEGIN_PUBLIC

std::vector<NeedlePrompt> load_needles(const std::string& directory, int64_t length) {
  const std::string path = directory + "/needles.json";
  const std::string text = read_file(path, study::kMaxNeedlesBytes);
  std::vector<NeedlePrompt> needles;
  std::set<int64_t> lengths;
  try {
    const nlohmann::json document = nlohmann::json::parse(text);
    study::Documents documents(directory + "/documents");
    for (const nlohmann::json& entry : document.at("prompts")) {
      lengths.insert(entry.at("length").get<int64_t>());
      if (entry.at("length").get<int64_t>() == length) needles.push_back(study::make_prompt(entry, documents, path));
    }
  } catch (const nlohmann::json::exception& error) {
    fail(Error::Kind::io, path, ": ", error.what());
  }
  if (needles.empty()) {
    std::string known;
    for (const int64_t one : lengths) known += (known.empty() ? "" : ", ") + std::to_string(one);
    fail(Error::Kind::value, path, " has no prompt of ", length, " bytes; lengths are ", known.empty() ? "none" : known);
  }
  return needles;
}

TILEWISE_END_PUBLIC
