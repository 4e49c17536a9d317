// SPDX-License-Identifier: Apache-2.0
#include "app/method_list.h"

#include "tilewise/methods/registry.h"

namespace tilewise::app {
namespace {

struct Piece {
  std::string name, options;
};

std::vector<Piece> pieces_of(const std::string& part) {
  std::vector<Piece> pieces;
  size_t begin = 0;
  while (begin <= part.size()) {
    const size_t comma = std::min(part.find(',', begin), part.size());
    const std::string text = part.substr(begin, comma - begin);
    begin = comma + 1;
    const size_t colon = text.find(':');
    const size_t equals = text.find('=');
    if (equals != std::string::npos && (colon == std::string::npos || equals < colon)) {
      check(!pieces.empty(), Error::Kind::value, "--methods ", part, ": ", text, " comes before any method; write name:option=value");
      Piece& last = pieces.back();
      last.options += (last.options.empty() ? "" : ",") + text;
      continue;
    }
    check(!text.empty() && colon != 0, Error::Kind::value, "--methods \"", part, "\" has a method without a name; write name,name:option=value");
    pieces.push_back({text.substr(0, colon), colon == std::string::npos ? "" : text.substr(colon + 1)});
  }
  return pieces;
}

}  // namespace

std::vector<MethodChoice> parse_method_list(const std::vector<std::string>& parts) {
  std::vector<MethodChoice> choices;
  for (const std::string& part : parts) {
    for (const Piece& piece : pieces_of(part)) {
      if (piece.name == "all") {
        check(piece.options.empty(), Error::Kind::value, "--methods all takes no options; name the method that is meant");
        for (const MethodInfo& info : methods()) {
          if (info.name != "dense") choices.push_back({info.name, {}});
        }
        continue;
      }
      choices.push_back({piece.name, parse_options(piece.name, piece.options)});
    }
  }
  return choices;
}

}  // namespace tilewise::app
