// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/file.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <map>
#include <string>

#include "tests/attend/random_plan.h"
#include "tests/base/temporary_folder.h"
#include "tests/plan/plan_testing.h"
#include "tilewise/base/safetensors.h"
#include "tilewise/plan/builder.h"
#include "tilewise/plan/complete.h"
#include "tilewise/plan/content_hash.h"
#include "tilewise/plan/count.h"
#include "tilewise/plan/make.h"
#include "tilewise/plan/pack.h"
#include "tilewise/plan/validate.h"

namespace tilewise {
namespace {

/// The plan of tests/plan/golden_plan.safetensors: every kind of array that a file of version 1 holds.
Plan golden_plan() {
  PlanData data;
  data.seqlen_q = data.seqlen_k = 40;
  data.batch = 2;
  data.heads_q = 2;
  data.dense_reads = 2 * 2 * 40 * 40;
  data.mask = {.bands = {{Mask::kAll, 0, 0}, {15, 0, 4}}, .head_class = {0, 1}};
  data.pools = {8};
  std::vector<int32_t> tokens;
  for (int32_t slot = 0; slot < 48; ++slot) tokens.push_back(slot < 20 ? slot : slot < 28 ? -1 : slot - 8);
  data.order_k = {plan::own(tokens.data(), {1, 1, 48}, host_memory(), data), BoxOrder{{4, 10}, {2, 4}, {1, 1}}};
  ListsBuilder builder(16, 1, 2, 3, {0, 16, 24, 40});
  for (int g = 0; g < 2; ++g) {
    builder.set(0, g, 0, {{}, {{0, 16, {}}}, {}});
    builder.set(0, g, 1, {{{0, 4, {}}}, {{4, 20, {0x0f}}, {20, 32, {}}}, {}});
    builder.set(0, g, 2, {{{0, 2, {}}, {48, 49, {}}}, {{28, 48, {}}}, {{2, 3, {0xff00}}, {3, 4, {}}}});
  }
  // The window of head 1 does not reach the pooled key.
  builder.set(0, 1, 2, {{{0, 2, {}}}, {{28, 48, {}}}, {{2, 3, {0xff00}}, {3, 4, {}}}});
  data.by_query = builder.build(host_memory(), data);
  Context context;
  return complete(make_plan(std::move(data)), context, 16);
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::io);
    return error.what();
  }
  return "";
}

TEST(PlanFile, ReadsTheGoldenFile) {
  const Plan loaded = load_plan("tests/plan/golden_plan.safetensors");
  EXPECT_EQ(content_hash(loaded), content_hash(golden_plan()));
  EXPECT_EQ(content_hash_text(loaded), "d24c8ad5cbf1f70a");  // the same on every machine
  EXPECT_TRUE(loaded->by_key.has_runs());
  EXPECT_EQ(reads(loaded), reads(golden_plan()));
  EXPECT_EQ(loaded->order_k.boxes, golden_plan()->order_k.boxes);
  EXPECT_FALSE(find_fault(loaded, loaded->mask).has_value());
}

/// Planned by key: spans, an order of the queries, query lists, dense reads that differ by head. by_query was made from it.
Plan golden_plan_by_key() {
  PlanData data;
  data.seqlen_q = 24, data.seqlen_k = 20;
  data.heads_q = 2;
  data.dense_reads_of_head = {24 * 20, 24 * 12};
  data.dense_reads = 24 * 32;
  data.is_by_key = true;
  std::vector<int32_t> spans;
  for (int32_t c = 0; c < 2; ++c) {
    for (int32_t q = 0; q < 24; ++q) spans.insert(spans.end(), {0, c == 0 ? 20 : 8, 16, c == 0 ? 16 : 20});
  }
  data.mask.spans = plan::own(spans.data(), {2, 1, 24, 4}, host_memory(), data);
  data.mask.head_class = {0, 1};
  std::vector<int32_t> tokens;
  for (int32_t slot = 0; slot < 26; ++slot) tokens.push_back(slot < 2 ? -1 : 25 - slot);
  data.order_q = {plan::own(tokens.data(), {1, 1, 26}, host_memory(), data), {}};
  ListsBuilder builder(16, 1, 2, 2);
  builder.set(0, 0, 0, {{{2, 10, {}}}, {{10, 16, {0xf0f0}}}, {{20, 22, {0x3}}}});
  builder.set(0, 0, 1, {{}, {{0, 26, {}}}, {}});
  builder.set(0, 1, 0, {{}, {{4, 18, {}}}, {{20, 21, {0x81}}}});
  builder.share(0, 1, 1, 0, 0, 1);
  data.by_key = builder.build_by_key(host_memory(), data);
  Context context;
  return complete(make_plan(std::move(data)), context, 16);
}

/// Neighbourhoods, and lists as a kernel leaves them: spaced, with a status.
Plan golden_plan_of_grids() {
  PlanData data;
  data.seqlen_q = data.seqlen_k = 36;
  data.heads_q = 2;
  data.dense_reads = 2 * 36 * 36;
  data.mask.first = 4;
  data.mask.grids = {{{.length = 4, .window = 3}, {.length = 8, .window = 2, .stride = 2, .dilation = 2, .is_causal = true}},
                     {{.length = 8, .window = 8}, {.length = 4, .window = 1}}};
  data.mask.head_class = {1, 0};
  data.by_query.tile = 16;
  const int64_t begin[] = {0, 3, 6};
  const int32_t count[] = {2, 1, 1}, status[] = {1, 0};
  const int32_t start[] = {0, 20, -1, 4, -1, -1, 0}, stop[] = {12, 36, -1, 36, -1, -1, 36};
  data.by_query.masked = {plan::own(begin, {1, 1, 3}, host_memory(), data),
                          plan::own(count, {1, 1, 3}, host_memory(), data),
                          plan::own(start, {7}, host_memory(), data),
                          plan::own(stop, {7}, host_memory(), data),
                          {},
                          4};
  data.by_query.status = plan::own(status, {2}, host_memory(), data);
  return make_plan(std::move(data));
}

/// Lists and orders of their own for each batch entry, both axes ordered, two pools, spans of a batch, words of rows of more than 64 slots, runs without `stop`.
Plan golden_plan_of_batches() {
  PlanData data;
  data.seqlen_q = 70, data.seqlen_k = 32;
  data.batch = 2;
  data.heads_q = 4;
  data.dense_reads = 2 * 4 * 70 * 32;
  std::vector<int32_t> spans, tokens_q, tokens_k;
  for (int32_t b = 0; b < 2; ++b) {
    for (int32_t q = 0; q < 70; ++q) spans.insert(spans.end(), {0, 16, 16, 32});
    for (int32_t slot = 0; slot < 70; ++slot) tokens_q.push_back(b == 0 ? slot : 69 - slot);
    for (int32_t g = 0; g < 2; ++g) {
      for (int32_t slot = 0; slot < 32; ++slot) tokens_k.push_back((slot + 8 * b + 16 * g) % 32);
    }
  }
  data.mask.spans = plan::own(spans.data(), {1, 2, 70, 4}, host_memory(), data);
  data.order_q = {plan::own(tokens_q.data(), {2, 1, 70}, host_memory(), data), {}};
  data.order_k = {plan::own(tokens_k.data(), {2, 2, 32}, host_memory(), data), {}};
  data.pools = {4, 16};
  ListsBuilder builder(128, 2, 4, 1);
  for (int b = 0; b < 2; ++b) {
    for (int g = 0; g < 4; ++g) {
      const int32_t first = 8 * ((b + g) % 3);
      builder.set(b, g, 0, {{{first, first + 8, {}}}, {{24, 32, {0xff, 0x21}}}, {{32 + g, 33 + g, {~0ull, 0x3f}}, {41, 42, {0, 0x15}}}});
    }
  }
  data.by_query = builder.build(host_memory(), data);
  return make_plan(std::move(data));
}

TEST(PlanFile, ReadsEveryGoldenFile) {
  const std::vector<std::pair<const char*, Plan>> files{{"tests/plan/golden_plan_by_key.safetensors", golden_plan_by_key()},
                                                        {"tests/plan/golden_plan_of_grids.safetensors", golden_plan_of_grids()},
                                                        {"tests/plan/golden_plan_of_batches.safetensors", golden_plan_of_batches()}};
  for (const auto& [path, plan] : files) {
    ASSERT_FALSE(find_fault(plan, plan->mask).has_value()) << *find_fault(plan, plan->mask);
    const Plan loaded = load_plan(path);
    EXPECT_EQ(content_hash(loaded), content_hash(plan)) << path;
    EXPECT_EQ(loaded->is_by_key, plan->is_by_key);
    EXPECT_EQ(loaded->by_key.has_runs(), plan->by_key.has_runs());
    EXPECT_EQ(loaded->dense_reads_of_head, plan->dense_reads_of_head);
    EXPECT_EQ(allowed_pairs(loaded), allowed_pairs(plan));
    EXPECT_EQ(loaded->mask.grids, plan->mask.grids);
    EXPECT_EQ(loaded->by_query.status.has_value(), plan->by_query.status.has_value());
  }
  EXPECT_EQ(content_hash_text(files[0].second), "0524b13050923f31");
  EXPECT_EQ(content_hash_text(files[1].second), "c56468073ed3bb9b");
  EXPECT_EQ(content_hash_text(files[2].second), "5ecded473229e46b");
}

// Each part of a plan that a file may hold is in one of the golden files.
TEST(PlanFile, GoldenFilesHoldEveryPart) {
  std::map<std::string, int> parts;
  for (const char* name : {"", "_by_key", "_of_grids", "_of_batches"}) {
    const Plan plan = load_plan(std::string("tests/plan/golden_plan") + name + ".safetensors");
    const auto note = [&](const std::string& part, bool is_there) { parts[part] += is_there ? 1 : 0; };
    for (const auto& [direction, lists] : {std::pair{"by_query", &plan->by_query}, std::pair{"by_key", &plan->by_key}}) {
      note(direction, lists->has_runs());
      for (const auto& [list_name, list] :
           {std::pair{"whole", &lists->whole}, std::pair{"masked", &lists->masked}, std::pair{"picked", &lists->picked}}) {
        const std::string list_of = std::string(direction) + " " + list_name;
        note(list_of, list->begin.has_value() && list->start.numel() > 0);
        if (!list->begin.has_value()) continue;
        note("batched lists", list->begin.dim(0) > 1);
        note("groups", list->begin.dim(1) > 1);
        note("stop", list->stop.has_value());
        note("no stop", !list->stop.has_value() && list->grain > 1);
        note("grain", list->grain > 1);
        if (std::string(list_name) != "whole") note(list_of + " rows", list->rows.has_value());
        note("two words of rows", list->rows.has_value() && list->rows.dim(1) > 1);
      }
      note("edge", lists->edge.has_value());
      note("status", lists->status.has_value());
    }
    for (const auto& [axis, order] : {std::pair{"order_q", &plan->order_q}, std::pair{"order_k", &plan->order_k}}) {
      note(axis, order->token.has_value());
      note("batched order", order->token.has_value() && order->token.dim(0) > 1);
      note("grouped order", order->token.has_value() && order->token.dim(1) > 1);
      note("boxes", order->boxes.has_value());
    }
    note("both orders", plan->order_q.token.has_value() && plan->order_k.token.has_value());
    note("one pool", plan->pools.size() == 1);
    note("pools", plan->pools.size() > 1);
    note("bands", !plan->mask.bands.empty());
    note("spans", plan->mask.spans.has_value());
    note("batched spans", plan->mask.spans.has_value() && plan->mask.spans.dim(1) > 1);
    note("grids", !plan->mask.grids.empty());
    note("first cell", plan->mask.first > 0);
    note("head_class", !plan->mask.head_class.empty());
    note("batch", plan->batch > 1);
    note("dense_reads_of_head", !plan->dense_reads_of_head.empty());
    note("planned by key", plan->is_by_key);
  }
  for (const auto& [part, files] : parts) EXPECT_GE(files, 1) << part << " is in no golden file; add one that holds it";
}

TEST(PlanFile, ComesBackAsItWas) {
  const TemporaryFolder folder;
  Context context;
  for (uint64_t seed = 0; seed < 80; ++seed) {
    using namespace attend::testing;
    Rng rng(seed);
    PlanOptions o;
    o.batch = uniform(rng, 1, 2);
    o.heads_q = 2;
    o.heads_kv = static_cast<int>(uniform(rng, 1, 2));
    o.seqlen_q = uniform(rng, 1, 100);
    o.seqlen_k = uniform(rng, 1, 100);
    o.tile = chance(rng, 0.5) ? 16 : 128;
    o.groups = 2;
    o.has_batched_lists = chance(rng, 0.5);
    o.mask = static_cast<MaskKind>(uniform(rng, 0, 6));
    o.has_picked = chance(rng, 0.5);
    o.has_rows = chance(rng, 0.5);
    o.has_edges = chance(rng, 0.3);
    o.has_shared = chance(rng, 0.3);
    o.is_spaced = chance(rng, 0.3);
    o.has_order_q = chance(rng, 0.3);
    o.has_order_k = chance(rng, 0.3);
    if (chance(rng, 0.25)) o.pools = {4, 16};
    o.is_by_key = chance(rng, 0.3);
    const RandomPlan random = random_plan(rng, o);
    for (const Plan& plan : {random.plan, complete(random.plan, context, 64)}) {
      const std::string path = folder.file("plan.safetensors");
      save_plan(plan, path);
      const Plan back = load_plan(path);
      ASSERT_EQ(content_hash(back), content_hash(plan)) << "seed " << seed;
      ASSERT_EQ(back->by_key.has_runs(), plan->by_key.has_runs());
      ASSERT_EQ(back->by_query.has_runs(), plan->by_query.has_runs());
      ASSERT_EQ(reads(back), random.reads);
      ASSERT_EQ(back->memory.empty(), false);
    }
  }
}

/// The golden file with one thing changed.
struct Change {
  std::string says;
  std::function<void(std::vector<NamedTensor>&, SafetensorsMetadata&, std::vector<Tensor>&)> make;
};

TEST(PlanFile, TrustsNothing) {
  const TemporaryFolder folder;
  const std::string path = folder.file("plan.safetensors");
  const auto find = [](std::vector<NamedTensor>& tensors, const std::string& name) -> TensorView& {
    for (NamedTensor& tensor : tensors) {
      if (tensor.name == name) return tensor.view;
    }
    ADD_FAILURE() << "no " << name;
    return tensors[0].view;
  };
  const std::vector<Change> changes{
      {"no format", [](auto&, auto& m, auto&) { m.erase("format"); }},
      {"its format is 'other'", [](auto&, auto& m, auto&) { m["format"] = "other"; }},
      {"it has version 2", [](auto&, auto& m, auto&) { m["version"] = "2"; }},
      {"no seqlen_k", [](auto&, auto& m, auto&) { m.erase("seqlen_k"); }},
      {"takes a whole number", [](auto&, auto& m, auto&) { m["seqlen_q"] = "40x"; }},
      {"takes a whole number", [](auto&, auto& m, auto&) { m["batch"] = ""; }},
      {"out of range", [](auto&, auto& m, auto&) { m["heads_q"] = "0"; }},
      {"out of range", [](auto&, auto& m, auto&) { m["batch"] = "99999999"; }},
      {"is not valid", [](auto&, auto& m, auto&) { m["seqlen_q"] = "41"; }},
      {"is damaged", [](auto&, auto& m, auto&) { m["dense_reads"] = "7"; }},
      {"planned is 'by_row'", [](auto&, auto& m, auto&) { m["planned"] = "by_row"; }},
      {"is damaged", [](auto&, auto& m, auto&) { m["planned"] = "by_key"; }},
      {"dense_reads_of_head has 3 numbers",
       [](auto& t, auto&, auto& extra) {
         extra.emplace_back(host_memory(), Dtype::i64, Shape{3});
         extra.back().fill_zero();
         t.push_back({"dense_reads_of_head", extra.back().view});
       }},
      {"dense_reads_of_head adds up to 0",
       [](auto& t, auto&, auto& extra) {
         extra.emplace_back(host_memory(), Dtype::i64, Shape{2});
         extra.back().fill_zero();
         t.push_back({"dense_reads_of_head", extra.back().view});
       }},
      {"is damaged", [](auto&, auto& m, auto&) { m["hash"] = "0000000000000000"; }},
      {"no hash", [](auto&, auto& m, auto&) { m.erase("hash"); }},
      {"is no part of a plan", [](auto& t, auto&, auto&) { t[0].name = "by_query.other"; }},
      {"is no part of a plan",
       [](auto& t, auto&, auto& extra) {
         extra.emplace_back(host_memory(), Dtype::f32, Shape{3});
         extra.back().fill_zero();
         t.push_back({"extra", extra.back().view});
       }},
      {"has 2 axes, takes 1",
       [&](auto& t, auto&, auto& extra) {
         extra.emplace_back(host_memory(), Dtype::i32, Shape{2, 2});
         extra.back().fill_zero();
         find(t, "by_query.edge") = extra.back().view;
       }},
      {"is f32, takes i32",
       [&](auto& t, auto&, auto& extra) {
         extra.emplace_back(host_memory(), Dtype::f32, Shape{4});
         extra.back().fill_zero();
         find(t, "by_query.edge") = extra.back().view;
       }},
      {"without count or start",
       [](auto& t, auto&, auto&) { std::erase_if(t, [](const NamedTensor& x) { return x.name == "by_query.masked.count"; }); }},
      {"is not valid", [&](auto& t, auto&, auto&) { find(t, "by_query.masked.stop").template data<int32_t>()[0] = 1000; }},
      {"is not valid", [&](auto& t, auto&, auto&) { find(t, "by_query.masked.begin").template data<int64_t>()[0] = int64_t{1} << 62; }},
      {"is not valid", [&](auto& t, auto&, auto&) { find(t, "order_k.token").template data<int32_t>()[0] = 1; }},
      {"takes 2 to", [&](auto& t, auto&, auto&) { find(t, "pools").template data<int64_t>()[0] = 0; }},
      {"takes 0 to 15", [&](auto& t, auto&, auto&) { find(t, "mask.head_class").template data<int64_t>()[0] = 99; }},
      {"is damaged", [&](auto& t, auto&, auto&) { find(t, "mask.bands").template data<int64_t>()[4] = 1; }},
      {"takes 1 to", [&](auto& t, auto&, auto&) { find(t, "by_query.tile_and_grains").template data<int64_t>()[1] = 0; }},
  };
  for (const Change& change : changes) {
    save_plan(golden_plan(), path);
    std::vector<Tensor> owned, extra;
    std::vector<NamedTensor> tensors;
    SafetensorsMetadata metadata;
    {
      const SafetensorsFile file(path);
      metadata = file.metadata();
      for (const SafetensorsEntry& entry : file.entries()) {
        owned.push_back(file.load(entry.name, host_memory()));
        tensors.push_back({entry.name, owned.back().view});
      }
    }
    change.make(tensors, metadata, extra);
    write_safetensors(path, tensors, metadata);
    const std::string message = message_of([&] { load_plan(path); });
    EXPECT_NE(message.find(change.says), std::string::npos) << "wanted '" << change.says << "', got '" << message << "'";
    EXPECT_NE(message.find(path), std::string::npos) << message;
  }
  EXPECT_NE(message_of([&] { load_plan(folder.file("missing")); }), "");
  write_file(path, "no plan at all");
  EXPECT_NE(message_of([&] { load_plan(path); }), "");
  // Cut anywhere, the file is refused.
  save_plan(golden_plan(), path);
  const std::string whole = read_file(path, 1 << 20);
  for (size_t length = 0; length < whole.size(); length += 97) {
    write_file(path, whole.substr(0, length));
    EXPECT_NE(message_of([&] { load_plan(path); }), "") << length;
  }
}

TEST(PlanFile, SavesWholeOrNotAtAll) {
  const TemporaryFolder folder;
  EXPECT_THROW(save_plan(nullptr, folder.file("a")), Error);
  EXPECT_THROW(save_plan(golden_plan(), folder.file("no/such/folder")), Error);
  const std::shared_ptr<PlanData> broken = testing::clone(golden_plan());
  broken->by_query.tile = 8;
  EXPECT_THROW(save_plan(Plan(broken), folder.file("b")), Error);
  EXPECT_FALSE(std::filesystem::exists(folder.file("b")));
}

}  // namespace
}  // namespace tilewise
