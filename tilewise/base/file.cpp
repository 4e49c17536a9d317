// SPDX-License-Identifier: Apache-2.0
#include "tilewise/base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <system_error>
#include <utility>

#include "tilewise/base/error.h"

TILEWISE_BEGIN_PUBLIC

namespace {

/// Asked for where a call has failed, never as an argument of check(): a string that cannot be made would throw with the file open.
/// std::strerror keeps its text in one place for all threads; this does not.
std::string reason(int error) { return std::generic_category().message(error); }

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail(Error::Kind::io, "cannot open '", path, "': ", reason(errno));
  struct stat status = {};
  if (::fstat(descriptor, &status) != 0) {
    const int error = errno;
    ::close(descriptor);
    fail(Error::Kind::io, "cannot read '", path, "': ", reason(error));
  }
  if (!S_ISREG(status.st_mode)) {
    ::close(descriptor);
    fail(Error::Kind::io, "cannot read '", path, "': ", S_ISDIR(status.st_mode) ? "it is a directory" : "it is not a regular file", "; give a file");
  }
  const auto size = static_cast<size_t>(status.st_size);
  if (size > 0) {
    void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (data == MAP_FAILED) {
      const int error = errno;
      ::close(descriptor);
      fail(Error::Kind::io, "cannot map '", path, "' (", size, " bytes): ", reason(error));
    }
    data_ = data;
    size_ = size;
  }
  ::close(descriptor);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

AtomicFile::AtomicFile(const std::string& path) : path_(path) {
  check(!path.empty(), Error::Kind::io, "cannot write '': the path is empty; name a file");
  struct stat status = {};
  if (::stat(path.c_str(), &status) == 0) {
    check(!S_ISDIR(status.st_mode), Error::Kind::io, "cannot write '", path, "': it is a directory; name a file in it");
    if (!S_ISREG(status.st_mode)) {
      descriptor_ = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
      if (descriptor_ < 0) fail(Error::Kind::io, "cannot write '", path, "': ", reason(errno));
      return;
    }
    if (::access(path.c_str(), W_OK) != 0) fail(Error::Kind::io, "cannot write '", path, "': ", reason(errno));
    const std::unique_ptr<char, decltype(&std::free)> resolved(::realpath(path.c_str(), nullptr), &std::free);
    if (resolved != nullptr) path_ = resolved.get();
  }
  static std::atomic<unsigned> counter{0};
  for (int attempt = 0; attempt < 100 && descriptor_ < 0; ++attempt) {
    temporary_ = path_ + ".part-" + std::to_string(::getpid()) + "-" + std::to_string(counter.fetch_add(1));
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ < 0 && errno != EEXIST) break;
  }
  if (descriptor_ < 0) fail(Error::Kind::io, "cannot write '", path, "': ", reason(errno), "; the folder must exist and be writable");
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  check(descriptor_ >= 0, Error::Kind::io, "cannot write '", path_, "': it has been committed");
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(Error::Kind::io, "cannot write '", path_, "': ", reason(errno));
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

void AtomicFile::commit() {
  check(descriptor_ >= 0, Error::Kind::io, "cannot write '", path_, "': it has been committed");
  // A file system without fsync says EINVAL or ENOTSUP; a pipe or terminal always does.
  if (!temporary_.empty() && ::fsync(descriptor_) != 0 && errno != EINVAL && errno != ENOTSUP)
    fail(Error::Kind::io, "cannot write '", path_, "': ", reason(errno));
  if (::close(std::exchange(descriptor_, -1)) != 0) fail(Error::Kind::io, "cannot write '", path_, "': ", reason(errno));
  if (temporary_.empty()) return;
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail(Error::Kind::io, "cannot write '", path_, "': ", reason(errno));
  temporary_.clear();
}

void write_file(const std::string& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

std::string read_file(const std::string& path, size_t max_bytes) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  check(bytes.size() <= max_bytes, Error::Kind::io, "cannot read '", path, "': it has ", bytes.size(), " bytes, at most ", max_bytes, " are taken");
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

TILEWISE_END_PUBLIC
