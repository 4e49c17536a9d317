// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/checkpoint.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "tilewise/base/error.h"
#include "tilewise/base/file.h"

namespace tilewise::infer {
namespace {

constexpr size_t kMaxIndexBytes = size_t{64} << 20;

bool exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

[[noreturn]] void refuse_missing(const std::string& directory) {
  check(!exists(directory + "/pytorch_model.bin") && !exists(directory + "/pytorch_model.bin.index.json"), Error::Kind::unsupported, directory,
        ": the weights are a pickle (pytorch_model.bin), which can run code; save the model as safetensors");
  fail(Error::Kind::io, directory, ": there is no model.safetensors and no model.safetensors.index.json in it");
}

}  // namespace

Checkpoint::Checkpoint(const std::string& directory) : path_(directory + "/model.safetensors") {
  if (exists(path_)) {
    add(path_);
    return;
  }
  path_ = directory + "/model.safetensors.index.json";
  if (!exists(path_)) refuse_missing(directory);
  read_index(directory);
}

Checkpoint::Place Checkpoint::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? Place{} : found->second;
}

void Checkpoint::add(const std::string& path) {
  const SafetensorsFile& file = *files_.emplace_back(std::make_unique<SafetensorsFile>(path));
  for (const SafetensorsEntry& entry : file.entries()) {
    const auto [place, is_new] = tensors_.insert({entry.name, {&file, &entry}});
    check(is_new, Error::Kind::io, path, ": tensor ", entry.name, " is also in ", place->second.file->path());
  }
}

void Checkpoint::read_index(const std::string& directory) {
  std::map<std::string, std::string> file_of;
  try {
    const nlohmann::json index = nlohmann::json::parse(read_file(path_, kMaxIndexBytes));
    file_of = index.at("weight_map").get<std::map<std::string, std::string>>();
  } catch (const nlohmann::json::exception& error) {
    fail(Error::Kind::io, path_, " is not an index of weights: ", error.what());
  }
  std::set<std::string> names;
  const auto path_of = [&](const std::string& name) { return std::string(directory).append("/").append(name); };
  for (const auto& [tensor, name] : file_of) {
    check(!name.empty() && name.find('/') == std::string::npos && name != "." && name != "..", Error::Kind::io, path_, ": weight_map says that ",
          tensor, " is in \"", name, "\", which is not the name of a file beside it");
    names.insert(name);
  }
  for (const std::string& name : names) add(path_of(name));
  for (const auto& [tensor, name] : file_of) {
    const Place place = find(tensor);
    check(place.file != nullptr && place.file->path() == path_of(name), Error::Kind::io, path_, ": weight_map says that ", tensor, " is in ", name,
          "; it is not");
  }
}

}  // namespace tilewise::infer
