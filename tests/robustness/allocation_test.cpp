// SPDX-License-Identifier: Apache-2.0
// Memory that runs out at each place in turn, from base/ to methods/.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "tests/attend/decode_testing.h"
#include "tests/attend/random_plan.h"
#include "tests/base/temporary_folder.h"
#include "tests/robustness/sites.h"
#include "tilewise/attend/decode.h"
#include "tilewise/attend/prepare.h"
#include "tilewise/attend/reference/backward.h"
#include "tilewise/base/file.h"
#include "tilewise/base/safetensors.h"
#include "tilewise/cache/contiguous.h"
#include "tilewise/cache/paged.h"
#include "tilewise/prepare/rotary.h"
#include "tilewise/tilewise.h"

namespace tilewise::testing {
namespace {

Plan random(uint64_t seed, bool is_by_key = false, bool has_orders = false) {
  attend::testing::Rng rng(seed);
  attend::testing::PlanOptions o;
  o.batch = 2;
  o.heads_q = 4;
  o.heads_kv = 2;
  o.groups = 2;
  o.seqlen_q = 90;
  o.seqlen_k = 100;
  o.tile = 32;
  o.has_picked = o.has_rows = true;
  o.has_order_q = o.has_order_k = has_orders;
  o.is_by_key = is_by_key;
  return attend::testing::random_plan(rng, o).plan;
}

TEST(Allocation, EachSiteOfPlansMayFail) {
  const Plan plan = random(1), other = random(1, true), ordered = random(2, false, true);
  const Tensor bits = to_bits(plan);
  Context plain;
  const OwnedBsr blocks = bsr_of_plan({.plan = plan, .has_mask = true}, plain);
  const Plan plans[] = {plan, complete(other, plain)};
  const int plan_of_head[] = {0, 1, 1, 0};
  int64_t sites = 0;
  sites += fail_each_site("dense_plan", [](Context& c) { dense_plan({.seqlen_q = 300, .seqlen_k = 300, .heads_q = 2}, c.memory); });
  sites += fail_each_site("complete", [&](Context& c) { complete(plan, c, 64); });
  sites += fail_each_site("complete by key", [&](Context& c) { complete(other, c, 64); });
  sites += fail_each_site("complete with orders", [&](Context& c) { complete(ordered, c, 64); });
  sites += fail_each_site("refine", [&](Context& c) { refine(plan, c, 16); });
  sites += fail_each_site("coarsen", [&](Context& c) { coarsen(plan, c, 128); });
  sites += fail_each_site("unite", [&](Context& c) { unite(plan, other, c); });
  sites += fail_each_site("intersect", [&](Context& c) { intersect(plan, other, c); });
  sites += fail_each_site("combine_heads", [&](Context& c) { combine_heads(plans, plan_of_head, c); });
  sites += fail_each_site("plan_of_bits", [&](Context& c) { plan_of_bits({.bits = bits.view, .tile = 32}, c); });
  sites += fail_each_site("bsr_of_plan", [&](Context& c) { bsr_of_plan({.plan = plan, .has_mask = true}, c); });
  sites += fail_each_site("plan_of_bsr", [&](Context& c) { plan_of_bsr({.bsr = blocks.bsr, .batch = 2, .heads_q = 4}, c); });
  sites += fail_each_site("to_bits", [&](Context& c) { to_bits(ordered, false, c.memory); });
  sites += fail_each_site("to_tiles", [&](Context& c) { to_tiles(ordered, 16, 16, c.memory); });
  sites += fail_each_site("content_hash", [&](Context&) { content_hash(ordered); });
  sites += fail_each_site("reads", [&](Context&) { reads(ordered); });
  sites += fail_each_site("allowed_pairs", [&](Context&) { allowed_pairs(ordered); });
  sites += fail_each_site("empty_rows", [&](Context&) { empty_rows(ordered); });
  sites += fail_each_site("validate", [&](Context&) { validate(complete(ordered, plain), ordered->mask); });
  EXPECT_GE(sites, 100);
}

TEST(Allocation, EachSiteOfFilesMayFail) {
  TemporaryFolder folder;
  const Plan plan = random(3, false, true);
  const std::string path = folder.file("plan"), target = folder.file("target");
  save_plan(plan, path);
  write_file(target, "as it was");
  // Neither a file that is cut nor one that is left beside it.
  const auto state = [&] { return std::to_string(folder.count()) + TemporaryFolder::read(target); };
  int64_t sites = 0;
  sites += fail_each_site("load_plan", [&](Context& c) { load_plan(path, c.memory); }, state);
  sites += fail_each_site("SafetensorsFile", [&](Context& c) { SafetensorsFile(path).load("by_query.whole.begin", c.memory); }, state);
  const auto keep = [&](const std::function<void()>& write) {
    write();
    write_file(target, "as it was");
  };
  sites += fail_each_site(
      "save_plan", [&](Context&) { keep([&] { save_plan(plan, target); }); },
      [&] {
    // What failed behind save_plan has written a whole plan.
        const std::string text = TemporaryFolder::read(target);
        if (text != "as it was") load_plan(target);
        return std::to_string(folder.count());
      });
  sites += fail_each_site("write_file", [&](Context&) { write_file(target, "as it was"); }, state);
  sites += fail_each_site("read_file", [&](Context&) { read_file(path, 1 << 20); }, state);
  EXPECT_GE(sites, 100);
}

/// Small tensors of attention, and outputs whose bytes tell whether a call wrote.
struct Tensors {
  Tensor q{host_memory(), Dtype::f32, {2, 4, 90, 16}}, k{host_memory(), Dtype::f32, {2, 2, 100, 16}}, v{host_memory(), Dtype::f32, {2, 2, 100, 16}};
  Tensor out{host_memory(), Dtype::f32, {2, 4, 90, 16}}, lse{host_memory(), Dtype::f32, {2, 4, 90}};
  Tensors() {
    attend::testing::Rng rng(5);
    for (const Tensor* tensor : {&q, &k, &v}) {
      for (int64_t i = 0; i < tensor->view.numel(); ++i)
        static_cast<float*>(tensor->view.raw())[i] = static_cast<float>(attend::testing::uniform(rng, -100, 100)) / 64;
    }
    out.fill_zero();
    lse.fill_zero();
  }
};

/// A call and the tensors that it writes. They are set to a mark first: a call that gets no memory from its context must have left it on every byte.
/// (What it notes down while it runs comes from operator new; where that throws, the outputs are undefined, as after a cancelled call.)
struct Written {
  std::vector<TensorView> outputs;
  std::function<void(Context&)> call;
  bool has_ended = false;

  void operator()(Context& context) {
    has_ended = false;
    for (const TensorView& view : outputs) std::memset(view.raw(), 0x5a, static_cast<size_t>(view.numel()) * size_of(view.dtype()));
    call(context);
    has_ended = true;
  }
  std::string state() const {
    if (has_ended) return "";
    for (const TensorView& view : outputs) {
      const auto* bytes = static_cast<const unsigned char*>(view.raw());
      const auto count = static_cast<int64_t>(static_cast<size_t>(view.numel()) * size_of(view.dtype()));
      for (int64_t i = 0; i < count; ++i) {
        if (bytes[i] != 0x5a) return "half written";
      }
    }
    return "";
  }
};
int64_t fail_writing(const std::string& name, std::vector<TensorView> outputs, std::function<void(Context&)> call) {
  Written written{std::move(outputs), std::move(call)};
  const int64_t sites = fail_each_site(name, [&](Context& c) { written(c); });
  return sites + fail_each_site(name + ", the context's", [&](Context& c) { written(c); }, [&] { return written.state(); }, 100, Which::context);
}

TEST(Allocation, EachSiteOfAttentionMayFail) {
  const Tensors t;
  Tensor sum(host_memory(), Dtype::f32, {2, 4, 90}), dq(host_memory(), Dtype::f32, t.q.view.shape()), dk(host_memory(), Dtype::f32, t.k.view.shape());
  Tensor dv(host_memory(), Dtype::f32, t.v.view.shape());
  const Plan plain_plan = random(1), plan_by_key = random(1, true), ordered = random(2, false, true);
  int64_t sites = 0;
  for (const auto& [name, plan] : {std::pair{"plain", &plain_plan}, std::pair{"by key", &plan_by_key}, std::pair{"with orders", &ordered}}) {
    const AttendParams params{.q = t.q.view, .k = t.k.view, .v = t.v.view, .out = t.out.view, .lse = t.lse.view, .plan = *plan};
    sites += fail_writing(std::string("attend_forward ") + name, {t.out.view, t.lse.view}, [&](Context& c) { attend_forward(params, c); });
    const AttendBackwardParams backward{.forward = params, .dout = t.out.view, .dq = dq.view, .dk = dk.view, .dv = dv.view};
    sites += fail_each_site(std::string("backward ") + name, [&](Context& c) { attend::reference::backward(backward, c); });
    bool is_built = true;
    try {
      Context c;
      attend_backward(backward, c);
    } catch (const Error& error) {
      is_built = error.kind() != Error::Kind::unsupported;
    }
    if (is_built)
      sites += fail_writing(std::string("attend_backward ") + name, {dq.view, dk.view, dv.view}, [&](Context& c) { attend_backward(backward, c); });
    sites += fail_writing(std::string("measure ") + name, {sum.view}, [&](Context& c) {
      measure({.q = t.q.view, .k = t.k.view, .plan = *plan, .over = MeasureOver::query, .sum = sum.view}, c);
    });
  }
  const Tensor newest(host_memory(), Dtype::f32, {2, 4, 2, 16}), decoded(host_memory(), Dtype::f32, {2, 4, 2, 16});
  newest.fill_zero();
  sites += fail_writing("attend_decode", {decoded.view}, [&](Context& c) {
    attend_decode({.q = newest.view, .k = t.k.view, .v = t.v.view, .out = decoded.view, .dense_band = Mask::Band{Mask::kAll, 0, 0}}, c);
  });
  attend::testing::Rng rng(3);
  attend::testing::DecodeOptions options{.batch = 2, .heads_kv = 2, .group = 2, .queries = 2, .capacity = 64, .head_dim = 16, .head_dim_v = 16};
  options.storage_k = attend::testing::Storage::int8;
  options.storage_v = attend::testing::Storage::int4;
  options.group_tokens = 4;
  options.group_channels = 8;  // scales by channel: workers expand them
  options.page = 16;
  options.plan_groups = 2;
  const attend::testing::DecodeCase coded = make_case(rng, options);
  sites += fail_writing("attend_decode of pages of codes", {coded.out.view, coded.lse.view}, [&](Context& c) { attend_decode(coded.params(), c); });
  sites += fail_each_site("attend_prepare", [&](Context& c) { attend_prepare(plain_plan, 2, c); });
  sites += fail_writing("attend_merge", {dq.view, sum.view}, [&](Context& c) {
    attend_merge({.outs = {t.out.view, t.out.view}, .lses = {t.lse.view, t.lse.view}, .out = dq.view, .lse = sum.view}, c);
  });
  sites += fail_writing("rotary", {dq.view}, [&](Context& c) { rotary({.x = t.q.view, .out = dq.view}, c); });
  sites += fail_each_site("KvCache", [&](Context& c) { KvCache(3, 2, 100, 16, c.memory); });
  EXPECT_GE(sites, 100);
}

TEST(Allocation, EachSiteOfThePagedCacheMayFail) {
  const PagedStore codes{.dtype = Dtype::i8};
  PagedKvCache cache({.num_layers = 2, .heads_kv = 2, .head_dim = 8, .num_pages = 60, .page_size = 8, .statistics_tokens = 4, .k = codes, .v = codes},
                     host_memory());
  const Tensor rows(host_memory(), Dtype::f32, {1, 2, 20, 8});
  rows.fill_zero();
  const int64_t sequence = cache.add();
  const auto fill = [&](int64_t one, Context& c) {
    cache.reserve(one, 20);
    for (int layer = 0; layer < 2; ++layer) cache.write(one, layer, cache.length(one), rows.view, rows.view, c);
    cache.advance(one, 20);
  };
  Context plain;
  fill(sequence, plain);
  const auto state = [&] {
    return std::to_string(cache.free_pages()) + " " + std::to_string(cache.num_sequences()) + " " + std::to_string(cache.length(sequence)) + " " +
           std::to_string(cache.reserved(sequence));
  };
  int64_t sites = 0;
  sites += fail_each_site("PagedKvCache", [&](Context& c) { PagedKvCache(cache.options(), c.memory); });
  sites += fail_each_site("PagedKvCache::add", [&](Context&) { cache.drop(cache.add()); }, state);
  sites += fail_each_site("PagedKvCache::fork", [&](Context&) { cache.drop(cache.fork(sequence)); }, state);
  sites += fail_each_site("PagedKvCache::batch", [&](Context& c) { cache.batch(std::vector{sequence}, 0, c.memory); }, state);
  // Whatever fails on the way, the pages of the fork come back with it, and the sequence keeps its own.
  const auto on_a_fork = [&](const std::function<void(int64_t)>& use) {
    const int64_t child = cache.fork(sequence);
    try {
      use(child);
    } catch (...) {
      cache.drop(child);
      throw;
    }
    cache.drop(child);
  };
  sites += fail_each_site("PagedKvCache pass", [&](Context& c) { on_a_fork([&](int64_t child) { fill(child, c); }); }, state);
  sites += fail_each_site("PagedKvCache::truncate", [&](Context&) { on_a_fork([&](int64_t child) { cache.truncate(child, 17); }); }, state);
  EXPECT_GE(sites, 40);
  cache.drop(sequence);
  EXPECT_EQ(cache.free_pages(), 60);
}

TEST(Allocation, EachSiteOfMethodsMayFail) {
  const Tensors t;
  int64_t sites = 0;
  for (const MethodInfo& info : methods()) {
    Problem problem{.q = t.q.view, .k = t.k.view, .v = t.v.view};
    sites += fail_each_site(info.name, [&](Context& c) { plan_with(info.name, problem, {}, c); }, {}, 40);
    sites += fail_each_site(info.name + " options", [&](Context&) { parse_options(info.name, ""); });
  }
  EXPECT_GE(sites, 100);
}

}  // namespace
}  // namespace tilewise::testing
