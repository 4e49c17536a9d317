// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "tilewise/base/api.h"

TILEWISE_BEGIN_PUBLIC

/// A regular file, mapped for reading. Whoever holds `bytes()` keeps the object alive. A file that another program cuts short
/// while it is mapped ends the process (SIGBUS), as with every mapping; files written by AtomicFile are replaced, never cut.
class TILEWISE_API MappedFile {
 public:
  MappedFile() = default;
  /// Errors: io (missing, not a regular file, not readable), with the path and the system's reason.
  explicit MappedFile(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  void* data_ = nullptr;  // null for an empty file, which cannot be mapped
  size_t size_ = 0;
};

/// A file that appears whole or not at all: it is written beside its target and renamed by commit(). Links are followed.
/// A target that is neither a file nor missing (a terminal, a pipe, /dev/null) is written in place. Without commit() nothing is left behind.
class TILEWISE_API AtomicFile {
 public:
  /// Errors: io (no such directory, no right to write, the target is a directory).
  explicit AtomicFile(const std::string& path);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  /// Errors: io (disk full, ...).
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }
  /// Flushes to the disk and takes the target's name. Call once, last. Errors: io.
  void commit();

 private:
  std::string path_, temporary_;  // `temporary_` is empty when the target is written in place
  int descriptor_ = -1;
};

/// AtomicFile in one call.
TILEWISE_API void write_file(const std::string& path, std::string_view text);

/// The whole file as text. Errors: io (as MappedFile; or longer than `max_bytes`, which names both sizes).
TILEWISE_API std::string read_file(const std::string& path, size_t max_bytes);

TILEWISE_END_PUBLIC
