// SPDX-License-Identifier: Apache-2.0
// What it takes to make plans on a Hopper GPU: mean pool and top-k (8K, 32K, 128K), xattention's scores and choice beside causal dense attention (32K), complete() and the order of rows beside the attention of the same plan (32K, density .10).
// Protocol: each part is a CUDA graph; parts of a row take turns in windows of 60 ms, one round to soak and `--rounds` measured, median of the rounds. 32 query
// heads on 8, D=128, bf16, inputs above the size of L2. Values are not checked here: tilewise_sm90_plan_test does that.
// usage: tilewise_sm90_plan_bench [--rounds 5] [--commit ID] --out FILE.json
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include "tilewise/attend/attend.h"
#include "tilewise/attend/sm90/device_plan.h"
#include "tilewise/machine/cuda/memory.h"
#include "tilewise/plan/cuda/complete.h"
#include "tilewise/plan/cuda/launch.h"
#include "tilewise/plan/make.h"
#include "tilewise/select/cuda/antidiagonal.h"
#include "tilewise/select/cuda/mean_pool.h"
#include "tilewise/select/cuda/plan.h"

namespace tilewise {
namespace {

constexpr int kHeadsQ = 32, kHeadsKv = 8, kDim = 128, kTile = 128;
constexpr double kWindowMs = 60;

void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

struct Bytes {
  void* data = nullptr;
  explicit Bytes(size_t bytes) { require(cudaMalloc(&data, std::max<size_t>(bytes, 1)), "cudaMalloc"); }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  ~Bytes() { cudaFree(data); }
};

/// Fills with values like those of normal draws: a sum of four uniform ones, made on the host once and repeated.
class Normals {
 public:
  Normals() : values_(size_t{1} << 20) {
    uint64_t state = 88172645463325252ULL;
    const auto uniform = [&] {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      return static_cast<double>(state >> 11) * 0x1p-53;
    };
    for (bf16& value : values_) value = bf16(static_cast<float>((uniform() + uniform() + uniform() + uniform() - 2) * std::sqrt(3.0)));
  }
  void fill(const Bytes& to, int64_t count) const {
    for (int64_t at = 0; at < count; at += static_cast<int64_t>(values_.size()) - 7) {  // no two heads alike
      const int64_t part = std::min(count - at, static_cast<int64_t>(values_.size()));
      require(cudaMemcpy(static_cast<bf16*>(to.data) + at, values_.data(), static_cast<size_t>(part) * sizeof(bf16), cudaMemcpyHostToDevice), "fill");
    }
  }

 private:
  std::vector<bf16> values_;
};

/// A graph of one call.
struct Graph {
  std::string name;
  cudaGraphExec_t exec = nullptr;
  std::vector<double> times_ms;

  Graph(std::string named, cudaStream_t stream, const std::function<void()>& call) : name(std::move(named)) {
    call();
    require(cudaStreamSynchronize(stream), name.c_str());
    cudaGraph_t graph = nullptr;
    require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin capture");
    call();
    require(cudaStreamEndCapture(stream, &graph), "end capture");
    require(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
    require(cudaGraphDestroy(graph), "graph");
  }
  double at_share(double share) const {
    std::vector<double> sorted = times_ms;
    std::sort(sorted.begin(), sorted.end());
    return sorted[static_cast<size_t>(share * static_cast<double>(sorted.size() - 1) + 0.5)];
  }
};

void time_in_turns(std::vector<Graph>& graphs, int rounds, cudaStream_t stream) {
  cudaEvent_t begin = nullptr, end = nullptr;
  require(cudaEventCreate(&begin), "event");
  require(cudaEventCreate(&end), "event");
  const auto run = [&](Graph& graph, int calls) {
    require(cudaEventRecord(begin, stream), "record");
    for (int i = 0; i < calls; ++i) require(cudaGraphLaunch(graph.exec, stream), "launch");
    require(cudaEventRecord(end, stream), "record");
    require(cudaEventSynchronize(end), graph.name.c_str());
    float ms = 0;
    require(cudaEventElapsedTime(&ms, begin, end), "time");
    return static_cast<double>(ms) / calls;
  };
  std::vector<int> calls;
  for (Graph& graph : graphs) calls.push_back(static_cast<int>(std::clamp(kWindowMs / std::max(run(graph, 3), 1e-3), 1.0, 5000.0)));
  for (int round = -1; round < rounds; ++round) {
    for (size_t i = 0; i < graphs.size(); ++i) {
      const double ms = run(graphs[i], calls[i]);
      if (round >= 0) graphs[i].times_ms.push_back(ms);
    }
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
}

struct Results {
  std::string rows;
  void add(const std::string& row, const Graph& graph) {
    char line[256];
    std::snprintf(line, sizeof line, "%s  {\"row\": \"%s\", \"kernel\": \"%s\", \"time_ms\": %.6f, \"p10_ms\": %.6f, \"min_ms\": %.6f}",
                  rows.empty() ? "" : ",\n", row.c_str(), graph.name.c_str(), graph.at_share(.5), graph.at_share(.1), graph.at_share(0));
    rows += line;
    std::printf("%-28s %-22s %9.4f ms\n", row.c_str(), graph.name.c_str(), graph.at_share(.5));
    std::fflush(stdout);
  }
};

TensorView tensor(const Bytes& bytes, int64_t heads, int64_t seqlen) {
  return TensorView(bytes.data, Dtype::bf16, {1, heads, seqlen, kDim}, Device{Device::Type::cuda, 0});
}

void bench(int64_t seqlen, const char* name, bool has_attention, int rounds, Context& context, cudaStream_t stream, const Normals& normals,
           Results& results) {
  const Bytes q_bytes(static_cast<size_t>(seqlen * kHeadsQ * kDim) * 2), k_bytes(static_cast<size_t>(seqlen * kHeadsKv * kDim) * 2);
  normals.fill(q_bytes, seqlen * kHeadsQ * kDim);
  normals.fill(k_bytes, seqlen * kHeadsKv * kDim);
  const select::Inputs inputs{.q = tensor(q_bytes, kHeadsQ, seqlen),
                              .k = tensor(k_bytes, kHeadsKv, seqlen),
                              .mask = Mask::full(),
                              .softmax_scale = 1 / std::sqrt(static_cast<float>(kDim))};
  select::Budget budget;
  budget.share = {.10f};
  const Bytes values(select::cuda::mean_pool_bytes(inputs, kTile)), pools(select::cuda::mean_pool_workspace_bytes(inputs, kTile));
  const select::Scores scores = select::cuda::mean_pool_in(inputs, kTile, values.data);
  const select::cuda::PlanRoom room = select::cuda::most_runs(scores, budget);
  const Bytes lists(select::cuda::plan_bytes(scores, room)), chosen(select::cuda::plan_workspace_bytes(scores));
  const Plan plan = select::cuda::plan_in(scores, room, lists.data, context.device);
  const auto score = [&] { select::cuda::mean_pool_into(inputs, scores, pools.data, context); };
  const auto choose = [&] { select::cuda::plan_into(scores, budget, plan, chosen.data, context); };
  std::vector<Graph> graphs;
  graphs.emplace_back("mean_pool and top-k", stream, [&] {
    score();
    choose();
  });
  graphs.emplace_back("scores alone", stream, score);
  graphs.emplace_back("choice alone", stream, choose);
  time_in_turns(graphs, rounds, stream);
  for (const Graph& graph : graphs) results.add(std::string("choosing tiles ") + name, graph);
  for (Graph& graph : graphs) cudaGraphExecDestroy(graph.exec);
  if (!has_attention) return;

  const Bytes v_bytes(static_cast<size_t>(seqlen * kHeadsKv * kDim) * 2), out_bytes(static_cast<size_t>(seqlen * kHeadsQ * kDim) * 2);
  normals.fill(v_bytes, seqlen * kHeadsKv * kDim);
  const AttendParams params{
      .q = inputs.q, .k = inputs.k, .v = tensor(v_bytes, kHeadsKv, seqlen), .out = tensor(out_bytes, kHeadsQ, seqlen), .plan = plan};
  const int64_t rows = scores.grid.rows();
  const plan::cuda::CompleteRoom transposed = plan::cuda::most_complete_room(plan);
  const Bytes by_key(plan::cuda::complete_bytes(plan, transposed)), moved(plan::cuda::complete_workspace_bytes());
  const Plan both = plan::cuda::complete_in(plan, transposed, by_key.data);
  plan::cuda::LongestFirstArgs order{};
  order.lists[1] = plan::cuda::run_list(plan->by_query.whole);
  order.items_per_row = 1;
  order.items_per_head = static_cast<int>(rows);
  order.items = static_cast<int>(rows) * kHeadsQ;
  order.heads_q = kHeadsQ;
  order.keys = static_cast<int>(seqlen);
  order.section = order.items_per_head * 8;
  order.bucket_keys = (order.keys + plan::cuda::kBuckets - 1) / plan::cuda::kBuckets;
  const Bytes ordered((2 * static_cast<size_t>(order.items) + 2) * sizeof(int32_t));
  order.length = static_cast<int32_t*>(ordered.data);
  order.order = order.length + order.items;
  order.counter = order.order + order.items;
  std::vector<Graph> parts;
  const auto transpose = [&] { plan::cuda::complete_into(both, moved.data, context); };
  const auto sort = [&] { require(plan::cuda::launch_longest_first(order, stream), "order"); };
  parts.emplace_back("attention", stream, [&] { attend_forward(params, context); });
  parts.emplace_back("complete and order", stream, [&] {
    transpose();
    sort();
  });
  parts.emplace_back("complete alone", stream, transpose);
  parts.emplace_back("order alone", stream, sort);
  time_in_turns(parts, rounds, stream);
  for (const Graph& graph : parts) results.add(std::string("plan of ") + name + " at .10", graph);
  for (Graph& graph : parts) cudaGraphExecDestroy(graph.exec);
}

/// xattention at its threshold of .9, with the causal dense attention of the same tensors in the same turns.
void bench_xattention(int64_t seqlen, const char* name, int rounds, Context& context, cudaStream_t stream, const Normals& normals, Results& results) {
  const Bytes q_bytes(static_cast<size_t>(seqlen * kHeadsQ * kDim) * 2), k_bytes(static_cast<size_t>(seqlen * kHeadsKv * kDim) * 2);
  const Bytes v_bytes(static_cast<size_t>(seqlen * kHeadsKv * kDim) * 2), out_bytes(static_cast<size_t>(seqlen * kHeadsQ * kDim) * 2);
  normals.fill(q_bytes, seqlen * kHeadsQ * kDim);
  normals.fill(k_bytes, seqlen * kHeadsKv * kDim);
  normals.fill(v_bytes, seqlen * kHeadsKv * kDim);
  const select::Inputs inputs{.q = tensor(q_bytes, kHeadsQ, seqlen),
                              .k = tensor(k_bytes, kHeadsKv, seqlen),
                              .mask = Mask::causal(),
                              .softmax_scale = 1 / std::sqrt(static_cast<float>(kDim))};
  const Plan dense = copy_to_device(dense_plan({.seqlen_q = seqlen, .seqlen_k = seqlen, .tile = kTile, .heads_q = kHeadsQ}), context);
  const AttendParams params{
      .q = inputs.q, .k = inputs.k, .v = tensor(v_bytes, kHeadsKv, seqlen), .out = tensor(out_bytes, kHeadsQ, seqlen), .plan = dense};
  const select::Budget budget{.mass = {.9f}, .sink = 1, .diagonal = 1};
  for (const int stride : {8, 16}) {
    const select::AntidiagonalParams of{.tile = kTile, .stride = stride};
    const Bytes values(select::cuda::antidiagonal_bytes(inputs, of)), strips(select::cuda::antidiagonal_workspace_bytes(inputs, of));
    const select::Scores scores = select::cuda::antidiagonal_in(inputs, of, values.data);
    const select::cuda::PlanRoom room = select::cuda::most_runs(scores, budget);
    const Bytes lists(select::cuda::plan_bytes(scores, room)), chosen(select::cuda::plan_workspace_bytes(scores));
    const Plan plan = select::cuda::plan_in(scores, room, lists.data, context.device);
    const auto score = [&] { select::cuda::antidiagonal_into(inputs, of, scores, strips.data, context); };
    const auto choose = [&] { select::cuda::plan_into(scores, budget, plan, chosen.data, context); };
    std::vector<Graph> graphs;
    graphs.emplace_back("xattention", stream, [&] {
      score();
      choose();
    });
    graphs.emplace_back("scores alone", stream, score);
    graphs.emplace_back("choice alone", stream, choose);
    graphs.emplace_back("dense attention", stream, [&] { attend_forward(params, context); });
    time_in_turns(graphs, rounds, stream);
    for (const Graph& graph : graphs) results.add("xattention S=" + std::to_string(stride) + " " + name, graph);
    for (Graph& graph : graphs) cudaGraphExecDestroy(graph.exec);
  }
}

int run(int argc, char** argv) {
  int rounds = 5;
  std::string commit = "unknown", out;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i];
    if (option == "--rounds") rounds = std::atoi(argv[i + 1]);
    if (option == "--commit") commit = argv[i + 1];
    if (option == "--out") out = argv[i + 1];
  }
  cudaStream_t stream = nullptr;
  require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  Context context;
  context.device = {Device::Type::cuda, 0};
  context.stream = stream;
  context.memory = cuda_memory(0, stream);
  const Normals normals;
  Results results;
  bench(8192, "8K", false, rounds, context, stream, normals, results);
  bench(32768, "32K", true, rounds, context, stream, normals, results);
  bench_xattention(32768, "32K", rounds, context, stream, normals, results);
  bench(131072, "128K", false, rounds, context, stream, normals, results);
  cudaDeviceProp properties{};
  require(cudaGetDeviceProperties(&properties, 0), "properties");
  char date[32];
  const std::time_t now = std::time(nullptr);
  std::strftime(date, sizeof date, "%Y-%m-%d", std::gmtime(&now));
  if (out.empty()) return 0;
  std::FILE* const file = std::fopen(out.c_str(), "w");
  if (file == nullptr) {
    std::fprintf(stderr, "cannot write %s\n", out.c_str());
    return 1;
  }
  std::fprintf(file, "{\"device\": \"%s\", \"commit\": \"%s\", \"date\": \"%s\", \"rows\": [\n%s\n]}\n", properties.name, commit.c_str(), date,
               results.rows.c_str());
  return std::fclose(file) == 0 ? 0 : 1;
}

}  // namespace
}  // namespace tilewise

int main(int argc, char** argv) {
  try {
    return tilewise::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
