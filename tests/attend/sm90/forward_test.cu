// SPDX-License-Identifier: Apache-2.0
// The Hopper forward kernel against plain loops in f64, on random shapes, plans, bands and strides. Stands alone:
//   tools/sm90_harness.sh DIR && DIR/forward_test [cases] [seed]
// Keys that no row reads are NaN, outputs are poisoned and stand between red zones, each case runs twice and must give the same bits.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "tilewise/attend/sm90/forward_args.h"

using namespace tilewise::attend::sm90;
using tilewise::machine::sm90::Tensor16;

namespace {

void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("FAIL %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

template <class T>
struct DeviceArray {
  T* data = nullptr;
  size_t size = 0;
  DeviceArray() = default;
  explicit DeviceArray(const std::vector<T>& host) : size(host.size()) {
    check_cuda(cudaMalloc(&data, std::max<size_t>(size, 1) * sizeof(T)), "cudaMalloc");
    check_cuda(cudaMemcpy(data, host.data(), size * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data); }
  std::vector<T> host() const {
    std::vector<T> out(size);
    check_cuda(cudaMemcpy(out.data(), data, size * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return out;
  }
};

struct Case {
  int batch, heads_q, heads_kv, seqlen_q, seqlen_k, head_dim;
  bool is_bf16, is_token_major;  // [B, S, H, D] in memory
  enum Kind { dense, causal, tiles, ragged, mixed, empty } kind;
  int list_batch, list_heads;
  Band band;
};
const char* kKindNames[] = {"dense", "causal", "tiles", "ragged", "mixed", "empty"};

struct HostList {
  std::vector<int64_t> begin;
  std::vector<int32_t> count, start, stop;
  void add_row(const std::vector<std::pair<int, int>>& runs) {
    begin.push_back(static_cast<int64_t>(start.size()));
    count.push_back(static_cast<int32_t>(runs.size()));
    for (auto [a, b] : runs) start.push_back(a), stop.push_back(b);
  }
};

// One warp a query, two passes in f64.
__global__ void reference_kernel(const void* q, const void* k, const void* v, double* out, double* lse, Tensor16 tq, Tensor16 tk, RunListView masked,
                                 RunListView whole, Band band, float scale, int num_q_tiles) {
  const int lane = threadIdx.x % 32;
  const int64_t number = (blockIdx.x * int64_t{blockDim.x} + threadIdx.x) / 32;
  if (number >= int64_t{tq.batch} * tq.heads * tq.seqlen) return;
  const int query = number % tq.seqlen, head = number / tq.seqlen % tq.heads, batch = number / tq.seqlen / tq.heads;
  const int head_kv = head / (tq.heads / tk.heads), dims = tq.head_dim / 32;
  const auto at = [&](const void* p, int64_t i) {
    return tq.is_bf16 ? double{__bfloat162float(static_cast<const __nv_bfloat16*>(p)[i])} : double{__half2float(static_cast<const __half*>(p)[i])};
  };
  const int64_t q_at = batch * tq.stride_batch + head * tq.stride_head + query * tq.stride_token;
  const int64_t k_at = batch * tk.stride_batch + head_kv * tk.stride_head;
  double sum = 0, top = -INFINITY, acc[8] = {};
  for (int pass = 0; pass < 2; ++pass) {
    for (int is_whole = 0; is_whole < 2; ++is_whole) {
      const RunListView& list = is_whole ? whole : masked;
      if (!list.begin) continue;
      const int64_t row = (int64_t{list.batch == 1 ? 0 : batch} * list.heads + head / (tq.heads / list.heads)) * num_q_tiles + query / 128;
      for (int64_t i = list.begin[row]; i < list.begin[row] + list.count[row]; ++i) {
        for (int key = list.start[i]; key < list.stop[i]; ++key) {
          const int64_t token = int64_t{query} + tk.seqlen - tq.seqlen;
          const bool is_seen = is_whole || (key <= token + band.right && (key >= token - band.left || key < band.sink));
          if (!is_seen) continue;
          double s = 0;
          for (int d = 0; d < dims; ++d) s += at(q, q_at + lane * dims + d) * at(k, k_at + key * tk.stride_token + lane * dims + d);
          for (int m = 16; m; m /= 2) s += __shfl_xor_sync(~0u, s, m);
          s *= scale;
          if (pass == 0) {
            top = fmax(top, s);
          } else {
            const double p = exp(s - top);
            sum += p;
            for (int d = 0; d < dims; ++d) acc[d] += p * at(v, k_at + key * tk.stride_token + lane * dims + d);
          }
        }
      }
    }
  }
  for (int d = 0; d < dims; ++d) out[number * tq.head_dim + lane * dims + d] = sum == 0 ? 0 : acc[d] / sum;
  if (lane == 0) lse[number] = sum == 0 ? -INFINITY : top + log(sum);
}

float to_float(uint16_t bits, bool is_bf16) {
  if (is_bf16) {
    const uint32_t wide = uint32_t{bits} << 16;
    float x;
    std::memcpy(&x, &wide, 4);
    return x;
  }
  __half h;
  std::memcpy(&h, &bits, 2);
  return __half2float(h);
}
uint16_t from_float(float x, bool is_bf16) {
  uint16_t bits;
  const __nv_bfloat16 b = __float2bfloat16(x);
  const __half h = __float2half(x);
  if (is_bf16)
    std::memcpy(&bits, &b, 2);
  else
    std::memcpy(&bits, &h, 2);
  return bits;
}

std::string describe(const Case& c) {
  char text[256];
  std::snprintf(text, sizeof text, "%s %s B=%d Hq=%d Hkv=%d Sq=%d Sk=%d D=%d %s lists=[%d,%d] band={%lld,%lld,%lld}", kKindNames[c.kind],
                c.is_bf16 ? "bf16" : "f16", c.batch, c.heads_q, c.heads_kv, c.seqlen_q, c.seqlen_k, c.head_dim, c.is_token_major ? "BSHD" : "BHSD",
                c.list_batch, c.list_heads, (long long)c.band.left, (long long)c.band.right, (long long)c.band.sink);
  return text;
}

struct Worst {
  double error = 0, lse_error = 0;
};

bool run_case(const Case& c, std::mt19937& random, int variant, Worst& worst) {
  const auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  const int num_q_tiles = (c.seqlen_q + 127) / 128;
  // Keys that rows may read: per (batch, kv head) the same stretches, so that all others can be NaN.
  std::vector<char> is_live(c.seqlen_k, c.kind == Case::dense || c.kind == Case::causal);
  if (c.kind == Case::tiles || c.kind == Case::ragged || c.kind == Case::mixed) {
    const int step = c.kind == Case::tiles ? 128 : 1;
    for (int at = 0; at < c.seqlen_k;) {
      const int length = step == 128 ? 128 : pick(1, 200);
      if (pick(0, 3) > 0) std::fill(is_live.begin() + at, is_live.begin() + std::min(at + length, c.seqlen_k), 1);
      at += length;
    }
  }
  HostList masked, whole;
  for (int row = 0; row < c.list_batch * c.list_heads * num_q_tiles; ++row) {
    std::vector<std::pair<int, int>> m, w;
    const int tile = row % num_q_tiles;
    if (c.kind == Case::dense) w = {{0, c.seqlen_k}};
    if (c.kind == Case::causal) {
      const int first_masked = std::clamp(tile * 128 + c.seqlen_k - c.seqlen_q + 1, 0, c.seqlen_k) / 128 * 128;
      const int last = std::clamp(std::min(tile * 128 + 128, c.seqlen_q) + c.seqlen_k - c.seqlen_q, 0, c.seqlen_k);
      if (first_masked > 0) w = {{0, first_masked}};
      if (last > first_masked) m = {{first_masked, last}};
    }
    if (c.kind == Case::tiles || c.kind == Case::ragged || c.kind == Case::mixed) {
      const int keep = pick(0, 4);  // of 4: some rows are empty, some read all that is live
      for (int at = 0; at < c.seqlen_k;) {
        if (!is_live[at]) {
          ++at;
          continue;
        }
        int stop = at;
        while (stop < c.seqlen_k && is_live[stop]) ++stop;
        const int start = at;
        at = stop;
        for (int s = start; s < stop;) {  // a stretch is cut into runs
          int e = c.kind == Case::tiles ? std::min(s + 128, stop) : std::min(s + (pick(0, 2) ? pick(1, 300) : pick(0, 20)), stop);
          if (pick(1, 4) <= keep) (c.kind == Case::mixed && pick(0, 2) == 0 ? m : w).push_back({s, e});
          s = std::max(e, s + (c.kind == Case::tiles ? 1 : pick(0, 1)));
        }
      }
    }
    masked.add_row(m);
    whole.add_row(w);
  }

  const auto make = [&](int heads, int seqlen) {
    Tensor16 t{nullptr, c.is_bf16, c.batch, heads, seqlen, c.head_dim, 0, 0, 0};
    t.stride_token = c.is_token_major ? heads * c.head_dim : c.head_dim;
    t.stride_head = c.is_token_major ? c.head_dim : seqlen * c.head_dim;
    t.stride_batch = int64_t{heads} * seqlen * c.head_dim;
    return t;
  };
  Tensor16 tq = make(c.heads_q, c.seqlen_q), tk = make(c.heads_kv, c.seqlen_k), tv = tk, to = tq;
  std::normal_distribution<float> normal;
  const auto fill = [&](const Tensor16& t, bool is_key, float scale) {
    std::vector<uint16_t> host(size_t(t.batch) * t.heads * t.seqlen * t.head_dim);
    for (int b = 0; b < t.batch; ++b)
      for (int h = 0; h < t.heads; ++h)
        for (int s = 0; s < t.seqlen; ++s)
          for (int d = 0; d < t.head_dim; ++d)
            host[b * t.stride_batch + h * t.stride_head + s * t.stride_token + d] =
                is_key && !is_live[s] ? uint16_t{0xFFFF} : from_float(scale * normal(random), t.is_bf16);
    return host;
  };
  const float sharp = pick(0, 2) == 0 ? 4.0f : 1.0f;  // sharp scores make rows outgrow their maximum
  const DeviceArray<uint16_t> q(fill(tq, false, sharp)), k(fill(tk, true, 1)), v(fill(tv, true, 1));
  const size_t zone = 4096, out_size = size_t(c.batch) * c.heads_q * c.seqlen_q * c.head_dim, lse_size = size_t(c.batch) * c.heads_q * c.seqlen_q;
  const DeviceArray<uint16_t> out(std::vector<uint16_t>(out_size + 2 * zone, 0xFFFF));
  const float poison = std::nanf("");
  const DeviceArray<float> lse(std::vector<float>(lse_size + 2 * zone, poison));
  const DeviceArray<int64_t> begin_m(masked.begin), begin_w(whole.begin);
  const DeviceArray<int32_t> count_m(masked.count), start_m(masked.start), stop_m(masked.stop), count_w(whole.count), start_w(whole.start),
      stop_w(whole.stop);
  tq.data = q.data, tk.data = k.data, tv.data = v.data, to.data = out.data + zone;
  ForwardInput input;
  input.q = tq, input.k = tk, input.v = tv, input.out = to;
  input.lse = lse.data + zone;
  input.softmax_scale = 1 / std::sqrt(float(c.head_dim));
  input.masked = {begin_m.data, count_m.data, start_m.data, stop_m.data, c.list_batch, c.list_heads, 1};
  input.whole = {begin_w.data, count_w.data, start_w.data, stop_w.data, c.list_batch, c.list_heads, 1};
  input.band = c.band;
  std::vector<int32_t> order(c.batch * c.heads_q * num_q_tiles);
  for (size_t i = 0; i < order.size(); ++i) order[i] = int(i);
  std::shuffle(order.begin(), order.end(), random);
  const DeviceArray<int32_t> device_order(order);
  if (pick(0, 1)) input.order = device_order.data;
  const DeviceArray<int32_t> counter(std::vector<int32_t>(2, 0));
  if (pick(0, 1)) input.counter = counter.data;

  check_cuda(attend_sm90_forward(input, variant, nullptr), "launch");
  check_cuda(cudaDeviceSynchronize(), describe(c).c_str());
  const std::vector<uint16_t> got = out.host();
  const std::vector<float> got_lse = lse.host();
  check_cuda(attend_sm90_forward(input, variant, nullptr), "launch");
  check_cuda(cudaDeviceSynchronize(), "second run");
  const bool is_repeatable = got == out.host() && std::memcmp(got_lse.data(), lse.host().data(), got_lse.size() * 4) == 0;

  if (counter.host() != std::vector<int32_t>(2, 0)) std::printf("FAIL %s: row counter not reset\n", describe(c).c_str()), std::exit(1);
  const DeviceArray<double> ref(std::vector<double>(out_size, 0)), ref_lse(std::vector<double>(lse_size, 0));
  reference_kernel<<<(lse_size * 32 + 127) / 128, 128>>>(q.data, k.data, v.data, ref.data, ref_lse.data, tq, tk, input.masked, input.whole, c.band,
                                                         input.softmax_scale, num_q_tiles);
  check_cuda(cudaDeviceSynchronize(), "reference");
  const std::vector<double> want = ref.host(), want_lse = ref_lse.host();

  double difference = 0, size = 0, lse_error = 0;
  bool is_right = true;
  for (size_t i = 0; i < zone; ++i) {
    is_right &= got[i] == 0xFFFF && got[zone + out_size + i] == 0xFFFF && std::isnan(got_lse[i]) && std::isnan(got_lse[zone + lse_size + i]);
  }
  if (!is_right) std::printf("  red zone written\n");
  for (int b = 0; b < c.batch; ++b)
    for (int h = 0; h < c.heads_q; ++h)
      for (int s = 0; s < c.seqlen_q; ++s) {
        const size_t row = (size_t(b) * c.heads_q + h) * c.seqlen_q + s;
        const float l = got_lse[zone + row];
        const bool is_empty = std::isinf(want_lse[row]);
        if (is_empty ? l != -INFINITY : !(std::abs(l - want_lse[row]) < 1e30)) is_right = false;
        if (!is_empty) lse_error = std::max(lse_error, std::abs(l - want_lse[row]) / std::max(1.0, std::abs(want_lse[row])));
        for (int d = 0; d < c.head_dim; ++d) {
          const float o = to_float(got[zone + b * to.stride_batch + h * to.stride_head + s * to.stride_token + d], c.is_bf16);
          const double w = want[row * c.head_dim + d];
          if (is_empty && o != 0) is_right = false;
          if (!(std::abs(o) < 1e30)) is_right = false;
          difference += (o - w) * (o - w);
          size += w * w;
        }
      }
  const double error = size == 0 ? std::sqrt(difference) : std::sqrt(difference / size);
  const double bound = c.is_bf16 ? 5e-3 : 7e-4;  // twice what dense kernels of the dtype show (2.4e-3, 3.1e-4), and a little
  is_right = is_right && error <= bound && lse_error <= 1e-4;
  worst.error = std::max(worst.error, error / bound);
  worst.lse_error = std::max(worst.lse_error, lse_error);
  if (!is_right || !is_repeatable)
    std::printf("FAIL %s: error %.2e (bound %.0e), lse %.2e%s\n", describe(c).c_str(), error, bound, lse_error,
                is_repeatable ? "" : ", second run differs");
  return is_right && is_repeatable;
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 100;
  const int seed = argc > 2 ? std::atoi(argv[2]) : 1;
  std::mt19937 random(seed);
  const auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  Worst worst;
  int failed = 0;
  const Band causal = {int64_t{1} << 40, 0, 0};
  std::vector<Case> list = {
      {1, 1, 1, 128, 128, 128, true, false, Case::dense, 1, 1, causal},  {1, 1, 1, 128, 512, 128, true, false, Case::dense, 1, 1, causal},
      {2, 4, 2, 512, 512, 128, true, false, Case::dense, 1, 1, causal},  {1, 2, 1, 300, 333, 128, true, false, Case::dense, 1, 1, causal},
      {1, 2, 1, 512, 512, 128, true, false, Case::causal, 1, 1, causal}, {1, 2, 1, 1, 1, 128, true, false, Case::causal, 1, 1, causal},
      {1, 2, 1, 129, 127, 128, true, true, Case::causal, 1, 1, causal},  {2, 4, 2, 512, 1024, 128, true, true, Case::tiles, 2, 4, causal},
      {2, 8, 2, 300, 777, 128, true, false, Case::ragged, 1, 2, causal}, {2, 8, 2, 300, 777, 128, true, false, Case::mixed, 1, 8, {100, 5, 7}},
      {1, 4, 4, 700, 300, 128, true, false, Case::empty, 1, 1, causal}};  // kind `empty`: no row has a run
  const int dims[] = {64, 128};
  const int edge[] = {1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 257};
  while (static_cast<int>(list.size()) < cases) {
    Case c;
    c.batch = pick(1, 3), c.heads_kv = pick(1, 3);
    c.heads_q = c.heads_kv * (1 << pick(0, 2));
    c.seqlen_q = pick(0, 2) ? pick(1, 700) : edge[pick(0, 10)];
    c.seqlen_k = pick(0, 2) ? pick(1, 1200) : edge[pick(0, 10)];
    c.head_dim = dims[pick(0, int(std::size(dims)) - 1)];
    c.is_bf16 = pick(0, 3);
    c.is_token_major = pick(0, 1);
    c.kind = static_cast<Case::Kind>(pick(0, 4));
    c.list_batch = pick(0, 1) ? 1 : c.batch;
    c.list_heads = pick(0, 2) == 0 ? 1 : pick(0, 1) ? c.heads_kv : c.heads_q;
    c.band = pick(0, 1) ? causal : Band{pick(-20, 300), pick(-20, 100), pick(0, 40)};
    list.push_back(c);
    if (c.kind == Case::causal) list.back().band = causal;
  }
  for (const Case& c : list) failed += !run_case(c, random, 0, worst);
  const Case even = {2, 4, 2, 512, 768, 128, true, false, Case::dense, 1, 1, causal};
  const int variants[] = {TILEWISE_SM90_VARIANTS};
  for (int variant : variants) {
    if (!run_case(even, random, variant, worst)) std::printf("  (variant %d)\n", variant), ++failed;
  }
  std::printf("%s: %d cases, seed %d, %d failed; worst error %.2f of its bound, worst lse error %.1e\n", failed ? "FAIL" : "ok", int(list.size()),
              seed, failed, worst.error, worst.lse_error);
  return failed != 0;
}
