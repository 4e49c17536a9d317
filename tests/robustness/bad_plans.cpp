// SPDX-License-Identifier: Apache-2.0
// Bad calls of what takes several plans, blocks or files.
#include <algorithm>
#include <bit>
#include <cstring>

#include "tests/base/temporary_folder.h"
#include "tests/plan/plan_testing.h"
#include "tests/robustness/bad_call.h"
#include "tilewise/base/file.h"
#include "tilewise/base/safetensors.h"
#include "tilewise/plan/pack.h"
#include "tilewise/tilewise.h"

namespace tilewise::testing {
namespace {

using Kind = Error::Kind;

Plan dense(int64_t seqlen_q, int64_t seqlen_k, int heads = 2, int64_t batch = 1, const Mask& mask = Mask::causal()) {
  return dense_plan({.seqlen_q = seqlen_q, .seqlen_k = seqlen_k, .tile = 16, .mask = mask, .batch = batch, .heads_q = heads});
}
Plan with(const std::function<void(PlanData&)>& change) {
  auto data = clone(dense(50, 50));
  change(*data);
  return data;
}
Plan with_order(bool is_reversed) {
  return with([&](PlanData& d) {
    Tensor token(host_memory(), Dtype::i32, {1, 1, 50});
    for (int32_t t = 0; t < 50; ++t) token.view.at<int32_t>(0, 0, t) = is_reversed ? 49 - t : t;
    d.order_k.token = plan::keep(d, std::move(token));
  });
}

std::vector<BadCall> of_pairs() {
  static Context context;
  const Plan good = dense(50, 50), windowed = dense(50, 50, 2, 1, Mask{.bands = {{8, 0, 0}}, .spans = {}, .grids = {}, .first = 0, .head_class = {}});
  const Plan reversed = with_order(true), pooled = with([](PlanData& d) { d.pools = {4}; });
  std::vector<BadCall> bad;
  for (const auto& [name, call] :
       {std::pair<std::string, Plan (*)(const Plan&, const Plan&, Context&)>{"unite", &unite}, {"intersect", &intersect}}) {
    const auto add = [&, run = call, function = name](const char* what, Kind kind, std::vector<std::string> says, const Plan& other) {
      says.insert(says.begin(), function);
      bad.push_back({function + ": " + what, kind, std::move(says), [=] { run(good, other, context); }});
    };
    add("other queries", Kind::value, {"49"}, dense(49, 50));
    add("other keys", Kind::value, {"51"}, dense(50, 51));
    add("other heads", Kind::value, {"heads"}, dense(50, 50, 4));
    add("other batch", Kind::value, {"3 x 2 heads"}, dense(50, 50, 2, 3));
    add("another order", Kind::unsupported, {"orders"}, reversed);
    add("pools", Kind::unsupported, {"pools"}, pooled);
    add("another mask", Kind::unsupported, {"mask"}, windowed);
  }
  const auto heads = [](const std::vector<Plan>& plans, const std::vector<int>& of_head) { return [=] { combine_heads(plans, of_head, context); }; };
  bad.push_back({"combine_heads: no plan at all", Kind::value, {"combine_heads"}, heads({}, {})});
  bad.push_back({"combine_heads: heads", Kind::value, {"combine_heads", "head"}, heads({good}, {0})});
  bad.push_back({"combine_heads: a plan that is not there", Kind::value, {"combine_heads", "1"}, heads({good}, {0, 1})});
  bad.push_back({"combine_heads: a plan below 0", Kind::value, {"combine_heads", "-1"}, heads({good}, {-1, 0})});
  bad.push_back({"combine_heads: other lengths", Kind::value, {"combine_heads", "51"}, heads({good, dense(50, 51)}, {0, 1})});
  bad.push_back({"combine_heads: another order", Kind::unsupported, {"combine_heads", "order"}, heads({good, reversed}, {0, 1})});
  return bad;
}

/// Blocks of 16 x 16 over 32 x 48 tokens: two rows with two columns each.
struct Blocks {
  Tensor indptr{host_memory(), Dtype::i32, {1, 1, 3}}, indices{host_memory(), Dtype::i32, {4}}, mask{host_memory(), Dtype::boolean, {4, 16, 16}};
  Bsr bsr{.seqlen_q = 32, .seqlen_k = 48, .block_q = 16, .block_k = 16, .indptr = indptr.view, .indices = indices.view, .mask = {}};

  Blocks() {
    const int32_t begin[] = {0, 2, 4}, columns[] = {0, 2, 1, 2};
    std::copy_n(begin, 3, indptr.view.data<int32_t>());
    std::copy_n(columns, 4, indices.view.data<int32_t>());
    mask.fill_zero();
  }
};

std::vector<BadCall> of_blocks() {
  static Context context;
  const auto bad = [](const char* what, Kind kind, std::vector<std::string> says, const std::function<void(Blocks&)>& spoil) {
    says.insert(says.begin(), "plan_of_bsr");
    return BadCall{std::string("plan_of_bsr: ") + what, kind, std::move(says), [spoil] {
                     Blocks blocks;
                     spoil(blocks);
                     plan_of_bsr({.bsr = blocks.bsr}, context);
                   }};
  };
  const auto at = [](const TensorView& view, int64_t i) -> int32_t& { return static_cast<int32_t*>(view.raw())[i]; };
  return {
      bad("no indptr", Kind::shape, {"indptr"}, [](Blocks& b) { b.bsr.indptr = {}; }),
      bad("rows of indptr", Kind::shape, {"indptr", "[1, 1, 2]"}, [](Blocks& b) { b.bsr.indptr = b.bsr.indptr.slice(2, 0, 2); }),
      bad("dtype of indptr", Kind::dtype, {"indptr is f32"},
          [](Blocks& b) { b.bsr.indptr = TensorView(b.indptr.view.raw(), Dtype::f32, {1, 1, 3}); }),
      bad("dtype of indices", Kind::dtype, {"indices is i64"}, [](Blocks& b) { b.bsr.indices = TensorView(b.mask.view.raw(), Dtype::i64, {4}); }),
      bad("shape of mask", Kind::shape, {"mask"}, [](Blocks& b) { b.bsr.mask = b.mask.view.slice(0, 0, 3); }),
      bad("device", Kind::device, {"indices lies on"},
          [](Blocks& b) { b.bsr.indices = TensorView(b.indices.view.raw(), Dtype::i32, {4}, {Device::Type::cuda, 0}); }),
      bad("block_q", Kind::value, {"block_q is 0"}, [](Blocks& b) { b.bsr.block_q = 0; }),
      bad("block_k", Kind::value, {"block_k"}, [](Blocks& b) { b.bsr.block_k = -16; }),
      bad("seqlen", Kind::value, {"seqlen_q"}, [](Blocks& b) { b.bsr.seqlen_q = -1; }),
      bad("indptr that descends", Kind::value, {"indptr"}, [=](Blocks& b) { at(b.bsr.indptr, 1) = -1; }),
      bad("indptr past the end", Kind::value, {"indptr", "9"}, [=](Blocks& b) { at(b.bsr.indptr, 2) = 9; }),
      bad("a column that is not there", Kind::value, {"3"}, [=](Blocks& b) { at(b.bsr.indices, 1) = 3; }),
      bad("a column below 0", Kind::value, {"-1"}, [=](Blocks& b) { at(b.bsr.indices, 0) = -1; }),
      bad("unsorted columns", Kind::value, {"2"}, [=](Blocks& b) { std::swap(at(b.bsr.indices, 0), at(b.bsr.indices, 1)); }),
      bad("a column twice", Kind::value, {"2"}, [=](Blocks& b) { at(b.bsr.indices, 0) = 2; }),
  };
}

}  // namespace

std::vector<BadCall> bad_sets() {
  std::vector<BadCall> all = of_pairs();
  for (BadCall& bad : of_blocks()) all.push_back(std::move(bad));
  return all;
}

std::vector<BadCall> bad_files() {
  static const TemporaryFolder folder;
  static const std::string whole = [] {
    save_plan(dense(50, 50), folder.file("plan"));
    return TemporaryFolder::read(folder.file("plan"));
  }();
  static int number = 0;
  const auto place = [](const std::string& bytes) {
    const std::string path = folder.file("file" + std::to_string(number++));
    TemporaryFolder::write(path, bytes);
    return path;
  };
  // A safetensors file with this header.
  const auto with_header = [=](const std::string& header, const std::string& data = std::string(64, '\0')) {
    std::string bytes(8, '\0');
    const uint64_t size = header.size();
    std::memcpy(bytes.data(), &size, 8);
    return place(bytes + header + data);
  };
  std::string flipped = whole, oversized = whole;
  flipped[flipped.size() - 5] = static_cast<char>(flipped[flipped.size() - 5] ^ 1);
  std::memset(oversized.data(), 0x7f, 8);
  std::vector<BadCall> bad;
  const auto add = [&](const char* what, const std::string& path, const std::vector<std::string>& says = {}) {
    std::vector<std::string> parts = says;
    parts.push_back(path);
    bad.push_back({std::string("load_plan: ") + what, Kind::io, parts, [path] { load_plan(path); }});
    bad.push_back({std::string("SafetensorsFile: ") + what, Kind::io, parts, [path] { SafetensorsFile file(path); }});
  };
  add("missing", folder.file("nothing"), {"No such file"});
  add("a folder", folder.path());
  add("empty", place(""));
  add("seven bytes", place("1234567"));
  add("cut within the header", place(whole.substr(0, 60)));
  add("cut within the data", place(whole.substr(0, whole.size() - 3)));
  add("with more behind it", place(whole + "more"));
  add("a header longer than the file", place(oversized));
  add("a header that is no JSON", with_header("{\"a\": "));
  add("a header that is a list", with_header("[1, 2]"));
  add("a tensor of no dtype", with_header(R"({"a":{"shape":[1],"data_offsets":[0,64]}})"));
  add("a tensor of an unknown dtype", with_header(R"({"a":{"dtype":"F9","shape":[16],"data_offsets":[0,64]}})"));
  add("a tensor of negative size", with_header(R"({"a":{"dtype":"F32","shape":[-16],"data_offsets":[0,64]}})"));
  add("a tensor that overflows", with_header(R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,64]}})"));
  add("offsets past the end", with_header(R"({"a":{"dtype":"F32","shape":[17],"data_offsets":[0,68]}})"));
  add("offsets reversed", with_header(R"({"a":{"dtype":"F32","shape":[16],"data_offsets":[64,0]}})"));
  add("offsets of another size", with_header(R"({"a":{"dtype":"F32","shape":[15],"data_offsets":[0,64]}})"));
  add("two tensors that overlap",
      with_header(R"({"a":{"dtype":"F32","shape":[12],"data_offsets":[0,48]},"b":{"dtype":"F32","shape":[8],"data_offsets":[32,64]}})"));
  add("a name twice",
      with_header(R"({"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]},"a":{"dtype":"F32","shape":[8],"data_offsets":[32,64]}})"));
  const std::string other = with_header(R"({"a":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}})"), changed = place(flipped);
  bad.push_back({"load_plan: tensors that are no plan", Kind::io, {other}, [other] { load_plan(other); }});
  bad.push_back({"load_plan: a bit flipped", Kind::io, {changed, "by_query"}, [changed] { load_plan(changed); }});
  bad.push_back({"SafetensorsFile: a tensor that is not there", Kind::io, {"\"b\""}, [other] { SafetensorsFile(other).load("b", host_memory()); }});
  const std::string nowhere = folder.file("no/folder/out");
  bad.push_back({"save_plan: nowhere", Kind::io, {nowhere}, [=] { save_plan(dense(9, 9), nowhere); }});
  bad.push_back({"write_safetensors: nowhere", Kind::io, {nowhere}, [=] { write_safetensors(nowhere, {}); }});
  bad.push_back({"write_file: nowhere", Kind::io, {nowhere}, [=] { write_file(nowhere, "text"); }});
  bad.push_back({"write_file: a folder", Kind::io, {folder.path()}, [] { write_file(folder.path(), "text"); }});
  bad.push_back({"AtomicFile: nowhere", Kind::io, {nowhere}, [=] { AtomicFile file(nowhere); }});
  bad.push_back({"MappedFile: missing", Kind::io, {folder.file("nothing")}, [] { MappedFile file(folder.file("nothing")); }});
  bad.push_back({"MappedFile: a folder", Kind::io, {folder.path()}, [] { MappedFile file(folder.path()); }});
  bad.push_back({"read_file: missing", Kind::io, {folder.file("nothing")}, [] { read_file(folder.file("nothing"), 9); }});
  bad.push_back({"read_file: longer than is taken", Kind::io, {"at most 9"}, [=] { read_file(changed, 9); }});
  return bad;
}

}  // namespace tilewise::testing
