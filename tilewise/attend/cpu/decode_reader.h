// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "tilewise/attend/cpu/decode_strip.h"
#include "tilewise/attend/decode_problem.h"

// Finds the rows of keys and values that a strip reads.
namespace tilewise::attend::cpu {

inline int64_t padded(int64_t channels) { return (channels + kDecodePad - 1) / kDecodePad * kDecodePad; }

inline DecodeKind kind_of(const Store& store) {
  if (store.is_quantised) {
    const bool is_by_key = store.group.channels >= store.channels;
    return store.is_int4 ? (is_by_key ? DecodeKind::i4 : DecodeKind::i4_channels) : is_by_key ? DecodeKind::i8 : DecodeKind::i8_channels;
  }
  return store.data.dtype() == Dtype::bf16 ? DecodeKind::bf16 : store.data.dtype() == Dtype::f16 ? DecodeKind::f16 : DecodeKind::f32;
}

inline bool is_by_key(DecodeKind kind) { return kind == DecodeKind::i8 || kind == DecodeKind::i4; }
inline bool is_by_channel(DecodeKind kind) { return kind == DecodeKind::i8_channels || kind == DecodeKind::i4_channels; }

/// Floats that the scales by channel of a strip take.
inline int64_t expanded_floats(const Store& store) {
  return store.has_value() && is_by_channel(kind_of(store)) ? kDecodeStrip * 2 * padded(store.channels) : 0;
}

/// The rows of one operand for one K/V head.
class DecodeReader {
 public:
  DecodeReader(const DecodeTable& table, const Store& store, int64_t b, int64_t head)
      : table_(table), store_(store), kind_(kind_of(store)), b_(b), head_(head) {
    element_ = static_cast<int64_t>(size_of(store.data.dtype()));
    row_bytes_ = store.data.stride(2) * element_;
    page_ = store.table.has_value() ? store.page() : std::numeric_limits<int64_t>::max();
  }

  /// Tokens [start, start + count) become keys [at, at + count) of the strip. `expanded`: of expanded_floats.
  void add(int64_t start, int64_t count, int at, DecodeRows& rows, float* expanded) {
    while (count > 0) {
      const Place place = place_of(store_, b_, head_, start);
      const int64_t here = std::min(count, page_ - place.row);
      const auto* row = static_cast<const std::byte*>(store_.data.raw()) + store_.data.offset(place.entry, place.head, place.row) * element_;
      table_.lay(row, row_bytes_, static_cast<int>(here), rows.data + at);
      if (store_.is_quantised) add_scales(place, here, at, rows, expanded);
      at += static_cast<int>(here);
      start += here;
      count -= here;
    }
  }
  /// Behind the strip's last key.
  void end(int count, DecodeRows& rows) {
    expanded_group_ = -1;
    const int end = (count + kDecodeStep - 1) / kDecodeStep * kDecodeStep;
    std::fill(rows.data + count, rows.data + end, rows.data[count - 1]);
    if (is_by_key(kind_)) {
      std::fill(rows.scale + count, rows.scale + end, 0.0f);
      std::fill(rows.zero + count, rows.zero + end, 0.0f);
    }
  }

 private:
  float zero_at(const Place& place, int64_t channel) const {
    const float zero = store_.zero.has_value() ? store_.zero.data<float>()[scale_offset(store_, store_.zero, place, channel)] : 0.0f;
    return store_.is_int4 ? zero + 8 : zero;  // a stored half counts from the smallest code on
  }
  void add_scales(Place place, int64_t count, int at, DecodeRows& rows, float* expanded) {
    const auto* const scale = store_.scale.data<float>();
    if (is_by_key(kind_)) {
      for (int64_t i = 0; i < count; ++i, ++place.row) {
        rows.scale[at + i] = scale[scale_offset(store_, store_.scale, place, 0)];
        rows.zero[at + i] = zero_at(place, 0);
      }
      return;
    }
    const int64_t pad = padded(store_.channels);
    for (int64_t i = 0; i < count; ++i, ++place.row) {
      const int64_t group = place.row / store_.group.tokens;
      float* const to = expanded + (at + i) * 2 * pad;
      rows.channels[at + i] = to;
      if (place.entry == expanded_entry_ && group == expanded_group_) {
        rows.channels[at + i] = rows.channels[at + i - 1];
        continue;
      }
      expanded_entry_ = place.entry;
      expanded_group_ = group;
      for (int64_t d = 0; d < store_.channels; ++d) {
        to[d] = scale[scale_offset(store_, store_.scale, place, d)];
        to[pad + d] = -zero_at(place, d) * to[d];
      }
      std::fill(to + store_.channels, to + pad, 0.0f);
      std::fill(to + pad + store_.channels, to + 2 * pad, 0.0f);
    }
  }

  const DecodeTable& table_;
  const Store& store_;
  DecodeKind kind_;
  int64_t b_, head_;
  int64_t element_ = 0, row_bytes_ = 0, page_ = 0;
  int64_t expanded_entry_ = -1, expanded_group_ = -1;  // of the key before
};

/// The keys of a strip, before anything is computed.
struct DecodeKeys {
  int count;
  bool is_tested;
  DecodeRows k, v;
  int32_t token[kDecodeStrip];  // where is_tested; INT32_MIN: not tested by the mask
  uint8_t queries[kDecodeStrip];
};

/// Goes through keys [first, last) of a unit, counted over its segments, strip by strip.
class DecodeWalk {
 public:
  DecodeWalk(const DecodeTable& table, const DecodeProblem& problem, const DecodeUnit& unit, int64_t first, int64_t last)
      : problem_(problem),
        keys_(table, problem.k, unit.b, unit.head_kv),
        values_(table, problem.v.has_value() ? problem.v : problem.k, unit.b, unit.head_kv),
        segment_(unit.first),
        left_(last - first),
        skip_(first),
        all_(static_cast<uint8_t>(((1u << unit.queries) - 1) << unit.query)) {
    const int64_t bytes = problem.k.data.dim(3) * static_cast<int64_t>(size_of(problem.k.data.dtype()));
    most_ = static_cast<int>(std::clamp<int64_t>(kDecodeStripBytes / bytes / kDecodePad * kDecodePad, kDecodePad, kDecodeStrip));
  }

  /// The next strip; false: there is none, and its count is 0.
  bool next(DecodeKeys& strip, float* expanded_k, float* expanded_v) {
    strip.count = 0;
    strip.is_tested = false;
    while (left_ > 0 && strip.count < most_) {
      const DecodeSegment& segment = problem_.segments[static_cast<size_t>(segment_)];
      const int64_t length = segment.stop - segment.start;
      if (skip_ >= length) {
        skip_ -= length;
        ++segment_;
        continue;
      }
      const auto count = static_cast<int>(std::min({length - skip_, left_, int64_t{most_ - strip.count}}));
      const auto start = static_cast<int32_t>(segment.start + skip_);
      keys_.add(start, count, strip.count, strip.k, expanded_k);
      if (problem_.v.has_value()) values_.add(start, count, strip.count, strip.v, expanded_v);
      note_tests(segment, start, count, strip);
      strip.count += count;
      skip_ += count;
      left_ -= count;
    }
    if (strip.count == 0) return false;
    keys_.end(strip.count, strip.k);
    if (problem_.v.has_value()) values_.end(strip.count, strip.v);
    return true;
  }

 private:
  // Most strips have none.
  void note_tests(const DecodeSegment& segment, int32_t start, int count, DecodeKeys& strip) const {
    const bool is_tested = segment.is_tested || segment.queries != all_;
    if (!is_tested && !strip.is_tested) return;
    if (!strip.is_tested) {  // for those before, too
      std::fill_n(strip.token, strip.count, INT32_MIN);
      std::fill_n(strip.queries, strip.count, all_);
    }
    strip.is_tested = true;
    for (int key = 0; key < count; ++key) strip.token[strip.count + key] = segment.is_tested ? start + key : INT32_MIN;
    std::fill_n(strip.queries + strip.count, count, segment.queries);
  }

  const DecodeProblem& problem_;
  DecodeReader keys_, values_;
  int64_t segment_, left_;
  int64_t skip_;  // keys of the segment, and of those behind it, that are behind us
  uint8_t all_;
  int most_;  // keys of a strip
};

}  // namespace tilewise::attend::cpu
