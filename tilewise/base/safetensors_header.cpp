// SPDX-License-Identifier: Apache-2.0
#include "tilewise/base/safetensors_header.h"

#include <set>
#include <utility>

#include "tilewise/base/error.h"

namespace tilewise {
namespace {

/// Bytes of a valid UTF-8 sequence that starts at text[at], or 0. Overlong forms, surrogates and code points above U+10FFFF are not valid.
size_t utf8_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(at);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || at + length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(at + i) & 0xc0u) != 0x80u) return 0;
  }
  const unsigned second = byte(at + 1);
  const bool bad =
      (lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f) || (lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second > 0x8f);
  return bad ? 0 : length;
}

void append_utf8(std::string& to, uint32_t code) {
  if (code < 0x80) {
    to += static_cast<char>(code);
  } else if (code < 0x800) {
    to += static_cast<char>(0xc0u | (code >> 6));
    to += static_cast<char>(0x80u | (code & 0x3fu));
  } else if (code < 0x10000) {
    to += static_cast<char>(0xe0u | (code >> 12));
    to += static_cast<char>(0x80u | ((code >> 6) & 0x3fu));
    to += static_cast<char>(0x80u | (code & 0x3fu));
  } else {
    to += static_cast<char>(0xf0u | (code >> 18));
    to += static_cast<char>(0x80u | ((code >> 12) & 0x3fu));
    to += static_cast<char>(0x80u | ((code >> 6) & 0x3fu));
    to += static_cast<char>(0x80u | (code & 0x3fu));
  }
}

/// The nesting is fixed (three levels), so the parser calls itself nowhere and no input can exhaust the stack.
class Parser {
 public:
  Parser(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  SafetensorsHeader header() {
    SafetensorsHeader result;
    // Every other reader of the format wants the brace first, without white space.
    if (text_.empty() || text_[0] != '{') bad("the header must begin with '{'");
    object([&](std::string key) {
      if (key == "__metadata__") {
        object([&](std::string name) {
          std::string value = string();
          result.metadata.emplace(std::move(name), std::move(value));
        });
      } else {
        result.entries.push_back(entry(std::move(key)));
      }
    });
    skip_space();
    if (at_ != text_.size()) bad("something follows the closing '}'");
    return result;
  }

 private:
  [[noreturn]] void bad(std::string_view what) const {
    fail(Error::Kind::io, where_, "at byte ", at_, " of the header: ", what, "; the file is damaged or not safetensors");
  }

  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) ++at_;
  }

  bool take(char wanted) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }

  void expect(char wanted) {
    if (!take(wanted)) bad(std::string("expected '") + wanted + "'");
  }

  /// Calls value(key) at each value of an object, and refuses a key that comes twice.
  template <class Value>
  void object(Value&& value) {
    expect('{');
    if (take('}')) return;
    std::set<std::string, std::less<>> seen;
    do {
      skip_space();
      std::string key = string();
      if (!seen.insert(key).second) bad("key " + json_quote(key) + " comes twice");
      expect(':');
      skip_space();
      value(std::move(key));
    } while (take(','));
    expect('}');
  }

  template <class Value>
  void array(Value&& value) {
    expect('[');
    if (take(']')) return;
    do {
      skip_space();
      value();
    } while (take(','));
    expect(']');
  }

  SafetensorsEntry entry(std::string name) {
    SafetensorsEntry result;
    result.name = std::move(name);
    bool has_dtype = false, has_shape = false, has_offsets = false;
    object([&](const std::string& key) {
      if (key == "dtype") {
        result.dtype = string();
        has_dtype = true;
      } else if (key == "shape") {
        array([&] {
          const uint64_t size = number();
          if (size > static_cast<uint64_t>(INT64_MAX)) bad("a size of " + json_quote(result.name) + " is above 2^63 - 1");
          result.shape.push_back(static_cast<int64_t>(size));
        });
        has_shape = true;
      } else if (key == "data_offsets") {
        int count = 0;
        array([&] {
          const uint64_t offset = number();
          if (count == 0) result.begin = offset;
          if (count == 1) result.end = offset;
          ++count;
        });
        if (count != 2) bad("data_offsets of " + json_quote(result.name) + " must be two numbers");
        has_offsets = true;
      } else {
        bad("unknown key " + json_quote(key) + " in " + json_quote(result.name));
      }
    });
    if (!has_dtype || !has_shape || !has_offsets) bad(json_quote(result.name) + " must have dtype, shape and data_offsets");
    return result;
  }

  uint64_t number() {
    const size_t first = at_;
    uint64_t value = 0;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
      const auto digit = static_cast<uint64_t>(text_[at_] - '0');
      if (value > (UINT64_MAX - digit) / 10) bad("a number is above 2^64 - 1");
      value = value * 10 + digit;
      ++at_;
    }
    if (at_ == first) bad("expected digits");
    if (text_[first] == '0' && at_ - first > 1) bad("a number has a leading zero");
    if (at_ < text_.size() && (text_[at_] == '.' || text_[at_] == 'e' || text_[at_] == 'E')) bad("a number is not whole");
    return value;
  }

  uint32_t hex4() {
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i) {
      if (at_ >= text_.size()) bad("the text ends within an escape");
      const char c = text_[at_++];
      const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
      if (digit < 0) bad("\\u needs four hexadecimal digits");
      value = value * 16 + static_cast<uint32_t>(digit);
    }
    return value;
  }

  std::string string() {
    if (at_ >= text_.size() || text_[at_] != '"') bad("expected a string");
    ++at_;
    std::string result;
    while (true) {
      if (at_ >= text_.size()) bad("the text ends within a string");
      const char c = text_[at_];
      if (c == '"') break;
      if (static_cast<unsigned char>(c) < 0x20) bad("a control character stands in a string");
      if (c == '\\') {
        ++at_;
        escape(result);
        continue;
      }
      const size_t length = utf8_length(text_, at_);
      if (length == 0) bad("a string is not valid UTF-8");
      result.append(text_, at_, length);
      at_ += length;
    }
    ++at_;
    return result;
  }

  void escape(std::string& to) {
    if (at_ >= text_.size()) bad("the text ends within an escape");
    const char c = text_[at_++];
    switch (c) {
      case '"':
      case '\\':
      case '/': to += c; return;
      case 'b': to += '\b'; return;
      case 'f': to += '\f'; return;
      case 'n': to += '\n'; return;
      case 'r': to += '\r'; return;
      case 't': to += '\t'; return;
      case 'u': break;
      default: bad("unknown escape");
    }
    uint32_t code = hex4();
    if (code >= 0xdc00 && code <= 0xdfff) bad("half of a surrogate pair");
    if (code >= 0xd800 && code <= 0xdbff) {
      if (text_.substr(at_, 2) != "\\u") bad("half of a surrogate pair");
      at_ += 2;
      const uint32_t low = hex4();
      if (low < 0xdc00 || low > 0xdfff) bad("half of a surrogate pair");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    append_utf8(to, code);
  }

  std::string_view text_;
  const std::string& where_;
  size_t at_ = 0;
};

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view text, const std::string& where) { return Parser(text, where).header(); }

std::string json_quote(std::string_view text) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string result = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      result += '\\';
      result += c;
    } else if (byte < 0x20) {
      result += "\\u00";
      result += kHex[byte >> 4];
      result += kHex[byte & 15];
    } else {
      result += c;
    }
  }
  return result += '"';
}

}  // namespace tilewise
