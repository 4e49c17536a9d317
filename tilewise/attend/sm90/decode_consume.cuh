// SPDX-License-Identifier: Apache-2.0
// The eight warps that compute. Each has up to 8 rows of a unit and every `splits`-th chunk of 16 keys, with sums of its own, which meet when the
// part ends. Lane 4 g + t holds scores of keys g and g + 8 for rows 2 t and 2 t + 1.
#pragma once

#include "tilewise/attend/sm90/decode_operands.cuh"

namespace tilewise::attend::sm90 {

template <class C>
class DecodeConsumer {
 public:
  __device__ DecodeConsumer(const DecodeArgs& args, DecodeShared<C>& shared)
      : args_(args), shared_(shared), lane_(threadIdx.x % 32), warp_(threadIdx.x / 32) {
    tiles_ = 1;
    if constexpr (!C::kIsLight) {
      while (tiles_ * 8 < args.units.rows) tiles_ *= 2;
    }
    splits_ = C::kConsumers / tiles_;
    tile_ = warp_ % tiles_;
    split_ = warp_ / tiles_;
  }

  /// Of a cluster: its unit, and the parts that it has.
  int unit_of_cluster = 0, parts_of_cluster = 0;

  __device__ void run() {
    if constexpr (C::kIsLight) {
      run_light();
    } else {
      run_general();
    }
  }

 private:
  __device__ void run_general() {
    int unit = blockIdx.x % args_.units.count, chunk = 0;
    load_queries(unit);  // of the first item, while its keys are on their way
    while (true) {
      place_.wait_full(shared_.ring);
      const int4 notes = *reinterpret_cast<const int4*>(&shared_.notes[place_.stage]);  // unit, part, is_first, is_last
      if (notes.x < 0) return;
      if (notes.z) {
        if (unit != notes.x) load_queries(notes.x);
        unit = notes.x;
        chunk = 0;
        clear();
      }
      for (int c = (split_ - chunk) & (splits_ - 1); c < kDecodeStage / kDecodeChunk; c += splits_) {
        const DecodeChunk here = chunk_of(c);
        if (here.low < here.high) attend(c, here);
      }
      chunk += kDecodeStage / kDecodeChunk;
      __syncwarp();
      if (lane_ == 0) place_.release(shared_.ring);
      place_.advance();
      if (notes.w) finish(unit, notes.y);
    }
  }

  // The same with queries loaded at one place in the code.
  __device__ void run_light() {
    int unit = -1, next = blockIdx.x, chunk = 0;  // no more blocks than units and strands, and strands count in units
    if constexpr (C::kIsCluster) {
      next /= kDecodeClusterBlocks;
      unit_of_cluster = next;
    } else {
      while (next >= args_.units.count) next -= args_.units.count;
    }
#pragma unroll 1
    while (true) {
      if (unit != next) load_queries(unit = next);
      place_.wait_full(shared_.ring);
      const int4 notes = *reinterpret_cast<const int4*>(&shared_.notes[place_.stage]);  // unit, part, is_first, is_last
      if (notes.x < 0) {
        parts_of_cluster = notes.y;
        return;
      }
      if (notes.x != unit) {
        next = notes.x;
        continue;
      }
      if (notes.z) {
        chunk = 0;
        clear();
      }
      const int c = (split_ - chunk) & (C::kConsumers - 1);
      if (c < kDecodeStage / kDecodeChunk) {
        const DecodeChunk here = chunk_of(c);
        if (here.low < here.high) attend(c, here);
      }
      chunk += kDecodeStage / kDecodeChunk;
      __syncwarp();
      if (lane_ == 0) place_.release(shared_.ring);
      place_.advance();
      if (notes.w) finish(unit, notes.y);
    }
  }

  __device__ DecodeChunk chunk_of(int c) const {
    if constexpr (C::kIsLight) {
      const DecodeLightNotes& notes = shared_.notes[place_.stage];
      const auto cut = [c](int x) { return static_cast<uint8_t>(min(max(x - c * kDecodeChunk, 0), kDecodeChunk)); };
      return {0, cut(notes.low), cut(notes.high), static_cast<uint8_t>(notes.flags), 0xFF};
    } else {
      return shared_.notes[place_.stage].chunk[c];
    }
  }

  __device__ void load_queries(int unit) {
    const DecodeUnit at = decode_unit<C>(args_, unit);
    const int2 queries = C::kIsLight ? int2{0, 1} : at.queries(args_.units);
    const int length = decode_length(args_, at.batch);
    const int g = lane_ / 4, t = lane_ % 4, seqlen_q = C::kIsLight ? 1 : args_.units.seqlen_q;
    const int row = tile_ * 8 + g, query = row % seqlen_q;
    const bool is_row = row < args_.units.rows && query >= queries.x && query < queries.y;
    using T = typename C::Element;
    const T* const from =
        static_cast<const T*>(args_.q) + at.batch * args_.q_stride[0] + (at.head + row / seqlen_q) * args_.q_stride[1] + query * args_.q_stride[2];
    [[maybe_unused]] float sum = 0;
    if constexpr (C::kIsQuantised && C::kIsLight) {
      load_codes_queries(from, is_row);
    } else {
#pragma unroll
      for (int step = 0; step < C::kSteps; ++step) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int channel = channel_of_step<C>(step, t, half, 0);
          if constexpr (!C::kIsQuantised) {
            if constexpr (C::kIsLight) {
              q_[step][half][0] = is_row ? __ldg(reinterpret_cast<const uint32_t*>(from + channel)) : 0;
            } else {
              q_[step][half][0] = is_row && channel < args_.head_dim ? __ldg(reinterpret_cast<const uint32_t*>(from + channel)) : 0;
            }
          } else {
            float x[2];
#pragma unroll
            for (int place = 0; place < 2; ++place) {
              const int mine = channel_of_step<C>(step, t, half, place);
              x[place] = is_row && mine < args_.head_dim ? static_cast<float>(from[mine]) : 0.0f;
              sum += x[place];
            }
            split_terms(q_[step][half], x[0], x[1]);
          }
        }
      }
      if constexpr (C::kHasKeyScales) {
        sum += __shfl_xor_sync(kDecodeLanes, sum, 1);
        sum += __shfl_xor_sync(kDecodeLanes, sum, 2);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int own = tile_ * 8 + 2 * t + i;
      query_[i] = own % seqlen_q;
      if constexpr (!C::kIsLight) bounds_[i] = decode_bounds(args_, length, at.head + min(own, args_.units.rows - 1) / seqlen_q, query_[i]);
      if constexpr (C::kHasKeyScales) q_sum_[i] = __shfl_sync(kDecodeLanes, sum, (2 * t + i) * 4);
    }
  }

  /// The same of whole channels, 16 bytes at a time: a lane's channels stand together in spans, as it reads codes.
  __device__ void load_codes_queries(const typename C::Element* from, bool is_row) {
    constexpr int kSpan = C::kStorage == DecodeStorage::int8 ? 16 : C::kHeadDim == 64 ? 16 : 32, kSpans = C::kHeadDim / 4 / kSpan;
    uint4 own[kSpans][kSpan / 8];
#pragma unroll
    for (int span = 0; span < kSpans; ++span) {
#pragma unroll
      for (int i = 0; i < kSpan / 8; ++i) {
        own[span][i] = is_row ? __ldg(reinterpret_cast<const uint4*>(from + span * 4 * kSpan + lane_ % 4 * kSpan) + i) : uint4{0, 0, 0, 0};
      }
    }
    const auto number = [&](int channel) {  // of lane group 0; constant once loops are unrolled
      const uint4& eight = own[channel / (4 * kSpan)][channel % kSpan / 8];
      const uint32_t word = channel % 8 < 2 ? eight.x : channel % 8 < 4 ? eight.y : channel % 8 < 6 ? eight.z : eight.w;
      const auto bits = static_cast<uint16_t>(channel % 2 == 0 ? word : word >> 16);
      return static_cast<float>(reinterpret_cast<const typename C::Element&>(bits));
    };
#pragma unroll
    for (int step = 0; step < C::kSteps; ++step) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        split_terms(q_[step][half], number(channel_of_step<C>(step, 0, half, 0)), number(channel_of_step<C>(step, 0, half, 1)));
      }
    }
  }

  /// Two numbers as one operand, or as one and what it lost.
  __device__ static void split_terms(uint32_t (&to)[C::kTerms], float low, float high) {
    using Operand = typename C::Operand;
    to[0] = machine::sm90::cvt_pack<Operand>(low, high);
    if constexpr (C::kTerms == 2) {
      to[1] = machine::sm90::cvt_pack<Operand>(low - __uint_as_float(to[0] << 16), high - __uint_as_float(to[0] & 0xFFFF0000u));
    }
  }

  __device__ void clear() {
#pragma unroll
    for (int step = 0; step < C::kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums_[step][i] = 0;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      row_max_[i] = -INFINITY;
      shift_[i] = 0;
      row_sum_[i] = 0;
      zero_sum_[i] = 0;
    }
  }

  __device__ DecodeTile tile_of(int which, int c) const {
    const int box = C::kIsLight ? kDecodeStage : args_.boxes.box, key = c * kDecodeChunk, in_box = key & (box - 1);
    return {machine::sm90::smem_address(shared_.keys[place_.stage][which]) + (key - in_box) * C::kRowBytes + in_box * C::kWidth,
            static_cast<uint32_t>(box * C::kWidth)};
  }

  __device__ void attend(int c, const DecodeChunk& here) {
    using machine::sm90::mma_m16n8k16;
    using Operand = typename C::Operand;
    const int g = lane_ / 4;
    float even[4] = {0, 0, 0, 0}, odd[4] = {0, 0, 0, 0};  // two sums, so that products need not wait for one another
    for_each_key_operand<C>(tile_of(0, c), [&](int step, const uint32_t(&a)[4]) {
#pragma unroll
      for (int term = 0; term < C::kTerms; ++term) {
        mma_m16n8k16<Operand>((step + term) % 2 == 0 ? even : odd, a, q_[step][0][term], q_[step][1][term]);
      }
    });
    const bool is_read[2] = {g >= here.low && g < here.high, g + 8 >= here.low && g + 8 < here.high};
    float score[4];  // keys g, g, g + 8, g + 8; rows 2 t, 2 t + 1, 2 t, 2 t + 1
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      score[i] = even[i] + odd[i];
      if constexpr (C::kIsQuantised && C::kIsLight) score[i] *= shared_.notes[place_.stage].scale_k;
      if constexpr (C::kHasKeyScales) {
        const DecodeStageScales<true>& scales = shared_.scales[place_.stage];
        const int key = c * kDecodeChunk + g + i / 2 * 8;
        if (args_.k.zero.data) score[i] -= scales.zero_k[key] * q_sum_[i % 2];
        score[i] *= scales.scale_k[key];
      }
      if (!C::kIsLight && args_.softcap != 0) score[i] = args_.softcap * tanhf(score[i] * args_.softcap_scale);
      score[i] *= args_.scale_log2;
      if (here.flags & DecodeChunk::kIsAbsent) score[i] = NAN;
      if (!is_read[i / 2]) score[i] = -INFINITY;
    }
    if (!C::kIsLight && (here.queries != 0xFF || (here.flags & DecodeChunk::kIsMasked))) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool is_seen =
            (here.queries >> query_[i % 2] & 1) && (!(here.flags & DecodeChunk::kIsMasked) || bounds_[i % 2].sees(here.token + g + i / 2 * 8));
        if (!is_seen) score[i] = -INFINITY;
      }
    }
    rescale(fmaxf(score[0], score[2]), fmaxf(score[1], score[3]));
    float p[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      p[i] = machine::sm90::ex2_approx(score[i] - shift_[i % 2]);
      row_sum_[i % 2] += p[i];
    }
    if (!C::kIsLight && !args_.has_v) return;
    float zero[2] = {0, 0};
    if constexpr (C::kIsQuantised && C::kIsLight) {
#pragma unroll
      for (int i = 0; i < 4; ++i) p[i] *= shared_.notes[place_.stage].scale_v;
    }
    if constexpr (C::kHasKeyScales) {
      const DecodeStageScales<true>& scales = shared_.scales[place_.stage];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int key = c * kDecodeChunk + g + i * 8;
        const float scale = is_read[i] ? scales.scale_v[key] : 0.0f;
        if (args_.v.zero.data) zero[i] = is_read[i] ? scales.zero_v[key] : 0.0f;
        p[2 * i] *= scale;
        p[2 * i + 1] *= scale;
      }
    }
    uint32_t b[2][C::kTerms];  // keys on both sides of the diagonal change places: rows of scores become columns
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      split_terms(b[i], p[2 * i], p[2 * i + 1]);
      if constexpr (C::kHasKeyScales) {  // of what the product will see
#pragma unroll
        for (int term = 0; term < C::kTerms; ++term) {
          zero_sum_[0] += zero[i] * __uint_as_float(b[i][term] << 16);
          zero_sum_[1] += zero[i] * __uint_as_float(b[i][term] & 0xFFFF0000u);
        }
      }
#pragma unroll
      for (int term = 0; term < C::kTerms; ++term) b[i][term] = machine::sm90::movmatrix_trans(b[i][term]);
    }
    for_each_value_operand<C>(tile_of(1, c), here.low, here.high, [&](int step, const uint32_t(&a)[4]) {
#pragma unroll
      for (int term = 0; term < C::kTerms; ++term) mma_m16n8k16<Operand>(sums_[step], a, b[0][term], b[1][term]);
    });
  }

  // Sums are scaled anew only when a score outgrows its row's maximum by 2^8: exact enough in f32, and far from the end of f16.
  __device__ void rescale(float top0, float top1) {
    constexpr float kThreshold = 8;
    if (!__any_sync(kDecodeLanes, top0 > row_max_[0] + kThreshold || top1 > row_max_[1] + kThreshold)) return;
    float top[2] = {top0, top1}, factor[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      for (int other = 4; other < 32; other *= 2) top[i] = fmaxf(top[i], __shfl_xor_sync(kDecodeLanes, top[i], other));
      top[i] = fmaxf(top[i], row_max_[i]);
      factor[i] = weight(row_max_[i], top[i]);
      row_max_[i] = top[i];
      shift_[i] = top[i] == -INFINITY ? 0 : top[i];
      row_sum_[i] *= factor[i];
      zero_sum_[i] *= factor[i];
    }
#pragma unroll
    for (int step = 0; step < C::kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums_[step][i] *= factor[i % 2];
    }
  }
  // 2^(from - to), also where both are infinite.
  __device__ static float weight(float from, float to) { return from == to ? 1.0f : machine::sm90::ex2_approx(from - to); }

  // The warps of a row tile add up: half of them give their sums to the other half, then all warps take a part of what is left to add and to store.
  __device__ void finish(int unit, int part) {
    const int t = lane_ % 4, g = lane_ / 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      for (int other = 4; other < 32; other *= 2) {
        row_sum_[i] += __shfl_xor_sync(kDecodeLanes, row_sum_[i], other);
        if constexpr (C::kHasKeyScales) zero_sum_[i] += __shfl_xor_sync(kDecodeLanes, zero_sum_[i], other);
      }
    }
    const int64_t first = C::kIsCluster ? part / kDecodeClusterBlocks : (int64_t{unit} * args_.units.most_parts + part) * args_.units.rows;
    if (!C::kIsLight && splits_ == 1) {
      store_stats(first);
#pragma unroll
      for (int step = 0; step < C::kSteps; ++step) {
        store_sums(first, tile_, step, {sums_[step][0], sums_[step][1], sums_[step][2], sums_[step][3]}, zero_sum_[0], zero_sum_[1]);
      }
      return;
    }
    if (g == 0) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        shared_.stats[warp_][0][2 * t + i] = row_max_[i];
        shared_.stats[warp_][1][2 * t + i] = row_sum_[i];
        shared_.stats[warp_][2][2 * t + i] = zero_sum_[i];
      }
    }
    meet();
    float factor[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = 2 * t + i;
      float most = -INFINITY, sum = 0, zero = 0;
      for (int s = 0; s < splits_; ++s) most = fmaxf(most, shared_.stats[tile_ + tiles_ * s][0][row]);
      for (int s = 0; s < splits_; ++s) {
        const float(&of)[3][8] = shared_.stats[tile_ + tiles_ * s];
        const float f = weight(of[0][row], most);
        sum += f * of[1][row];
        zero += f * of[2][row];
      }
      factor[i] = weight(row_max_[i], most);
      row_max_[i] = most;
      row_sum_[i] = sum;
      if (C::kHasKeyScales && split_ == 0 && g == 0) shared_.zero_sums[tile_][row] = zero;
    }
    if (split_ == 0) store_stats(first);
    const int half = splits_ / 2;
    float4(&slot)[C::kSteps][32] = shared_.sums[tile_ + tiles_ * (split_ & (half - 1))];
    if (split_ >= half) {
#pragma unroll
      for (int step = 0; step < C::kSteps; ++step) {
        slot[step][lane_] = {sums_[step][0] * factor[0], sums_[step][1] * factor[1], sums_[step][2] * factor[0], sums_[step][3] * factor[1]};
      }
    }
    meet();
    if (split_ < half) {
#pragma unroll
      for (int step = 0; step < C::kSteps; ++step) {
        float4& x = slot[step][lane_];
        x = {x.x + sums_[step][0] * factor[0], x.y + sums_[step][1] * factor[1], x.z + sums_[step][2] * factor[0], x.w + sums_[step][3] * factor[1]};
      }
    }
    meet();
    for (int i = warp_; i < tiles_ * C::kSteps; i += C::kConsumers) {
      const int tile = i & (tiles_ - 1), step = i / tiles_;
      float4 sum = shared_.sums[tile][step][lane_];
      for (int s = 1; s < half; ++s) {
        const float4 x = shared_.sums[tile + tiles_ * s][step][lane_];
        sum = {sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w};
      }
      const float(&zero)[8] = shared_.zero_sums[tile];
      store_sums(first, tile, step, sum, C::kHasKeyScales ? zero[2 * t] : 0, C::kHasKeyScales ? zero[2 * t + 1] : 0);
    }
  }
  __device__ static void meet() { machine::sm90::bar_sync(1, 32 * C::kConsumers); }

  __device__ void store_stats(int64_t first) const {
    const int row = tile_ * 8 + lane_ % 4 * 2;
    if (lane_ >= 4) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (C::kIsCluster) {
        shared_.kept.stats[first][row + i] = {row_max_[i], row_sum_[i]};
      } else {
        if (row + i < args_.units.rows) args_.stats[first + row + i] = {row_max_[i], row_sum_[i]};
      }
    }
  }

  // sum: as a lane has it of a step in sums_.
  __device__ void store_sums(int64_t first, int tile, int step, const float4& sum, float zero0, float zero1) const {
    if (!C::kIsLight && !args_.has_v) return;
    const int row = tile * 8 + lane_ % 4 * 2, g = lane_ / 4;
    float* to;
    if constexpr (C::kIsCluster) {
      to = shared_.kept.sums[first][row];
    } else {
      to = args_.sums + (first + row) * C::kHeadDim;
    }
    const int low = channel_of_sum<C>(step, g, 0), high = channel_of_sum<C>(step, g, 1);
    if (row < args_.units.rows) {
      to[low] = sum.x - zero0;
      to[high] = sum.z - zero0;
    }
    if (row + 1 < args_.units.rows) {
      to[C::kHeadDim + low] = sum.y - zero1;
      to[C::kHeadDim + high] = sum.w - zero1;
    }
  }

  const DecodeArgs& args_;
  DecodeShared<C>& shared_;
  const int lane_, warp_;
  int tiles_, splits_, tile_, split_;  // row tiles of 8, and how many warps share one
  RingPlace<C::kStages> place_;
  uint32_t q_[C::kSteps][2][C::kTerms];
  float sums_[C::kSteps][4];  // channels channel_of_sum(step, g, 0) and (.., 1) of rows 2 t, 2 t + 1
  float row_max_[2], shift_[2], row_sum_[2], zero_sum_[2], q_sum_[2];
  int query_[2];
  DecodeBounds bounds_[2];
};

}  // namespace tilewise::attend::sm90
