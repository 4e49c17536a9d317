// SPDX-License-Identifier: Apache-2.0
#include "tilewise/base/file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <utility>

#include "temporary_folder.h"
#include "tilewise/base/error.h"

namespace tilewise {
namespace {

template <class Call>
std::string io_error(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::io);
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return {};
}

TEST(MappedFile, ReadsWhatIsThere) {
  TemporaryFolder folder;
  TemporaryFolder::write(folder.file("a"), "hello");
  MappedFile file(folder.file("a"));
  MappedFile moved = std::move(file);
  ASSERT_EQ(moved.bytes().size(), 5u);
  EXPECT_EQ(static_cast<char>(moved.bytes()[4]), 'o');
  TemporaryFolder::write(folder.file("empty"), "");
  EXPECT_EQ(MappedFile(folder.file("empty")).bytes().size(), 0u);
}

TEST(MappedFile, NamesPathAndReason) {
  TemporaryFolder folder;
  const std::string missing = io_error([&] { MappedFile file(folder.file("nothing")); });
  EXPECT_NE(missing.find(folder.file("nothing")), std::string::npos);
  EXPECT_NE(missing.find("No such file"), std::string::npos);
  EXPECT_NE(io_error([&] { MappedFile file(folder.path()); }).find("is a directory"), std::string::npos);
  EXPECT_NE(io_error([&] { MappedFile file("/dev/null"); }).find("not a regular file"), std::string::npos);
  TemporaryFolder::write(folder.file("long"), "123456");
  EXPECT_NE(io_error([&] { read_file(folder.file("long"), 5); }).find("6 bytes, at most 5"), std::string::npos);
  EXPECT_EQ(read_file(folder.file("long"), 6), "123456");
}

TEST(AtomicFile, AppearsWholeOrNotAtAll) {
  TemporaryFolder folder;
  TemporaryFolder::write(folder.file("a"), "old");
  {
    AtomicFile file(folder.file("a"));
    file.write("half of the n");
    EXPECT_EQ(TemporaryFolder::read(folder.file("a")), "old");
  }
  EXPECT_EQ(TemporaryFolder::read(folder.file("a")), "old");
  EXPECT_EQ(folder.count(), 1);
  AtomicFile file(folder.file("a"));
  file.write("new ");
  file.write("text");
  file.commit();
  EXPECT_EQ(TemporaryFolder::read(folder.file("a")), "new text");
  EXPECT_EQ(folder.count(), 1);
  EXPECT_FALSE(io_error([&] { file.write("more"); }).empty());
  EXPECT_FALSE(io_error([&] { file.commit(); }).empty());
}

TEST(AtomicFile, ObeysTheUmask) {
  TemporaryFolder folder;
  const mode_t mask = ::umask(022);
  write_file(folder.file("a"), "x");
  ::umask(mask);
  EXPECT_EQ(std::filesystem::status(folder.file("a")).permissions() & std::filesystem::perms::all, std::filesystem::perms(0644));
}

TEST(AtomicFile, FollowsLinksAndWritesDevicesInPlace) {
  TemporaryFolder folder;
  TemporaryFolder::write(folder.file("real"), "old");
  std::filesystem::create_symlink(folder.file("real"), folder.file("link"));
  write_file(folder.file("link"), "new");
  EXPECT_TRUE(std::filesystem::is_symlink(folder.file("link")));
  EXPECT_EQ(TemporaryFolder::read(folder.file("real")), "new");
  write_file("/dev/null", "gone");
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
}

TEST(AtomicFile, NamesPathAndReason) {
  TemporaryFolder folder;
  EXPECT_NE(io_error([&] { write_file(folder.file("no/such/folder"), "x"); }).find("No such file"), std::string::npos);
  EXPECT_NE(io_error([&] { write_file(folder.path(), "x"); }).find("is a directory"), std::string::npos);
  EXPECT_NE(io_error([&] { write_file("", "x"); }).find("empty"), std::string::npos);
  EXPECT_NE(io_error([&] { write_file("/dev/full", "x"); }).find("No space"), std::string::npos);
  EXPECT_EQ(folder.count(), 0);
}

}  // namespace
}  // namespace tilewise
