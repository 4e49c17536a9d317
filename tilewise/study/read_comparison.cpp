// SPDX-License-Identifier: Apache-2.0
// The document of json.cpp read back: what is checked here is what tables and pages rely on.
#include <array>
#include <cmath>

#include "tilewise/base/file.h"
#include "tilewise/infer/strict_json.h"
#include "tilewise/study/comparison.h"

namespace tilewise::study {
namespace {

using infer::Json;
using infer::Object;

constexpr size_t kMostBytes = size_t{64} << 20;  // maps take 3.4 MB, heads 300 bytes each
// What no figure passes: beyond them plots could not be drawn.
constexpr double kMostMs = 1e12, kMostBits = 1e6, kMostShare = 1e3, kMostError = 1e30;
constexpr int64_t kMostCount = int64_t{1} << 53;  // whole numbers that every reader of JSON keeps

/// A field that may be missing: absent and null are the same.
const Json* given(Object& object, const char* name) {
  const Json* value = object.find(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

double number(Object& object, const char* name, double low, double high) {
  const Json* value = given(object, name);
  if (value == nullptr) return kNoFigure;
  check(value->is_number(), Error::Kind::io, object.where(), ": ", name, " is ", infer::shown(*value), "; takes a number or null");
  const double held = value->get<double>();
  check(held >= low && held <= high, Error::Kind::value, object.where(), ": ", name, " is ", infer::shown(*value), "; takes ", low, " to ", high);
  return held;
}
double time(Object& object, const char* name) { return number(object, name, 0, kMostMs); }
double share(Object& object, const char* name) { return number(object, name, 0, kMostShare); }
double bits(Object& object, const char* name) { return number(object, name, -kMostBits, kMostBits); }

std::string text(Object& object, const char* name) { return given(object, name) == nullptr ? std::string() : object.string(name); }
bool flag(Object& object, const char* name) {
  const Json* value = given(object, name);
  if (value == nullptr) return false;
  check(value->is_boolean(), Error::Kind::io, object.where(), ": ", name, " is ", infer::shown(*value), "; takes true or false");
  return value->get<bool>();
}
int64_t whole(Object& object, const char* name, int64_t otherwise) {
  return given(object, name) == nullptr ? otherwise : object.whole(name, 0, kMostCount);
}
std::optional<size_t> index(Object& object, const char* name, size_t size) {
  if (given(object, name) == nullptr) return {};
  return static_cast<size_t>(object.whole(name, 0, static_cast<int64_t>(size) - 1));
}

/// body(item, where) for each item of a list that may be missing.
template <class Body>
void each(Object& object, const char* name, Body&& body) {
  if (given(object, name) == nullptr) return;
  size_t i = 0;
  for (const Json& item : object.array(name)) body(item, object.where() + ": " + name + "[" + std::to_string(i++) + "]");
}

std::vector<uint8_t> bytes_of(Object& object, const char* name, int64_t size) {
  const std::string letters = object.string(name);
  const auto value_of = [](char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
  };
  size_t held = letters.size();
  while (held > 0 && letters.size() - held < 2 && letters[held - 1] == '=') --held;
  bool is_right = letters.size() % 4 == 0 && held * 3 / 4 == static_cast<size_t>(size);
  std::vector<uint8_t> bytes;
  uint32_t word = 0;
  for (size_t i = 0; i < held && is_right; ++i) {
    is_right = value_of(letters[i]) >= 0;
    word = word << 6 | static_cast<uint32_t>(value_of(letters[i]) & 63);
    if (i % 4 != 0) bytes.push_back(static_cast<uint8_t>(word >> (6 - i % 4 * 2)));
  }
  check(is_right, Error::Kind::value, object.where(), ": ", name, " is not ", size, " bytes in base64, one for each cell of map");
  return bytes;
}

HeadMap map_of(const Json& json, const std::string& where, const std::optional<MapShape>& shape) {
  check(shape.has_value(), Error::Kind::io, where, " is there, but the document has no map that says its size");
  Object object(json, where);
  return {bytes_of(object, "mass", shape->cells()), bytes_of(object, "kept", shape->cells()), bytes_of(object, "missed", shape->cells())};
}

std::optional<MapShape> shape_of(Object& root) {
  const Json* json = given(root, "map");
  if (json == nullptr) return {};
  Object object(*json, root.where() + ": map");
  MapShape shape;
  shape.side_q = object.integer("side_q", 1, 4096);
  shape.side_k = object.integer("side_k", 1, 4096);
  shape.cell_q = object.whole("cell_q", 1, kMostCount);
  shape.cell_k = object.whole("cell_k", 1, kMostCount);
  shape.is_triangle = flag(object, "is_triangle");
  check(!shape.is_triangle || shape.side_q == shape.side_k, Error::Kind::value, object.where(), ": is a triangle of ", shape.side_q, " by ",
        shape.side_k, " cells; takes as many queries as keys");
  return shape;
}

std::optional<NeedleFigures> needle_of(Object& owner) {
  const Json* json = given(owner, "needle");
  if (json == nullptr) return {};
  constexpr int kMost = 1 << 30;
  const auto read_counts = [](Object& object, auto& to) {
    to.of = object.integer("of", 0, kMost);
    to.correct = object.integer("correct", 0, to.of);
  };
  Object object(*json, owner.where() + ": needle");
  NeedleFigures needle;
  read_counts(object, needle);
  each(object, "cells", [&](const Json& item, const std::string& where) {
    Object cell(item, where);
    NeedleCell& to = needle.cells.emplace_back();
    to.length = cell.whole("length", 0, kMostCount);
    to.depth = number(cell, "depth", 0, 1);
    read_counts(cell, to);
  });
  return needle;
}

OptionValues options_of(Object& owner) {
  OptionValues options;
  if (const Json* json = given(owner, "options")) {
    check(json->is_object(), Error::Kind::io, owner.where(), ": options is ", infer::shown(*json), "; takes an object");
    for (const auto& [name, value] : json->items()) options[name] = infer::option_of(value, owner.where() + ": option " + name);
  }
  return options;
}

InputFigures input_of(Object object) {
  InputFigures input;
  input.model = text(object, "model");
  input.qkv = text(object, "qkv");
  each(object, "texts", [&](const Json& item, const std::string& where) {
    Object one(item, where);
    input.texts.push_back({one.string("path"), whole(one, "bytes", 0)});
  });
  input.length = object.whole("length", 0, kMostCount);
  input.length_k = whole(object, "length_k", input.length);
  input.batch = whole(object, "batch", 1);
  if (given(object, "mask") != nullptr) input.mask = object.string("mask");
  input.is_mask_assumed = flag(object, "is_mask_assumed");
  if (given(object, "dtype") != nullptr) input.dtype = object.string("dtype");
  if (given(object, "needle_lengths") != nullptr) {
    each(object, "needle_lengths",
         [&](const Json& item, const std::string& where) { input.needle_lengths.push_back(Object::whole_of(item, where, 0, kMostCount)); });
  } else if (given(object, "needle_length") != nullptr) {
    input.needle_lengths.push_back(object.whole("needle_length", 0, kMostCount));
  }
  input.num_layers = object.integer("num_layers", 0, 1 << 20);
  input.heads_q = object.integer("heads_q", 0, 1 << 20);
  input.heads_kv = object.integer("heads_kv", 0, 1 << 20);
  input.head_dim = object.integer("head_dim", 0, 1 << 20);
  if (const Json* reads = object.find("reads")) {
    const std::string kind = reads->is_null() ? "null" : object.string("reads");
    using Reads = InputFigures::Reads;
    const std::array<std::pair<const char*, Reads>, 4> kinds{
        {{"bytes", Reads::bytes}, {"text", Reads::text}, {"tokens", Reads::tokens}, {"null", Reads::other}}};
    bool is_known = false;
    for (const auto& [name, value] : kinds) {
      if (kind != name) continue;
      is_known = true;
      if (input.has_model()) input.reads = value;
    }
    check(is_known, Error::Kind::value, object.where(), ": reads is ", infer::shown(*reads), "; takes bytes, text, tokens or null");
  }
  return input;
}

MethodFigures method_of(const Json& json, const std::string& where, const std::optional<MapShape>& shape) {
  Object object(json, where);
  MethodFigures row;
  row.name = object.string("name");
  row.label = object.string("label");
  row.options = options_of(object);
  row.density = share(object, "density");
  row.allowed_density = share(object, "allowed_density");
  row.recall = share(object, "recall");
  row.output_error = number(object, "output_error", 0, kMostError);
  row.bits_per_byte = bits(object, "bits_per_byte");
  row.bits_per_token = bits(object, "bits_per_token");
  row.max_extra_bits = bits(object, "max_extra_bits");
  row.plan_ms = time(object, "plan_ms");
  row.attend_ms = time(object, "attend_ms");
  row.total_ms = time(object, "total_ms");
  row.dense_attend_ms = time(object, "dense_attend_ms");
  row.model_ms = time(object, "model_ms");
  row.speedup = number(object, "speedup", 0, kMostMs);
  row.peak_bytes = static_cast<size_t>(whole(object, "peak_bytes", 0));
  row.needle = needle_of(object);
  row.is_baseline = flag(object, "is_baseline");
  row.refused = text(object, "refused");
  row.backend = text(object, "backend");
  each(object, "heads", [&](const Json& item, const std::string& at) {
    Object one(item, at);
    HeadFigures& head = row.heads.emplace_back();
    head.layer = one.integer("layer", 0, 1 << 20);
    head.head = one.integer("head", 0, 1 << 20);
    head.density = share(one, "density");
    head.allowed_density = share(one, "allowed_density");
    head.recall = share(one, "recall");
    head.output_error = number(one, "output_error", 0, kMostError);
    if (const Json* map = given(one, "map")) head.map = map_of(*map, at + ": map", shape);
  });
  each(object, "texts", [&](const Json& item, const std::string& at) {
    Object one(item, at);
    row.texts.push_back({one.string("name"), bits(one, "bits_per_byte"), bits(one, "dense_bits_per_byte"), bits(one, "bits_per_token"),
                         bits(one, "dense_bits_per_token")});
  });
  each(object, "worst_tiles", [&](const Json& item, const std::string& at) {
    Object one(item, at);
    WorstTile& tile = row.worst_tiles.emplace_back();
    tile.layer = one.integer("layer", 0, 1 << 20);
    tile.head = one.integer("head", 0, 1 << 20);
    const auto range = [&](const char* name, int64_t& first, int64_t& last) {
      const Json& pair = one.array(name);
      check(pair.size() == 2, Error::Kind::value, at, ": ", name, " is ", infer::shown(pair), "; takes two numbers, the first and one past the last");
      first = Object::whole_of(pair[0], at + ": " + name, 0, kMostCount);
      last = Object::whole_of(pair[1], at + ": " + name, first, kMostCount);
    };
    range("queries", tile.first_q, tile.last_q);
    range("keys", tile.first_k, tile.last_k);
    tile.missed = share(one, "missed");
  });
  each(object, "notes", [&](const Json& item, const std::string& at) {
    check(item.is_string(), Error::Kind::io, at, " is ", infer::shown(item), "; takes a string");
    row.notes.push_back(item.get<std::string>());
  });
  return row;
}

std::optional<TuneFigures> tune_of(Object& root) {
  const Json* json = given(root, "tune");
  if (json == nullptr) return {};
  Object object(*json, root.where() + ": tune");
  TuneFigures tune;
  tune.text = object.string("text");
  each(object, "curves", [&](const Json& item, const std::string& where) {
    Object one(item, where);
    TuneCurve& curve = tune.curves.emplace_back();
    curve.name = one.string("name");
    each(one, "points", [&](const Json& json_point, const std::string& at) {
      Object of_point(json_point, at);
      TunePoint& point = curve.points.emplace_back();
      point.options = options_of(of_point);
      point.label = of_point.string("label");
      point.density = share(of_point, "density");
      point.excess = number(of_point, "excess", -kMostBits, kMostError);
      point.cost_ms = time(of_point, "cost_ms");
      point.plan_ms = time(of_point, "plan_ms");
      point.attend_ms = time(of_point, "attend_ms");
      point.refused = text(of_point, "refused");
      const std::string outcome = of_point.string("outcome");
      using Outcome = TunePoint::Outcome;
      check(outcome == "within" || outcome == "over" || outcome == "slow" || outcome == "refused", Error::Kind::value, at, ": outcome is \"", outcome,
            "\"; takes within, over, slow or refused");
      point.outcome = outcome == "within" ? Outcome::within
                      : outcome == "over" ? Outcome::over
                      : outcome == "slow" ? Outcome::slow
                                          : Outcome::refused;
    });
    curve.chosen = index(one, "chosen", curve.points.size());
    curve.is_within = flag(one, "is_within");
  });
  return tune;
}

Comparison comparison_of(const Json& json, const std::string& where) {
  Object root(json, where);
  const int64_t schema = root.whole("schema", 0, INT32_MAX);
  check(schema == 1, Error::Kind::io, where, ": schema ", schema, " is not known; this version reads 1");
  Comparison comparison;
  comparison.environment = {root.string("version"), text(root, "commit"),  text(root, "device"),
                            text(root, "command"),  text(root, "created"), static_cast<int>(std::min(whole(root, "threads", 0), int64_t{1} << 20))};
  comparison.input = input_of(Object(root.get("input"), where + ": input"));
  Object verdict(root.get("verdict"), where + ": verdict");
  const auto read_bound = [&](const char* name, double& bound) {
    const double held = number(verdict, name, 0, kMostBits);
    if (!std::isnan(held)) bound = held;
  };
  read_bound("max_bits", comparison.max_bits);
  read_bound("max_error", comparison.max_error);
  comparison.map = shape_of(root);
  Object dense(root.get("dense"), where + ": dense");
  comparison.dense.attend_ms = time(dense, "attend_ms");
  check(!std::isnan(comparison.dense.attend_ms), Error::Kind::io, dense.where(), ": attend_ms is missing");
  comparison.dense.model_ms = time(dense, "model_ms");
  comparison.dense.bits_per_byte = bits(dense, "bits_per_byte");
  comparison.dense.bits_per_token = bits(dense, "bits_per_token");
  comparison.dense.needle = needle_of(dense);
  comparison.dense.peak_bytes = static_cast<size_t>(whole(dense, "peak_bytes", 0));
  comparison.dense.backend = text(dense, "backend");
  root.array("methods");
  each(root, "methods", [&](const Json& item, const std::string& at) { comparison.methods.push_back(method_of(item, at, comparison.map)); });
  comparison.tune = tune_of(root);
  return comparison;
}

}  // namespace
}  // namespace tilewise::study

TILEWISE_BEGIN_PUBLIC

Comparison parse_comparison(std::string_view text, const std::string& where) { return study::comparison_of(infer::parse_strict(text, where), where); }

Comparison read_comparison(const std::string& path) { return parse_comparison(read_file(path, study::kMostBytes), path); }

TILEWISE_END_PUBLIC
