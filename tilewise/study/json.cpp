// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "tilewise/study/comparison.h"

namespace tilewise::study {
namespace {

using Json = nlohmann::ordered_json;

/// JSON has neither NaN nor infinity.
Json number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

std::string base64(const std::vector<uint8_t>& bytes) {
  constexpr char kLetters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t held = std::min<size_t>(3, bytes.size() - i);
    uint32_t word = 0;
    for (size_t j = 0; j < 3; ++j) word = word << 8 | (j < held ? bytes[i + j] : 0u);
    for (size_t j = 0; j < 4; ++j) text += j <= held ? kLetters[word >> (18 - 6 * j) & 63u] : '=';
  }
  return text;
}

Json map(const HeadMap& map) {
  if (!map.has_value()) return nullptr;
  return {{"mass", base64(map.mass)}, {"kept", base64(map.kept)}, {"missed", base64(map.missed)}};
}

Json needle(const std::optional<NeedleFigures>& figures) {
  if (!figures) return nullptr;
  Json cells = Json::array();
  for (const NeedleCell& cell : figures->cells) {
    cells.push_back({{"length", cell.length}, {"depth", cell.depth}, {"correct", cell.correct}, {"of", cell.of}});
  }
  return {{"correct", figures->correct}, {"of", figures->of}, {"cells", std::move(cells)}};
}

Json peak(size_t bytes) { return bytes == 0 ? Json(nullptr) : Json(bytes); }

Json reads(const InputFigures& input) {
  if (!input.has_bits()) return nullptr;
  return input.reads == InputFigures::Reads::bytes ? "bytes" : input.reads == InputFigures::Reads::text ? "text" : "tokens";
}

Json options(const OptionValues& values) {
  Json object = Json::object();
  for (const auto& [name, value] : values) std::visit([&, key = name](const auto& held) { object[key] = held; }, value);
  return object;
}

Json method(const MethodFigures& row) {
  Json heads = Json::array();
  for (const HeadFigures& head : row.heads) {
    heads.push_back({{"layer", head.layer},
                     {"head", head.head},
                     {"density", number(head.density)},
                     {"allowed_density", number(head.allowed_density)},
                     {"recall", number(head.recall)},
                     {"output_error", number(head.output_error)},
                     {"map", map(head.map)}});
  }
  Json texts = Json::array();
  for (const TextFigures& text : row.texts) {
    texts.push_back({{"name", text.name},
                     {"bits_per_byte", number(text.bits_per_byte)},
                     {"dense_bits_per_byte", number(text.dense_bits_per_byte)},
                     {"bits_per_token", number(text.bits_per_token)},
                     {"dense_bits_per_token", number(text.dense_bits_per_token)}});
  }
  Json worst = Json::array();
  for (const WorstTile& tile : row.worst_tiles) {
    worst.push_back({{"layer", tile.layer},
                     {"head", tile.head},
                     {"queries", {tile.first_q, tile.last_q}},
                     {"keys", {tile.first_k, tile.last_k}},
                     {"missed", number(tile.missed)}});
  }
  const bool is_refused = row.is_refused();
  return {{"name", row.name},
          {"options", options(row.options)},
          {"label", row.label},
          {"density", number(row.density)},
          {"allowed_density", number(row.allowed_density)},
          {"recall", number(row.recall)},
          {"output_error", number(row.output_error)},
          {"bits_per_byte", number(row.bits_per_byte)},
          {"bits_per_token", number(row.bits_per_token)},
          {"max_extra_bits", number(row.max_extra_bits)},
          {"plan_ms", number(row.plan_ms)},
          {"attend_ms", number(row.attend_ms)},
          {"total_ms", number(row.total_ms)},
          {"dense_attend_ms", number(row.dense_attend_ms)},
          {"model_ms", number(row.model_ms)},
          {"speedup", number(row.speedup)},
          {"peak_bytes", is_refused ? Json(nullptr) : peak(row.peak_bytes)},
          {"needle", needle(row.needle)},
          {"is_baseline", row.is_baseline},
          {"refused", is_refused ? Json(row.refused) : Json(nullptr)},
          {"backend", is_refused ? Json(nullptr) : Json(row.backend)},
          {"heads", std::move(heads)},
          {"texts", std::move(texts)},
          {"worst_tiles", std::move(worst)},
          {"notes", row.notes}};
}

const char* outcome_name(TunePoint::Outcome outcome) {
  switch (outcome) {
    case TunePoint::Outcome::within: return "within";
    case TunePoint::Outcome::over: return "over";
    case TunePoint::Outcome::slow: return "slow";
    case TunePoint::Outcome::refused: break;
  }
  return "refused";
}

Json tune(const Comparison& comparison) {
  if (!comparison.tune) return nullptr;
  Json curves = Json::array();
  for (const TuneCurve& curve : comparison.tune->curves) {
    Json points = Json::array();
    for (const TunePoint& point : curve.points) {
      points.push_back({{"options", options(point.options)},
                        {"label", point.label},
                        {"density", number(point.density)},
                        {"excess", number(point.excess)},
                        {"cost_ms", number(point.cost_ms)},
                        {"plan_ms", number(point.plan_ms)},
                        {"attend_ms", number(point.attend_ms)},
                        {"total_ms", number(point.total_ms())},
                        {"outcome", outcome_name(point.outcome)},
                        {"refused", point.refused.empty() ? Json(nullptr) : Json(point.refused)}});
    }
    curves.push_back({{"name", curve.name},
                      {"chosen", curve.chosen ? Json(*curve.chosen) : Json(nullptr)},
                      {"is_within", curve.is_within},
                      {"points", std::move(points)}});
  }
  return {{"text", comparison.tune->text}, {"bound", number(comparison.bound())}, {"curves", std::move(curves)}};
}

Json map_shape(const std::optional<MapShape>& shape) {
  if (!shape) return nullptr;
  return {{"side_q", shape->side_q},
          {"side_k", shape->side_k},
          {"cell_q", shape->cell_q},
          {"cell_k", shape->cell_k},
          {"is_triangle", shape->is_triangle}};
}

}  // namespace
}  // namespace tilewise::study

TILEWISE_BEGIN_PUBLIC

std::string to_json(const Comparison& comparison) {
  using study::Json;
  const InputFigures& in = comparison.input;
  Json texts = Json::array();
  for (const InputFigures::Text& text : in.texts) texts.push_back({{"path", text.path}, {"bytes", text.bytes}});
  Json rows = Json::array();
  for (const MethodFigures& row : comparison.methods) rows.push_back(study::method(row));
  const Verdict verdict = verdict_of(comparison);
  const Json document = {{"schema", 1},
                         {"version", comparison.environment.version},
                         {"commit", comparison.environment.commit},
                         {"device", comparison.environment.device},
                         {"threads", comparison.environment.threads},
                         {"created", comparison.environment.created},
                         {"command", comparison.environment.command},
                         {"input",
                          {{"model", in.has_model() ? Json(in.model) : Json(nullptr)},
                           {"qkv", in.has_model() ? Json(nullptr) : Json(in.qkv)},
                           {"texts", std::move(texts)},
                           {"length", in.length},
                           {"length_k", in.length_k},
                           {"batch", in.batch},
                           {"mask", in.mask},
                           {"is_mask_assumed", in.is_mask_assumed},
                           {"dtype", in.dtype},
                           {"reads", study::reads(in)},
                           {"needle_length", in.needle_lengths.empty() ? Json(nullptr) : Json(in.needle_lengths.front())},
                           {"needle_lengths", in.needle_lengths},
                           {"num_layers", in.num_layers},
                           {"heads_q", in.heads_q},
                           {"heads_kv", in.heads_kv},
                           {"head_dim", in.head_dim}}},
                         {"verdict",
                          {{"text", verdict.text},
                           {"best", verdict.best ? Json(*verdict.best) : Json(nullptr)},
                           {"max_bits", study::number(comparison.max_bits)},
                           {"max_error", in.has_bits() ? Json(nullptr) : study::number(comparison.max_error)}}},
                         {"dense",
                          {{"attend_ms", study::number(comparison.dense.attend_ms)},
                           {"model_ms", study::number(comparison.dense.model_ms)},
                           {"bits_per_byte", study::number(comparison.dense.bits_per_byte)},
                           {"bits_per_token", study::number(comparison.dense.bits_per_token)},
                           {"needle", study::needle(comparison.dense.needle)},
                           {"peak_bytes", study::peak(comparison.dense.peak_bytes)},
                           {"backend", comparison.dense.backend}}},
                         {"methods", std::move(rows)},
                         {"tune", study::tune(comparison)},
                         {"map", study::map_shape(comparison.map)}};
  // Paths may hold any bytes; what is not UTF-8 becomes U+FFFD.
  return document.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

TILEWISE_END_PUBLIC
