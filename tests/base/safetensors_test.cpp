// SPDX-License-Identifier: Apache-2.0
#include "tilewise/base/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "temporary_folder.h"

namespace tilewise {
namespace {

std::string with_length(const std::string& header, const std::string& data) {
  uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + header + data;
}

/// The message of the Error::Kind::io that opening `bytes` as a file must end in; empty when it opens.
std::string refusal(const TemporaryFolder& folder, const std::string& bytes) {
  const std::string path = folder.file("case.safetensors");
  TemporaryFolder::write(path, bytes);
  try {
    SafetensorsFile file(path);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::io) << error.what();
    EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
    return error.what();
  }
  return {};
}

TEST(Safetensors, RoundTripsEveryDtype) {
  TemporaryFolder folder;
  std::mt19937 random(7);
  const Dtype dtypes[] = {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::f16, Dtype::i8, Dtype::u8, Dtype::i32, Dtype::i64, Dtype::u64, Dtype::boolean};
  std::vector<Tensor> tensors;
  std::vector<NamedTensor> named;
  for (const Dtype dtype : dtypes) {
    tensors.emplace_back(host_memory(), dtype, Shape{3, 1, 5});
    auto* bytes = static_cast<uint8_t*>(tensors.back().view.raw());
    for (size_t i = 0; i < 15 * size_of(dtype); ++i) bytes[i] = static_cast<uint8_t>(dtype == Dtype::boolean ? random() & 1u : random());
    named.push_back({"x." + std::string(name(dtype)), tensors.back().view});
  }
  Tensor empty(host_memory(), Dtype::f32, Shape{0, 4});
  named.push_back({"empty", empty.view});
  const SafetensorsMetadata metadata = {{"format", "pt"}, {"odd \"\\\n key", "tab\t\x01 \xc3\xa9 \xf0\x9f\x98\x80"}};
  write_safetensors(folder.file("a"), named, metadata);
  write_safetensors(folder.file("b"), named, metadata);
  EXPECT_EQ(TemporaryFolder::read(folder.file("a")), TemporaryFolder::read(folder.file("b")));

  const SafetensorsFile file(folder.file("a"));
  EXPECT_EQ(file.metadata(), metadata);
  EXPECT_EQ(file.entries().size(), named.size());
  for (const NamedTensor& tensor : named) {
    const TensorView view = file.view(tensor.name);
    EXPECT_EQ(view.shape(), tensor.view.shape());
    EXPECT_EQ(view.dtype(), tensor.view.dtype());
    const size_t bytes = static_cast<size_t>(view.numel()) * size_of(view.dtype());
    const Tensor copy = file.load(tensor.name, view.dtype(), view.shape(), host_memory());
    if (bytes > 0) {
      EXPECT_EQ(std::memcmp(view.raw(), tensor.view.raw(), bytes), 0);
      EXPECT_EQ(std::memcmp(copy.view.raw(), tensor.view.raw(), bytes), 0);
    }
  }
}

TEST(Safetensors, ReadsWhatOtherWritersWrite) {
  TemporaryFolder folder;
  // White space, escapes, a scalar, an order that is not that of the data, a dtype that cannot be read, and places that are not aligned.
  const std::string header = "{ \"b\\u00e9\\ud83d\\ude00\\/\" :\n{\"shape\":[ ],\"data_offsets\":[ 1 , 5 ],\"dtype\":\"F32\"},\t"
                             "\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[1,1,1,1,1,1],\"data_offsets\":[0,1]},\"__metadata__\":{}}   ";
  float value = 3.5f;
  std::string data(5, '\0');
  std::memcpy(data.data() + 1, &value, 4);
  for (int pad = 0; pad < 4; ++pad) {
    TemporaryFolder::write(folder.file("a"), with_length(header + std::string(static_cast<size_t>(pad), ' '), data));
    const SafetensorsFile file(folder.file("a"));
    ASSERT_EQ(file.entries().size(), 2u);
    EXPECT_EQ(file.entries()[0].name, "a");
    EXPECT_EQ(file.entries()[0].shape.size(), 6u);
    EXPECT_THROW(file.view("a"), Error);
    const std::string odd = "b\xc3\xa9\xf0\x9f\x98\x80/";
    ASSERT_NE(file.find(odd), nullptr);
    EXPECT_EQ(file.load(odd, host_memory()).view.at<float>(0), value);
    int aligned = 0;
    try {
      EXPECT_EQ(file.view(odd).at<float>(0), value);
      ++aligned;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), Error::Kind::io);
    }
    EXPECT_EQ(aligned, (header.size() + static_cast<size_t>(pad) + 1) % 4 == 0 ? 1 : 0);
  }
}

TEST(Safetensors, RefusesEachFault) {
  TemporaryFolder folder;
  const std::string four(4, '\0'), eight(8, '\0');
  const std::string good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  ASSERT_EQ(refusal(folder, with_length(good, eight)), "");
  const auto tensor = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
  };
  struct Case {
    std::string bytes;
    const char* message;
  };
  std::string huge_length = with_length(good, eight);
  huge_length.replace(0, 8, std::string(8, '\xff'));
  std::string long_length = with_length(good, eight);
  long_length[0] = static_cast<char>(good.size() + 9);
  const std::string many = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":)";
  const Case cases[] = {
      {"", "too few"},
      {"1234567", "too few"},
      {huge_length, "at most 100000000"},
      {long_length, "cut short"},
      {with_length("", ""), "begin with '{'"},
      {with_length(" " + good, eight), "begin with '{'"},
      {with_length("[]", ""), "begin with '{'"},
      {with_length("{", ""), "expected a string"},
      {with_length("{}", "x"), "follow the last tensor"},
      {with_length("{}x", ""), "follows the closing"},
      {with_length("{}{}", ""), "follows the closing"},
      {with_length(std::string("{}\0", 3), ""), "follows the closing"},
      {with_length(good.substr(0, good.size() - 1), eight), "expected '}'"},
      {with_length(good + ",", eight), "follows the closing"},
      {with_length(R"({"a":1})", ""), "expected '{'"},
      {with_length(R"({"a":{}})", ""), "must have dtype"},
      {with_length(R"({"a":{"dtype":"F32","shape":[2]}})", eight), "must have dtype"},
      {with_length(R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", eight), "must have dtype"},
      {with_length(R"({"a":{"shape":[2],"data_offsets":[0,8]}})", eight), "must have dtype"},
      {with_length(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1}})", eight), "unknown key"},
      {with_length(R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", eight), "comes twice"},
      {with_length(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})", eight),
       "comes twice"},
      {with_length(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"\u0061":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})", eight),
       "comes twice"},
      {with_length(R"({"__metadata__":{"k":"1","k":"2"}})", ""), "comes twice"},
      {with_length(R"({"__metadata__":{"k":1}})", ""), "expected a string"},
      {with_length(R"({"__metadata__":{},"__metadata__":{}})", ""), "comes twice"},
      {with_length(tensor("\"F33\"", "[2]", "[0,8]"), eight), "unknown dtype"},
      {with_length(tensor("\"f32\"", "[2]", "[0,8]"), eight), "unknown dtype"},
      {with_length(tensor("1", "[2]", "[0,8]"), eight), "expected a string"},
      {with_length(tensor("\"F32\"", "2", "[0,8]"), eight), "expected '['"},
      {with_length(tensor("\"F32\"", "[-2]", "[0,8]"), eight), "expected digits"},
      {with_length(tensor("\"F32\"", "[2.0]", "[0,8]"), eight), "not whole"},
      {with_length(tensor("\"F32\"", "[2e0]", "[0,8]"), eight), "not whole"},
      {with_length(tensor("\"F32\"", "[02]", "[0,8]"), eight), "leading zero"},
      {with_length(tensor("\"F32\"", "[2,]", "[0,8]"), eight), "expected digits"},
      {with_length(tensor("\"F32\"", "[2 1]", "[0,8]"), eight), "expected ']'"},
      {with_length(tensor("\"F32\"", "[18446744073709551616]", "[0,8]"), eight), "above 2^64"},
      {with_length(tensor("\"F32\"", "[9223372036854775808]", "[0,8]"), eight), "above 2^63"},
      {with_length(tensor("\"F32\"", "[4294967296,4294967296,4294967296]", "[0,8]"), eight), "can be counted"},
      {with_length(tensor("\"F32\"", "[0,4294967296,4294967296,4294967296]", "[0,0]"), ""), "can be counted"},
      {with_length(tensor("\"F32\"", "[4611686018427387906]", "[0,8]"), eight), "can be counted"},
      {with_length(tensor("\"F32\"", "[2]", "[0]"), eight), "two numbers"},
      {with_length(tensor("\"F32\"", "[2]", "[0,8,8]"), eight), "two numbers"},
      {with_length(tensor("\"F32\"", "[2]", "[]"), eight), "two numbers"},
      {with_length(tensor("\"F32\"", "[2]", "[8,0]"), eight), "not within"},
      {with_length(tensor("\"F32\"", "[2]", "[0,16]"), eight), "not within"},
      {with_length(tensor("\"F32\"", "[2]", "[8,16]"), eight), "not within"},
      {with_length(tensor("\"F32\"", "[2]", "[18446744073709551608,18446744073709551615]"), eight), "not within"},
      {with_length(tensor("\"F32\"", "[2]", "[0,8]"), four), "not within"},
      {with_length(tensor("\"F32\"", "[1]", "[0,8]"), eight), "need 4 bytes"},
      {with_length(tensor("\"F32\"", "[0]", "[0,8]"), eight), "need 0 bytes"},
      {with_length(tensor("\"F32\"", "[]", "[0,8]"), eight), "need 4 bytes"},
      {with_length(tensor("\"F32\"", "[1]", "[4,8]"), eight), "belong to no tensor"},
      {with_length(tensor("\"F32\"", "[1]", "[0,4]"), eight), "follow the last tensor"},
      {with_length(many + "[2,6]}}", eight), "overlap"},
      {with_length(many + "[0,4]}}", eight), "overlap"},
      {with_length(many + "[5,9]}}", eight + "x"), "belong to no tensor"},
      {with_length(good, eight + "x"), "follow the last tensor"},
      {with_length("{\"a\nb\":{}}", ""), "control character"},
      {with_length("{\"\\x\":{}}", ""), "unknown escape"},
      {with_length("{\"\\u12\":{}}", ""), "hexadecimal"},
      {with_length("{\"\\ud800\":{}}", ""), "surrogate"},
      {with_length("{\"\\ud800\\u0041\":{}}", ""), "surrogate"},
      {with_length("{\"\\udc00\":{}}", ""), "surrogate"},
      {with_length("{\"\\", ""), "ends within an escape"},
      {with_length("{\"\\u00", ""), "ends within an escape"},
      {with_length("{\"a", ""), "ends within a string"},
      {with_length("{\"\xff\":{}}", ""), "not valid UTF-8"},
      {with_length("{\"\xc0\x80\":{}}", ""), "not valid UTF-8"},
      {with_length("{\"\xe0\x80\x80\":{}}", ""), "not valid UTF-8"},
      {with_length("{\"\xed\xa0\x80\":{}}", ""), "not valid UTF-8"},
      {with_length("{\"\xf4\x90\x80\x80\":{}}", ""), "not valid UTF-8"},
      {with_length("{\"\xe2\x82\":{}}", ""), "not valid UTF-8"},
      {with_length("{'a':{}}", ""), "expected a string"},
      {with_length("{\"a\" {}}", ""), "expected ':'"},
      {with_length("{\"a\":{},}", ""), "must have dtype"},
      {with_length(R"({"__metadata__":{},})", ""), "expected a string"},
      {with_length(R"({"__metadata__":null})", ""), "expected '{'"},
      {with_length("{// no comments\n}", ""), "expected a string"},
      {with_length(std::string(100000, '{'), ""), "expected a string"},
  };
  for (const Case& c : cases) {
    const std::string message = refusal(folder, c.bytes);
    EXPECT_NE(message.find(c.message), std::string::npos) << "'" << message << "' should say '" << c.message << "' for " << c.bytes.substr(8, 90);
  }
}

TEST(Safetensors, AnyMutationOpensOrIsRefused) {
  TemporaryFolder folder;
  Tensor a(host_memory(), Dtype::f32, {2, 3}), b(host_memory(), Dtype::bf16, {5}), c(host_memory(), Dtype::boolean, {3});
  a.fill_zero(), b.fill_zero(), c.fill_zero();
  const std::vector<NamedTensor> named = {{"a", a.view}, {"b", b.view}, {"c", c.view}};
  write_safetensors(folder.file("good"), named, {{"note", "x"}});
  const std::string good = TemporaryFolder::read(folder.file("good"));
  const size_t header_end = good.find('}', good.rfind("data_offsets")) + 2;

  for (size_t length = 0; length < good.size(); ++length) EXPECT_NE(refusal(folder, good.substr(0, length)), "") << "cut to " << length;
  std::mt19937 random(11);
  int refused = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string bytes = good;
    const int edits = 1 + static_cast<int>(random() % 3);
    for (int i = 0; i < edits; ++i) {
      const size_t at = random() % header_end;
      switch (random() % 4) {
        case 0: bytes[at] = static_cast<char>(random()); break;
        case 1: bytes[at] = "{}[]\",:0123456789\\u"[random() % 19]; break;
        case 2: bytes.erase(at, 1 + random() % 4); break;
        default: bytes.insert(at, 1, "{}[]\",:0123456789 "[random() % 18]); break;
      }
    }
    const std::string message = refusal(folder, bytes);
    if (!message.empty()) {
      ++refused;
      continue;
    }
    // What opens must be readable to its last byte (the sanitizers watch).
    const SafetensorsFile file(folder.file("case.safetensors"));
    for (const SafetensorsEntry& entry : file.entries()) {
      try {
        file.load(entry.name, host_memory());
      } catch (const Error&) {
      }
    }
  }
  EXPECT_GT(refused, 3000);
}

TEST(Safetensors, ReadingNamesTheFault) {
  TemporaryFolder folder;
  Tensor a(host_memory(), Dtype::f32, {2, 3});
  a.fill_zero();
  write_safetensors(folder.file("a"), std::vector<NamedTensor>{{"a", a.view}});
  const SafetensorsFile file(folder.file("a"));
  EXPECT_EQ(file.find("b"), nullptr);
  const auto message = [](auto&& call) -> std::string {
    try {
      call();
    } catch (const Error& error) {
      return std::string(name(error.kind())) + ": " + error.what();
    }
    return "no error";
  };
  EXPECT_NE(message([&] { file.view("b"); }).find("there is no tensor \"b\""), std::string::npos);
  const std::string wrong = message([&] { file.load("a", Dtype::f32, {3, 2}, host_memory()); });
  EXPECT_NE(wrong.find("is f32 [2, 3], must be f32 [3, 2]"), std::string::npos) << wrong;
  EXPECT_EQ(wrong.substr(0, 3), "io:");
  EXPECT_EQ(message([&] { file.load("a", Dtype::bf16, {2, 3}, host_memory()); }).substr(0, 3), "io:");

  const std::string boolean =
      R"({"a":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]},"s":{"dtype":"U8","shape":[1,1,1,1,1,1],"data_offsets":[1,2]},)"
      R"("w":{"dtype":"U16","shape":[1],"data_offsets":[2,4]}})";
  TemporaryFolder::write(folder.file("b"), with_length(boolean, "\x02\x01\x01\x01"));
  const SafetensorsFile odd(folder.file("b"));
  EXPECT_NE(message([&] { odd.view("a"); }).find("neither 0 nor 1"), std::string::npos);
  EXPECT_EQ(message([&] { odd.view("s"); }).substr(0, 6), "shape:");
  EXPECT_EQ(message([&] { odd.load("w", host_memory()); }).substr(0, 6), "dtype:");
}

TEST(Safetensors, WritingRefusesWhatCannotBeReadBack) {
  TemporaryFolder folder;
  Tensor a(host_memory(), Dtype::f32, {2, 3});
  a.fill_zero();
  const auto kind = [&](const std::vector<NamedTensor>& tensors, const SafetensorsMetadata& metadata = {}) {
    try {
      write_safetensors(folder.file("a"), tensors, metadata);
    } catch (const Error& error) {
      return std::string(name(error.kind()));
    }
    return std::string("none");
  };
  EXPECT_EQ(kind({{"a", a.view}, {"a", a.view}}), "value");
  EXPECT_EQ(kind({{"__metadata__", a.view}}), "value");
  EXPECT_EQ(kind({{"a\xff", a.view}}), "value");
  EXPECT_EQ(kind({{"a", a.view}}, {{"k", "\xff"}}), "value");
  EXPECT_EQ(kind({{"a", {}}}), "unsupported");
  EXPECT_EQ(kind({{"a", a.view.permute({1, 0})}}), "unsupported");
  EXPECT_EQ(folder.count(), 0);
  EXPECT_EQ(kind({}), "none");
  EXPECT_EQ(SafetensorsFile(folder.file("a")).entries().size(), 0u);
}

}  // namespace
}  // namespace tilewise
