// SPDX-License-Identifier: Apache-2.0
// attend_decode on a Hopper GPU against its definition, over random problems of every kind that the backend takes. Stands alone, since the machine
// with the GPU has no GoogleTest:
//   tilewise_sm90_decode_test [--cases N] [--seed S] [--repeats R] [--small] [--only NAME]
// Keys and pages that no row reads are NaN, outputs are poisoned and stand between red zones, and every repeat must give the same bits.
#include <array>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/attend/random_decode.h"
#include "tests/attend/sm90/device_testing.h"
#include "tilewise/attend/decode.h"
#include "tilewise/attend/sm90/decode_args.h"
#include "tilewise/attend/sm90/device_plan.h"

namespace tilewise::attend::testing {
namespace {

DecodeOptions random_options(Rng& rng, bool is_small) {
  const auto one_of = [&rng](std::initializer_list<int64_t> values) {
    return *(values.begin() + uniform(rng, 0, static_cast<int64_t>(values.size()) - 1));
  };
  DecodeOptions o = random_decode(rng, !is_small && chance(rng, 0.2));
  o.dtype = chance(rng, 0.6) ? Dtype::bf16 : Dtype::f16;
  o.storage_v = o.storage_k;
  o.group_channels = 0;
  // Rows of 16 bytes.
  const auto channels = [&] {
    switch (o.storage_k) {
      case Storage::plain: return one_of({64, 128, 128, 256, 8, 40, 80, 96, 16});
      case Storage::int8: return one_of({64, 128, 128, 256, 16, 48, 96});
      default: return one_of({64, 128, 128, 256, 32, 96});
    }
  };
  o.head_dim = channels();
  o.head_dim_v = chance(rng, 0.6) ? o.head_dim : channels();
  o.page = static_cast<int>(one_of({0, 0, 1, 16, 32, 64, 64, 100, 128}));
  const int64_t unit = o.page == 0 ? 1 : o.page;
  o.capacity = std::max<int64_t>(1, o.capacity / unit) * unit;
  o.is_pool_per_head = !o.is_table_per_head || chance(rng, 0.5);
  if (o.layout == Layout::padded) o.layout = Layout::heads_last;
  return o;
}

// A case's tensors on the device, and the call.
struct OnDevice {
  struct Stored {
    std::unique_ptr<DeviceTensor> data, scale, zero, table;
    Operand operand;

    Stored(const StoredOperand& host, const DecodeOptions& o) {
      const auto upload = [](const HostTensor& from) {
        auto to = std::make_unique<DeviceTensor>(from.view);
        to->upload(from.view);
        return to;
      };
      data = upload(host.data);
      if (host.scale.view.has_value()) scale = upload(host.scale);
      if (host.zero.view.has_value()) zero = upload(host.zero);
      if (host.table.view.has_value()) table = upload(host.table);
      Quantised quantised;
      if (scale) {
        quantised = {
            .data = data->view, .scale = scale->view, .zero = o.has_zero ? zero->view : TensorView(), .group = {o.group_tokens, o.group_channels}};
      }
      if (table) {
        Paged paged;
        if (scale) {
          paged.pool = quantised;
        } else {
          paged.pool = data->view;
        }
        paged.table = table->view;
        operand = paged;
      } else if (scale) {
        operand = quantised;
      } else {
        operand = data->view;
      }
    }
  };

  DeviceTensor q, out, lse, lengths, sink;
  Stored k, v;
  DecodeParams params;

  OnDevice(const DecodeCase& c, Context& context)
      : q(c.q.view), out(c.out.view), lse(c.lse.view), lengths(c.lengths.view), sink(c.sink.view), k(c.k, c.options), v(c.v, c.options) {
    q.upload(c.q.view);
    lengths.upload(c.lengths.view);
    sink.upload(c.sink.view);
    params = c.params();
    params.q = q.view;
    params.k = k.operand;
    if (c.options.has_v) {
      params.v = v.operand;
      params.out = out.view;
    }
    if (params.lse.has_value()) params.lse = lse.view;
    if (params.lengths.has_value()) params.lengths = lengths.view;
    if (params.sink_logit.has_value()) params.sink_logit = sink.view;
    if (params.plan) params.plan = copy_to_device(params.plan, context);
  }
  void wipe() const {
    out.wipe();
    lse.wipe();
  }
};

// Probabilities and out are each rounded to q's dtype once, scores and sums are f32 (of the matrix units, which cut what they add up).
void judge(const DecodeCase& c, const OnDevice& device, const std::string& note) {
  const DecodeOptions& o = c.options;
  const DecodeAnswer answer = answer_of(c);
  const double unit = o.dtype == Dtype::bf16 ? 0x1p-8 : 0x1p-11, of_score = 0x1p-20 * (4 + answer.largest_s);
  std::vector<double> got;
  const auto check = [&](const char* name, const DeviceTensor& tensor, const std::vector<double>& want, auto bound) {
    if (!tensor.values(got)) return report(std::string("memory outside of ") + name + " was written", note);
    for (size_t i = 0; i < want.size(); ++i) {
      if (got[i] == want[i] || std::abs(got[i] - want[i]) <= bound(want[i])) continue;
      char text[160];
      std::snprintf(text, sizeof text, "%s %zu is %.7g, by definition %.7g, bound %.2e", name, i, got[i], want[i], bound(want[i]));
      return report(text, note);
    }
  };
  if (o.has_v) {
    check("out", device.out, answer.out, [&](double want) { return (unit + 2 * of_score) * answer.largest_v + unit * std::abs(want) + 1e-7; });
  }
  if (o.has_lse) check("lse", device.lse, answer.lse, [&](double want) { return of_score + 0x1p-22 * std::abs(want); });
}

void check_case(const DecodeCase& c, int repeats, const std::string& note) {
  if (is_dry) return;
  const std::lock_guard<std::mutex> lock(gpu);
  Context context = device_context();
  const OnDevice device(c, context);
  const bool is_alike = runs_alike(
      repeats, note, [&] { device.wipe(); }, [&] { return attend_decode(device.params, context); },
      [&] { return std::pair(device.out.bytes(), device.lse.bytes()); });
  if (!is_alike) return;
  judge(c, device, note);
}

void run_case(uint64_t seed, int repeats, bool is_small) {
  Rng rng(seed);
  const DecodeOptions o = random_options(rng, is_small);
  check_case(make_case(rng, o), repeats, "seed " + std::to_string(seed) + ": " + describe(o));
}

// What the light kernels hold, on them and on the proven ones: by definition, and beside each other.
void light_cases(int cases, uint64_t seed, int repeats) {
  for_each_seed(cases, seed, [&](uint64_t at) {
    Rng rng(at + 9000);
    const auto one_of = [&rng](std::initializer_list<int64_t> values) {
      return *(values.begin() + uniform(rng, 0, static_cast<int64_t>(values.size()) - 1));
    };
    DecodeOptions o;
    o.batch = one_of({1, 1, 2, 5});
    o.heads_kv = static_cast<int>(one_of({1, 2, 8}));
    o.group = static_cast<int>(one_of({1, 3, 4, 8}));
    o.dtype = chance(rng, 0.6) ? Dtype::bf16 : Dtype::f16;
    o.head_dim = o.head_dim_v = one_of({64, 128});
    o.storage_k = o.storage_v = static_cast<Storage>(one_of({0, 0, 1, 2}));
    o.page = static_cast<int>(one_of({0, 64, 64, 128, 192}));
    o.group_tokens = static_cast<int>(o.page > 0 ? one_of({0, 64}) : one_of({64, 128}));
    const int64_t unit = o.page == 0 ? 1 : o.page;
    o.capacity = std::max<int64_t>(1, one_of({uniform(rng, 1, 300), 64, 128, uniform(rng, 300, 3000)}) / unit) * unit;
    o.is_table_per_head = chance(rng, 0.5);
    o.is_pool_per_head = !o.is_table_per_head || chance(rng, 0.5);
    o.is_v_broadcast = chance(rng, 0.2);
    o.is_ragged = chance(rng, 0.7);
    o.has_lengths = o.is_ragged || chance(rng, 0.5);
    o.has_lse = chance(rng, 0.7);
    o.has_sink = chance(rng, 0.3);
    o.grain = static_cast<int>(one_of({64, 128}));
    o.plan_groups = static_cast<int>(one_of({0, 1, o.heads_kv, int64_t{o.heads_kv} * o.group}));
    o.layout = chance(rng, 0.5) ? Layout::contiguous : Layout::heads_last;
    if (at % 3 == 0) {  // what clusters take
      o.batch = 1;
      o.heads_kv = static_cast<int>(uniform(rng, 6, 8));
      o.head_dim = o.head_dim_v = 128;
      o.dtype = Dtype::bf16;
      o.plan_groups = chance(rng, 0.5) ? 0 : 1;
      if (at % 2 == 0) o.capacity = std::max<int64_t>(1, uniform(rng, 3000, 12000) / unit) * unit;
    }
    check_case(make_case(rng, o), repeats, "light seed " + std::to_string(at) + ": " + describe(o));
  });
}

// Long lists have more parts than the merge has warps.
void long_cases() {
  for (const Storage storage : {Storage::plain, Storage::int8, Storage::int4}) {
    Rng rng(77);
    DecodeOptions o;
    o.group = 4;
    o.capacity = 50'000 / 64 * 64;
    o.head_dim = o.head_dim_v = 128;
    o.dtype = Dtype::bf16;
    o.storage_k = o.storage_v = storage;
    o.group_tokens = 0;
    o.page = storage == Storage::int4 ? 0 : 64;
    o.is_ragged = false;
    o.plan_groups = storage == Storage::int8 ? 1 : 0;
    check_case(make_case(rng, o), 2, "long, storage " + std::to_string(static_cast<int>(storage)));
  }
  // Many units of many parts: full sequences, ragged ones, and lists.
  for (const int plan_groups : {0, 8}) {
    for (const bool is_ragged : {false, true}) {
      Rng rng(78);
      DecodeOptions o;
      o.batch = 3;
      o.heads_kv = 8;
      o.group = 2;
      o.capacity = (plan_groups == 0 ? 200 : 60) * 64;
      o.dtype = Dtype::bf16;
      o.page = 64;
      o.is_ragged = is_ragged;
      o.plan_groups = plan_groups;
      check_case(make_case(rng, o), 10, "many, ragged " + std::to_string(is_ragged) + ", groups " + std::to_string(plan_groups));
    }
  }
}

template <class T>
TensorView of_sequence(const TensorView& view, int64_t b) {
  std::array<int64_t, Shape::kMaxRank> strides{};
  for (int axis = 0; axis < view.rank(); ++axis) strides[static_cast<size_t>(axis)] = view.stride(axis);
  Shape shape = view.shape();
  shape.sizes[0] = 1;
  return TensorView(static_cast<T*>(view.raw()) + b * view.stride(0), view.dtype(), shape, strides, view.device());
}

// A sequence's bits are those it has alone.
void neighbours() {
  for (uint64_t seed = 500; seed < 512; ++seed) {
    Rng rng(seed);
    DecodeOptions o;
    o.batch = 5;
    o.heads_kv = 2;
    o.group = 4;
    o.queries = seed % 3 == 0 ? 3 : 1;
    o.head_dim = o.head_dim_v = 128;
    o.dtype = Dtype::bf16;
    o.page = 64;
    o.capacity = 64 * 100;
    o.plan_groups = seed % 2 == 0 ? 2 : 0;
    const DecodeCase c = make_case(rng, o);
    if (is_dry) return;
    Context context = device_context();
    const OnDevice device(c, context);
    device.wipe();
    attend_decode(device.params, context);
    cuda_ok(cudaDeviceSynchronize(), "together");
    const std::vector<unsigned char> together = device.out.bytes(), lse = device.lse.bytes();
    device.wipe();
    for (int64_t b = 0; b < o.batch; ++b) {
      DecodeParams p = device.params;
      p.q = of_sequence<uint16_t>(p.q, b);
      p.out = of_sequence<uint16_t>(p.out, b);
      p.lse = of_sequence<float>(p.lse, b);
      p.lengths = of_sequence<int32_t>(p.lengths, b);
      auto k = std::get<Paged>(p.k), v = std::get<Paged>(p.v);
      k.table = of_sequence<int32_t>(k.table, b);
      v.table = of_sequence<int32_t>(v.table, b);
      p.k = k;
      p.v = v;
      if (p.plan) {
        auto plan = std::make_shared<PlanData>();
        plan->mask = p.plan->mask;
        plan->seqlen_q = p.plan->seqlen_q;
        plan->seqlen_k = p.plan->seqlen_k;
        plan->heads_q = p.plan->heads_q;
        plan->by_query = p.plan->by_query;
        for (RunList* list : {&plan->by_query.whole, &plan->by_query.masked, &plan->by_query.picked}) {
          if (!list->has_runs()) continue;
          if (list->begin.dim(0) > 1) list->begin = of_sequence<int64_t>(list->begin, b);
          if (list->count.dim(0) > 1) list->count = of_sequence<int32_t>(list->count, b);
        }
        p.plan = plan;
      }
      attend_decode(p, context);
    }
    cuda_ok(cudaDeviceSynchronize(), "alone");
    if (device.out.bytes() != together || device.lse.bytes() != lse) report("bits depend on the batch", "seed " + std::to_string(seed));
  }
}

DecodeCase simple_case(uint64_t seed, int64_t capacity, int64_t head_dim = 128) {
  Rng rng(seed);
  DecodeOptions o;
  o.batch = 2;
  o.heads_kv = 2;
  o.group = 4;
  o.head_dim = o.head_dim_v = head_dim;
  o.dtype = Dtype::bf16;
  o.page = 64;
  o.capacity = capacity / 64 * 64;
  o.is_ragged = false;
  return make_case(rng, o);
}

// What an error leaves behind: nothing.
void errors() {
  const DecodeCase c = simple_case(1, 640);
  Context context = device_context();
  const OnDevice device(c, context);
  const auto expect_error = [&](Error::Kind kind, const char* part, const DecodeParams& params, Context& with) {
    device.wipe();
    const std::vector<unsigned char> before = device.out.bytes();
    try {
      attend_decode(params, with);
      report("no error", part);
    } catch (const Error& error) {
      if (error.kind() != kind || std::string(error.what()).find(part) == std::string::npos) report(error.what(), part);
    }
    if (device.out.bytes() != before) report("a refused call wrote", part);
    cuda_ok(cudaGetLastError(), "an error was left behind");
    attend_decode(device.params, context);  // the next call works
    cuda_ok(cudaDeviceSynchronize(), "the call after an error");
    judge(c, device, std::string("after: ") + part);
  };
  {
    DecodeParams p = device.params;
    p.plan = std::make_shared<PlanData>();
    expect_error(Error::Kind::value, "both given", p, context);
  }
  {
    DecodeParams p = device.params;
    auto k = std::get<Paged>(p.k);
    const TensorView& pool = std::get<TensorView>(k.pool);
    k.pool = Quantised{.data = TensorView(pool.raw(), Dtype::i8, pool.shape(), pool.device()),
                       .scale = TensorView(pool.raw(), Dtype::f32, {1, 1, 64, 8}, pool.device()),
                       .group = {1, 16}};
    p.k = k;
    expect_error(Error::Kind::unsupported, "sm90: k has a scale for 16 of 128 channels", p, context);
  }
  {
    DecodeParams p = device.params;
    p.lengths = c.lengths.view;
    expect_error(Error::Kind::device, "lengths is on", p, context);
  }
  {
    Context other = context;
    other.memory = host_memory();
    expect_error(Error::Kind::device, "host memory", device.params, other);
  }
}

// A page that is read and is not stored makes its sequence's rows NaN and no other's.
void lost_pages() {
  DecodeCase c = simple_case(3, 1280);
  const DecodeAnswer answer = answer_of(c);
  for (int h = 0; h < (c.options.is_table_per_head ? 2 : 1); ++h) c.k.table.view.at<int32_t>(1, h, 7) = -1;
  Context context = device_context();
  const OnDevice device(c, context);
  device.wipe();
  attend_decode(device.params, context);
  cuda_ok(cudaDeviceSynchronize(), "lost page");
  std::vector<double> out;
  if (!device.out.values(out)) report("memory outside of out was written", "lost page");
  for (size_t i = 0; i < out.size(); ++i) {
    const bool is_lost = i >= out.size() / 2;
    if (is_lost ? !std::isnan(out[i]) : !(std::abs(out[i] - answer.out[i]) < 0.05)) return report("out " + std::to_string(i), "lost page");
  }
}

// Eight problems on eight streams give the bits that they give one after another.
void streams() {
  struct One {
    Stream stream;
    DecodeCase c;
    Context context;
    std::unique_ptr<OnDevice> device;
    std::vector<unsigned char> bits;
  };
  std::vector<One> all(8);
  for (size_t i = 0; i < all.size(); ++i) {
    all[i].c = simple_case(100 + i, 1500 + 700 * static_cast<int64_t>(i), i % 2 ? 64 : 128);
    all[i].context = device_context(all[i].stream.raw);
    all[i].device = std::make_unique<OnDevice>(all[i].c, all[i].context);
    cuda_ok(cudaDeviceSynchronize(), "upload");
    attend_decode(all[i].device->params, all[i].context);
    cuda_ok(cudaDeviceSynchronize(), "alone");
    all[i].bits = all[i].device->out.bytes();
    all[i].device->wipe();
  }
  cuda_ok(cudaDeviceSynchronize(), "wipe");
  for (int round = 0; round < 20; ++round) {
    for (One& one : all) attend_decode(one.device->params, one.context);
  }
  cuda_ok(cudaDeviceSynchronize(), "together");
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i].device->out.bytes() != all[i].bits) report("differs from its bits alone", "stream " + std::to_string(i));
  }
}

// A call captured into a graph gives, with new queries and other lengths, what a plain call gives.
void graphs() {
  DecodeCase c = simple_case(7, 6400);
  const Stream own;
  Context context = device_context(own.raw);
  const OnDevice device(c, context);
  cuda_ok(cudaStreamBeginCapture(own.raw, cudaStreamCaptureModeThreadLocal), "capture");
  attend_decode(device.params, context);
  cudaGraph_t graph = nullptr;
  cuda_ok(cudaStreamEndCapture(own.raw, &graph), "capture");
  cudaGraphExec_t exec = nullptr;
  cuda_ok(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  Rng rng(8);
  for (int i = 0; i < 100; ++i) {
    device.q.upload(random_normal(rng, Dtype::bf16, c.q.view.shape(), c.options.layout).view);
    for (int64_t b = 0; b < c.options.batch; ++b) c.lengths.view.at<int32_t>(b) = static_cast<int32_t>(uniform(rng, 0, c.options.capacity));
    device.lengths.upload(c.lengths.view);
    device.wipe();
    cuda_ok(cudaDeviceSynchronize(), "wipe");
    cuda_ok(cudaGraphLaunch(exec, own.raw), "replay");
    cuda_ok(cudaStreamSynchronize(own.raw), "replay");
    const std::vector<unsigned char> replayed = device.out.bytes();
    device.wipe();
    cuda_ok(cudaDeviceSynchronize(), "wipe");
    attend_decode(device.params, context);
    cuda_ok(cudaStreamSynchronize(own.raw), "call");
    if (device.out.bytes() != replayed) return report("differs from a plain call", "replay " + std::to_string(i));
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
}

}  // namespace
}  // namespace tilewise::attend::testing

int main(int argc, char** argv) {
  using namespace tilewise::attend::testing;
  namespace sm90 = tilewise::attend::sm90;
  const TestOptions o(argc, argv);
  o.stage("cases", [&] { for_each_seed(o.cases, o.seed, [&](uint64_t seed) { run_case(seed, o.repeats, o.is_small); }); });
  const std::pair<int, const char*> variants[] = {{sm90::kDecodeProven, "light cases on the proven kernels"},
                                                  {sm90::kDecodeLight, "light"},
                                                  {sm90::kDecodeLight | sm90::kDecodeEarlyMerge, "light, early merge"},
                                                  {sm90::kDecodeLight | sm90::kDecodeCluster, "light, clusters"}};
  for (const auto& [variant, name] : variants) {
    sm90::decode_variant = variant;
    o.stage(name, [&] { light_cases(o.cases / 3, o.seed, o.repeats); });
    if (variant == sm90::kDecodeProven) continue;
    o.stage("light long", long_cases);
    o.stage("light neighbours", neighbours);
    o.stage("light lost pages", lost_pages);
    o.stage("light streams", streams);
    o.stage("light graphs", graphs);
  }
  sm90::decode_variant = sm90::kDecodeProven;
  o.stage("long", long_cases);
  o.stage("neighbours", neighbours);
  o.stage("lost pages", lost_pages);
  o.stage("errors", errors);
  o.stage("streams", streams);
  o.stage("graphs", graphs);
  return o.summary();
}
