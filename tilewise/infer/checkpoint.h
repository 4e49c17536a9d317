// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tilewise/base/safetensors.h"

namespace tilewise::infer {

/// The tensors of a checkpoint: DIR/model.safetensors, or the files that DIR/model.safetensors.index.json names. All of them are mapped and their
/// headers checked when it is made.
class Checkpoint {
 public:
  /// Errors: io (a file missing or damaged; an index that is not one, names a file outside the folder, or does not agree with its files),
  /// unsupported (weights in another form).
  explicit Checkpoint(const std::string& directory);

  struct Place {
    const SafetensorsFile* file = nullptr;
    const SafetensorsEntry* entry = nullptr;
  };
  /// Null pointers when there is no tensor of that name.
  Place find(std::string_view name) const;
  /// All tensors, by name.
  const std::map<std::string, Place, std::less<>>& tensors() const { return tensors_; }
  /// What messages name: the file, or the index.
  const std::string& path() const { return path_; }

 private:
  void add(const std::string& path);
  void read_index(const std::string& directory);

  std::string path_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Place, std::less<>> tensors_;
};

}  // namespace tilewise::infer
