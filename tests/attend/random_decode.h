// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "tests/attend/test_tensor.h"
#include "tilewise/attend/decode.h"
#include "tilewise/plan/builder.h"

// Random decodes with their answer by definition, from numbers that the test itself keeps: no code of attend/ or prepare/ is asked.
namespace tilewise::attend::testing {

enum class Storage : uint8_t { plain, int8, int4 };

struct DecodeOptions {
  int64_t batch = 1;
  int heads_kv = 1, group = 1, queries = 1;
  int64_t capacity = 64, head_dim = 64, head_dim_v = 64;
  Dtype dtype = Dtype::f32;
  Storage storage_k = Storage::plain, storage_v = Storage::plain;
  bool has_zero = false;
  int group_tokens = 1, group_channels = 0;
  int page = 0;                          // 0: contiguous
  bool is_table_per_head = false, is_pool_per_head = true;  // of a paged operand with several heads; not both false
  bool is_v_broadcast = false, is_ragged = true, has_lengths = true, has_v = true, has_lse = true, has_sink = false;
  int grain = 1;                         // of the lengths of the plan's runs
  int plan_groups = 0;                   // G of the plan's lists; 0: dense_band
  bool has_rows = false, has_classes = false;
  Mask::Band band{Mask::kAll, 0, 0};
  float softcap = 0;
  Layout layout = Layout::contiguous;
};

inline std::string describe(const DecodeOptions& o) {
  std::ostringstream text;
  text << "B " << o.batch << " Hkv " << o.heads_kv << " group " << o.group << " Sq " << o.queries << " capacity " << o.capacity << " D " << o.head_dim
       << " Dv " << o.head_dim_v << " " << o.dtype << " storage " << static_cast<int>(o.storage_k) << "/" << static_cast<int>(o.storage_v) << " zero "
       << o.has_zero << " groups " << o.group_tokens << "x" << o.group_channels << " page " << o.page << " table/head " << o.is_table_per_head
       << " pool/head " << o.is_pool_per_head << " v-broadcast " << o.is_v_broadcast << " ragged " << o.is_ragged << " lengths " << o.has_lengths
       << " plan " << o.plan_groups << " rows " << o.has_rows << " classes " << o.has_classes << " band " << o.band.left << "," << o.band.right << ","
       << o.band.sink << " softcap " << o.softcap << " sink " << o.has_sink << " v " << o.has_v << " layout " << static_cast<int>(o.layout);
  return text.str();
}

/// Keys or values: what they are in f64, and how they are stored.
struct StoredOperand {
  std::vector<double> values;  // [B, H, capacity, D] of what is stored
  int64_t heads = 0, capacity = 0, channels = 0;
  HostTensor data, scale, zero, table;
  Operand operand = {};
  int64_t pages = 0;  // of the pool

  double at(int64_t b, int64_t h, int64_t t, int64_t d) const { return values[static_cast<size_t>(((b * heads + h) * capacity + t) * channels + d)]; }
};

struct DecodeCase {
  DecodeOptions options;
  HostTensor q, out, lse, lengths, sink;
  StoredOperand k, v;
  std::vector<RowRuns> runs;  // [B, G] of the plan
  Plan plan;

  int heads_q() const { return options.heads_kv * options.group; }
  int64_t length(int64_t b) const { return options.has_lengths ? lengths.view.at<int32_t>(b) : options.capacity; }
  DecodeParams params() const {
    DecodeParams p{.q = q.view, .k = k.operand};
    if (options.has_v) {
      p.v = v.operand;
      p.out = out.view;
    }
    if (options.has_lse) p.lse = lse.view;
    if (options.has_lengths) p.lengths = lengths.view;
    if (options.has_sink) p.sink_logit = sink.view;
    p.plan = plan;
    if (options.plan_groups == 0) p.dense_band = options.band;
    p.softcap = options.softcap;
    return p;
  }

  Mask::Band band_of(int head) const { return options.has_classes && head % 2 == 1 ? Mask::Band{5, 0, 2} : options.band; }
  /// Whether a query reads a token, by definition.
  bool reads(int64_t b, int head, int query, int64_t token) const {
    if (token >= length(b)) return false;
    const Mask::Band band = band_of(head);
    const int64_t own = length(b) - options.queries + query;
    const bool is_seen =
        (band.right == Mask::kAll || token <= own + band.right) && (token < band.sink || band.left == Mask::kAll || token >= own - band.left);
    if (options.plan_groups == 0) return is_seen;
    const RowRuns& row = runs[static_cast<size_t>(b * options.plan_groups + int64_t{head} * options.plan_groups / heads_q())];
    const auto has = [&](const std::vector<Run>& list) {
      for (const Run& run : list) {
        if (run.start <= token && token < run.stop && (run.rows.empty() || ((run.rows[0] >> query) & 1u) != 0)) return true;
      }
      return false;
    };
    return has(row.whole) || has(row.picked) || (is_seen && has(row.masked));
  }
  /// Whether any run of a head of this K/V head names the token: the others must not be touched.
  bool is_named(int64_t b, int head_kv, int64_t token) const {
    for (int head = head_kv * options.group; head < (head_kv + 1) * options.group; ++head) {
      if (token >= length(b)) return false;
      if (options.plan_groups == 0) {
        for (int query = 0; query < options.queries; ++query) {
          if (reads(b, head, query, token)) return true;
        }
        continue;
      }
      const RowRuns& row = runs[static_cast<size_t>(b * options.plan_groups + int64_t{head} * options.plan_groups / heads_q())];
      for (const auto* list : {&row.whole, &row.masked, &row.picked}) {
        for (const Run& run : *list) {
          if (run.start <= token && token < run.stop) return true;
        }
      }
    }
    return false;
  }
};

inline StoredOperand make_operand(Rng& rng, const DecodeCase& c, Storage storage, int64_t channels, bool is_broadcast) {
  const DecodeOptions& o = c.options;
  StoredOperand s;
  s.heads = is_broadcast ? 1 : o.heads_kv;
  s.capacity = o.capacity;
  s.channels = channels;
  s.values.resize(static_cast<size_t>(o.batch * s.heads * o.capacity * channels));
  const bool is_paged = o.page > 0;
  const int64_t page = is_paged ? o.page : o.capacity, pages = is_paged ? o.capacity / o.page : 1;
  const int64_t table_heads = o.is_table_per_head ? s.heads : 1, pool_heads = !is_paged || (o.is_pool_per_head && s.heads > 1) ? s.heads : 1;
  // The pool holds more than is used, in a drawn order; what nobody may read is not stored at all or holds NaN.
  s.pages = is_paged ? o.batch * table_heads * pages + 3 : o.batch;
  std::vector<int32_t> free_pages(static_cast<size_t>(s.pages));
  for (size_t i = 0; i < free_pages.size(); ++i) free_pages[i] = static_cast<int32_t>(i);
  if (is_paged) std::shuffle(free_pages.begin(), free_pages.end(), rng);
  const bool is_int4 = storage == Storage::int4, is_int = storage != Storage::plain;
  s.data = HostTensor(storage == Storage::plain ? o.dtype
                      : is_int4                 ? Dtype::u8
                                                : Dtype::i8,
                      {s.pages, pool_heads, page, is_int4 ? channels / 2 : channels}, o.layout);
  const int64_t group_tokens = o.group_tokens == 0 ? page : o.group_tokens, group_channels = o.group_channels == 0 ? channels : o.group_channels;
  if (is_int) {
    const Shape shape{s.pages, pool_heads, (page + group_tokens - 1) / group_tokens, (channels + group_channels - 1) / group_channels};
    s.scale = HostTensor(Dtype::f32, shape, o.layout);
    s.zero = HostTensor(Dtype::f32, shape, o.layout);
    for_each_offset(s.scale.view, [&](int64_t i) {
      static_cast<float*>(s.scale.view.raw())[i] = std::numeric_limits<float>::quiet_NaN();
      static_cast<float*>(s.zero.view.raw())[i] = std::numeric_limits<float>::quiet_NaN();
    });
  }
  for_each_offset(s.data.view, [&](int64_t i) {
    if (!is_int) from_double(s.data.view, i, std::numeric_limits<double>::quiet_NaN());
    if (is_int) static_cast<uint8_t*>(s.data.view.raw())[i] = 0x7f;
  });
  if (is_paged) s.table = HostTensor(Dtype::i32, {o.batch, table_heads, pages});
  std::normal_distribution<double> normal;
  for (int64_t b = 0; b < o.batch; ++b) {
    for (int64_t h = 0; h < s.heads; ++h) {
      for (int64_t p = 0; p < pages; ++p) {
        int64_t entry = b;
        const auto is_named = [&](int64_t t) {
          if (!is_broadcast) return c.is_named(b, static_cast<int>(h), t);
          for (int kv = 0; kv < o.heads_kv; ++kv) {
            if (c.is_named(b, kv, t)) return true;
          }
          return false;
        };
        if (is_paged) {
          int32_t& place = s.table.view.at<int32_t>(b, o.is_table_per_head ? h : 0, p);
          if (h == 0 || o.is_table_per_head) {
            bool is_read = false;  // by any head, where they share pages
            for (int64_t t = p * page; t < (p + 1) * page; ++t) {
              is_read = is_read || is_named(t);
              for (int kv = 0; kv < o.heads_kv && !o.is_table_per_head; ++kv) is_read = is_read || c.is_named(b, kv, t);
            }
            place = -1;
            if (is_read) {
              place = free_pages.back();
              free_pages.pop_back();
            }
          }
          entry = place;
          if (entry < 0) continue;
        }
        const int64_t head = pool_heads == 1 ? 0 : h;
        for (int64_t row = 0; row < page; ++row) {
          const int64_t t = p * page + row;
          if (!is_named(t)) continue;
          for (int64_t d = 0; d < channels; ++d) {
            double& value = s.values[static_cast<size_t>(((b * s.heads + h) * o.capacity + t) * channels + d)];
            if (!is_int) {
              s.data.set(normal(rng), entry, head, row, d);
              value = s.data.get(entry, head, row, d);
              continue;
            }
            float& scale = s.scale.view.at<float>(entry, head, row / group_tokens, d / group_channels);
            float& zero = s.zero.view.at<float>(entry, head, row / group_tokens, d / group_channels);
            const int most = is_int4 ? 7 : 127;
            if (std::isnan(scale)) {
              scale = static_cast<float>((0.5 + std::abs(normal(rng))) * 2 / most);
              zero = static_cast<float>(normal(rng) * most / 4);
            }
            const int code = static_cast<int>(uniform(rng, -most - 1, most));
            if (is_int4) {
              uint8_t& byte = s.data.view.at<uint8_t>(entry, head, row, d / 2);
              byte = static_cast<uint8_t>(d % 2 == 0 ? (byte & 0xf0) | (code + 8) : (byte & 0x0f) | ((code + 8) << 4));
            } else {
              s.data.view.at<int8_t>(entry, head, row, d) = static_cast<int8_t>(code);
            }
            value = (code - (o.has_zero ? static_cast<double>(zero) : 0.0)) * static_cast<double>(scale);
          }
        }
      }
    }
  }
  const Quantised quantised{
      .data = s.data.view, .scale = s.scale.view, .zero = o.has_zero ? s.zero.view : TensorView(), .group = {o.group_tokens, o.group_channels}};
  if (is_paged) {
    Paged paged;
    paged.table = s.table.view;
    if (is_int) {
      paged.pool = quantised;
    } else {
      paged.pool = s.data.view;
    }
    s.operand = paged;
  } else if (is_int) {
    s.operand = quantised;
  } else {
    s.operand = s.data.view;
  }
  return s;
}

// Runs that do not touch: disjoint pieces of [0, length) drawn one after another, and masked ones up to the plan's end.
inline RowRuns random_row(Rng& rng, const DecodeOptions& o, int64_t length) {
  RowRuns row;
  int64_t at = uniform(rng, 0, 5);
  while (at < o.capacity) {
    const int64_t stop = std::min(o.capacity, at + (o.grain == 1 ? uniform(rng, 1, 40) : o.grain * uniform(rng, 1, 3)));
    Run run{static_cast<int32_t>(at), static_cast<int32_t>(stop), {}};
    const uint64_t bits = static_cast<uint64_t>(uniform(rng, 1, (int64_t{1} << o.queries) - 1));
    const int64_t kind = o.grain == 1 ? uniform(rng, 0, 2) : uniform(rng, 0, 1);
    if (kind != 0 && o.has_rows && chance(rng, 0.5)) run.rows = {bits};
    if (kind == 1 && chance(rng, 0.7)) {
      row.masked.push_back(run);
    } else if (stop <= length && kind == 0) {
      row.whole.push_back(run);
    } else if (stop <= length && kind == 2) {
      row.picked.push_back(run);
    }
    at = stop + uniform(rng, 1, 30);
  }
  return row;
}

inline DecodeCase make_case(Rng& rng, const DecodeOptions& o) {
  DecodeCase c;
  c.options = o;
  const int heads_q = o.heads_kv * o.group;
  c.lengths = HostTensor(Dtype::i32, {o.batch});
  for (int64_t b = 0; b < o.batch; ++b) {
    c.lengths.view.at<int32_t>(b) = static_cast<int32_t>(!o.is_ragged ? o.capacity : b == 1 ? 0 : uniform(rng, 0, o.capacity));
  }
  if (o.plan_groups > 0) {
    auto plan = std::make_shared<PlanData>();
    plan->seqlen_q = o.queries;
    plan->seqlen_k = o.capacity;
    plan->batch = o.batch;
    plan->heads_q = heads_q;
    plan->mask.bands = {o.band};
    if (o.has_classes) {
      plan->mask.bands.push_back({5, 0, 2});
      for (int head = 0; head < heads_q; ++head) plan->mask.head_class.push_back(static_cast<uint8_t>(head % 2));
    }
    ListsBuilder builder(16, o.batch, o.plan_groups, 1);
    for (int64_t b = 0; b < o.batch; ++b) {
      for (int g = 0; g < o.plan_groups; ++g) {
        c.runs.push_back(random_row(rng, o, c.length(b)));
        builder.set(b, g, 0, c.runs.back());
      }
    }
    plan->by_query = builder.build(host_memory(), *plan);
    c.plan = plan;
  }
  c.q = random_normal(rng, o.dtype, {o.batch, heads_q, o.queries, o.head_dim}, o.layout);
  c.out = HostTensor(o.dtype, {o.batch, heads_q, o.queries, o.head_dim_v}, o.layout);
  c.lse = HostTensor(Dtype::f32, {o.batch, heads_q, o.queries}, o.layout);
  c.sink = random_normal(rng, Dtype::f32, {heads_q});
  c.k = make_operand(rng, c, o.storage_k, o.head_dim, false);
  c.v = make_operand(rng, c, o.storage_v, o.head_dim_v, o.is_v_broadcast);
  return c;
}

struct DecodeAnswer {
  std::vector<double> out, lse;  // [B, Hq, Sq, Dv], [B, Hq, Sq]
  double largest_v = 0, largest_s = 0;
};

inline DecodeAnswer answer_of(const DecodeCase& c) {
  const DecodeOptions& o = c.options;
  DecodeAnswer answer;
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const double scale = 1 / std::sqrt(static_cast<double>(o.head_dim));
  for (int64_t b = 0; b < o.batch; ++b) {
    for (int head = 0; head < c.heads_q(); ++head) {
      for (int query = 0; query < o.queries; ++query) {
        const int kv = head / o.group, kv_v = o.is_v_broadcast ? 0 : kv;
        std::vector<double> s, out(static_cast<size_t>(o.head_dim_v), 0.0);
        std::vector<int64_t> tokens;
        double most = o.has_sink ? c.sink.get(head) : -kInfinity;
        for (int64_t t = 0; t < c.length(b); ++t) {
          if (!c.reads(b, head, query, t)) continue;
          double dot = 0, magnitude = 0;
          for (int64_t d = 0; d < o.head_dim; ++d) {
            const double product = c.q.get(b, head, query, d) * c.k.at(b, kv, t, d) * scale;
            dot += product;
            magnitude += std::abs(product);
          }
          answer.largest_s = std::max(answer.largest_s, magnitude);
          const double cap = static_cast<double>(o.softcap);
          s.push_back(cap == 0 ? dot : cap * std::tanh(dot / cap));
          tokens.push_back(t);
          most = std::max(most, s.back());
        }
        double sum = o.has_sink ? std::exp(c.sink.get(head) - most) : 0;
        for (size_t i = 0; i < s.size(); ++i) {
          const double p = std::exp(s[i] - most);
          sum += p;
          for (int64_t d = 0; d < o.head_dim_v; ++d) {
            const double value = c.v.at(b, kv_v, tokens[i], d);
            out[static_cast<size_t>(d)] += p * value;
            answer.largest_v = std::max(answer.largest_v, std::abs(value));
          }
        }
        for (const double x : out) answer.out.push_back(sum == 0 ? 0 : x / sum);
        answer.lse.push_back(sum == 0 ? -kInfinity : most + std::log(sum));
      }
    }
  }
  return answer;
}

/// A drawn kind of decode. Every option of DecodeOptions comes up.
inline DecodeOptions random_decode(Rng& rng, bool is_long) {
  DecodeOptions o;
  const auto one_of = [&rng](std::initializer_list<int64_t> values) {
    return *(values.begin() + uniform(rng, 0, static_cast<int64_t>(values.size()) - 1));
  };
  o.batch = one_of({1, 1, 2, 3});
  o.heads_kv = static_cast<int>(one_of({1, 2, 3}));
  o.group = static_cast<int>(one_of({1, 2, 3, 4, 7, 16}));
  o.queries = static_cast<int>(one_of({1, 1, 1, 2, 3, 8}));
  o.dtype = static_cast<Dtype>(one_of({static_cast<int64_t>(Dtype::f32), static_cast<int64_t>(Dtype::bf16), static_cast<int64_t>(Dtype::f16)}));
  o.head_dim = one_of({64, 128, 8, 40, 80, 96, 16, 30});
  o.head_dim_v = chance(rng, 0.6) ? o.head_dim : one_of({64, 128, 24, 6});
  o.storage_k = static_cast<Storage>(one_of({0, 0, 1, 2}));
  o.storage_v = static_cast<Storage>(one_of({0, 0, 1, 2}));
  o.has_zero = chance(rng, 0.5);
  o.group_channels = static_cast<int>(one_of({0, 0, 1, 16, 5}));
  o.page = static_cast<int>(one_of({0, 0, 1, 16, 64, 100, 128}));
  const int64_t unit = o.page == 0 ? 1 : o.page;
  o.capacity = std::max<int64_t>(1, (is_long ? uniform(rng, 3000, 5000) : uniform(rng, 1, 300)) / unit) * unit;
  o.group_tokens = static_cast<int>(one_of({1, 1, 0, 4, 16, 7}));
  o.is_table_per_head = chance(rng, 0.5);
  o.is_pool_per_head = !o.is_table_per_head || chance(rng, 0.5);
  o.is_v_broadcast = chance(rng, 0.2);
  o.is_ragged = chance(rng, 0.7);
  o.has_lengths = o.is_ragged || chance(rng, 0.5);
  o.has_v = chance(rng, 0.9);
  o.has_lse = !o.has_v || chance(rng, 0.7);
  o.has_sink = chance(rng, 0.3);
  const int64_t heads_q = int64_t{o.heads_kv} * o.group;
  o.plan_groups = static_cast<int>(one_of({0, 0, 1, o.heads_kv, heads_q}));
  o.has_rows = chance(rng, 0.5);
  o.has_classes = o.plan_groups > 0 && chance(rng, 0.3);
  switch (uniform(rng, 0, 4)) {
    case 0: o.band = {Mask::kAll, Mask::kAll, 0}; break;
    case 1: o.band = {20, 0, 4}; break;
    case 2: o.band = {7, 3, 0}; break;
    default: break;
  }
  o.softcap = chance(rng, 0.3) ? 3.0f : 0.0f;
  o.layout = static_cast<Layout>(one_of({0, 1, 2}));
  return o;
}

}  // namespace tilewise::attend::testing
