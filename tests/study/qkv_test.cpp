// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/qkv.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "tests/base/temporary_folder.h"
#include "tilewise/base/hash.h"
#include "tilewise/base/safetensors.h"
#include "tilewise/machine/cpu/context.h"
#include "tilewise/study/compare.h"

namespace tilewise::study {
namespace {

constexpr int64_t kBatch = 2, kHeadsQ = 4, kHeadsKv = 2, kHeadDim = 16;

double drawn(uint64_t seed, int64_t i) { return static_cast<double>(splitmix64(seed * 1000003 + static_cast<uint64_t>(i)) >> 11) * 0x1p-53 * 4 - 2; }

/// q, k and v as they would be saved, and what plain loops make of them.
struct Saved {
  int64_t seqlen_q, seqlen_k;
  Tensor q, k, v, mask;

  Saved(int64_t queries, int64_t keys, Dtype dtype = Dtype::f32)
      : seqlen_q(queries),
        seqlen_k(keys),
        q(fill(dtype, {kBatch, kHeadsQ, queries, kHeadDim}, 1)),
        k(fill(dtype, {kBatch, kHeadsKv, keys, kHeadDim}, 2)),
        v(fill(dtype, {kBatch, kHeadsKv, keys, kHeadDim}, 3)) {}

  static Tensor fill(Dtype dtype, const Shape& shape, uint64_t seed) {
    Tensor tensor(host_memory(), dtype, shape);
    for (int64_t i = 0; i < shape.numel(); ++i) {
      const float value = static_cast<float>(drawn(seed, i));
      if (dtype == Dtype::f32) static_cast<float*>(tensor.view.raw())[i] = value;
      if (dtype == Dtype::bf16) static_cast<bf16*>(tensor.view.raw())[i] = bf16(value);
    }
    return tensor;
  }
  void set_mask(const Shape& shape, const std::function<bool(int64_t b, int64_t q, int64_t k)>& sees) {
    mask = Tensor(host_memory(), Dtype::boolean, shape);
    const int64_t entries = shape.rank == 2 ? 1 : shape[0] * shape[1];
    for (int64_t b = 0; b < entries; ++b) {
      for (int64_t i = 0; i < seqlen_q; ++i) {
        for (int64_t j = 0; j < seqlen_k; ++j) static_cast<bool*>(mask.view.raw())[(b * seqlen_q + i) * seqlen_k + j] = sees(b, i, j);
      }
    }
  }
  std::vector<NamedTensor> named() const {
    std::vector<NamedTensor> all{{"q", q.view}, {"k", k.view}, {"v", v.view}};
    if (mask.view.has_value()) all.push_back({"mask", mask.view});
    return all;
  }
  void save(const std::string& path, const SafetensorsMetadata& metadata = {}) const { write_safetensors(path, named(), metadata); }
};

/// Recall and error of reading `reads` in place of what `sees` allows, in double.
struct Figures {
  double recall = 0, error = 0;
};
template <class Sees, class Reads>
Figures plain_figures(const Saved& saved, const Sees& sees, const Reads& reads) {
  double recall = 0, rows = 0, error = 0, norm = 0;
  for (int64_t b = 0; b < kBatch; ++b) {
    for (int64_t h = 0; h < kHeadsQ; ++h) {
      for (int64_t i = 0; i < saved.seqlen_q; ++i) {
        double dense_sum = 0, sparse_sum = 0;
        std::vector<double> dense(kHeadDim), sparse(kHeadDim);
        for (int64_t j = 0; j < saved.seqlen_k; ++j) {
          if (!sees(b, i, j)) continue;
          double s = 0;
          for (int64_t d = 0; d < kHeadDim; ++d)
            s += static_cast<double>(saved.q.view.at<const float>(b, h, i, d)) * static_cast<double>(saved.k.view.at<const float>(b, h / 2, j, d));
          const double p = std::exp(s / 4);
          dense_sum += p;
          if (reads(b, i, j)) sparse_sum += p;
          for (int64_t d = 0; d < kHeadDim; ++d) {
            const double value = p * static_cast<double>(saved.v.view.at<const float>(b, h / 2, j, d));
            dense[static_cast<size_t>(d)] += value;
            if (reads(b, i, j)) sparse[static_cast<size_t>(d)] += value;
          }
        }
        if (dense_sum == 0) continue;
        recall += sparse_sum / dense_sum;
        rows += 1;
        for (size_t d = 0; d < kHeadDim; ++d) {
          const double ours = sparse_sum > 0 ? sparse[d] / sparse_sum : 0, theirs = dense[d] / dense_sum;
          error += (ours - theirs) * (ours - theirs);
          norm += theirs * theirs;
        }
      }
    }
  }
  return {recall / rows, std::sqrt(error / norm)};
}

class QkvTest : public ::testing::Test {
 protected:
  QkvTensors load(const Saved& saved, const SafetensorsMetadata& metadata = {}, QkvMask mask = QkvMask::from_file) {
    saved.save(folder_.file("qkv"), metadata);
    return load_qkv(folder_.file("qkv"), mask, context_);
  }
  void refuses(const std::vector<NamedTensor>& tensors, Error::Kind kind, const std::string& part, const SafetensorsMetadata& metadata = {},
               QkvMask mask = QkvMask::from_file) {
    SCOPED_TRACE(part);
    write_safetensors(folder_.file("qkv"), tensors, metadata);
    try {
      load_qkv(folder_.file("qkv"), mask, context_);
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find(folder_.file("qkv")), std::string::npos) << error.what();
    }
  }

  TemporaryFolder folder_;
  Context context_ = cpu_context(2);
};

TEST_F(QkvTest, FiguresEqualPlainLoops) {
  const Saved saved(90, 130);
  const QkvTensors tensors = load(saved);
  EXPECT_TRUE(tensors.is_mask_assumed);
  CompareRequest request;
  request.methods = {{"a_shape", {{"init", int64_t{5}}, {"local", int64_t{23}}, {"tile", int64_t{32}}}}};
  const Comparison comparison = compare(tensors, request, context_);
  ASSERT_EQ(comparison.methods.size(), 1u);
  const MethodFigures& row = comparison.methods[0];
  ASSERT_FALSE(row.is_refused()) << row.refused;
  const auto sees = [](int64_t, int64_t i, int64_t j) { return j <= i + 40; };
  const auto reads = [](int64_t, int64_t i, int64_t j) { return i + 40 - j < 23 || j < 5; };
  const Figures expected = plain_figures(saved, sees, reads);
  EXPECT_NEAR(row.recall, expected.recall, 2e-5);
  EXPECT_NEAR(row.output_error, expected.error, 2e-5);
  EXPECT_GT(row.output_error, .05) << "the test must see something";
  EXPECT_EQ(row.heads.size(), static_cast<size_t>(kHeadsQ));
  EXPECT_TRUE(std::isnan(row.bits_per_byte));
  EXPECT_TRUE(std::isnan(row.model_ms));
  EXPECT_FALSE(row.needle.has_value());
  EXPECT_DOUBLE_EQ(row.total_ms, row.plan_ms + row.attend_ms);
  EXPECT_DOUBLE_EQ(row.speedup, row.dense_attend_ms / row.total_ms);
  EXPECT_EQ(comparison.input.length, 90);
  EXPECT_EQ(comparison.input.length_k, 130);
  EXPECT_EQ(comparison.input.batch, kBatch);
}

TEST_F(QkvTest, ReadsAMaskOfSpans) {
  Saved saved(70, 70);
  // Two documents, and keys 3 to 7 for every query of the second; another cut in the second batch entry.
  const auto sees = [](int64_t b, int64_t i, int64_t j) {
    const int64_t cut = b == 0 ? 30 : 45;
    return i < cut ? j <= i : (j >= cut && j <= i) || (j >= 3 && j < 8);
  };
  saved.set_mask({kBatch, 1, 70, 70}, sees);
  const QkvTensors tensors = load(saved);
  EXPECT_EQ(tensors.mask_text, "spans");
  CompareRequest request;
  request.methods = {{"random", {{"density", 1.0}}}, {"a_shape", {}}};
  const Comparison comparison = compare(tensors, request, context_);
  const MethodFigures& row = comparison.methods[0];
  ASSERT_FALSE(row.is_refused()) << row.refused;
  EXPECT_NEAR(row.recall, 1, 1e-5);
  EXPECT_EQ(row.allowed_density, 1);
  EXPECT_TRUE(comparison.methods[1].is_refused()) << "takes causal masks alone";
}

TEST_F(QkvTest, KnowsTheBandsThatAMaskSpells) {
  Saved saved(40, 50);
  saved.set_mask({40, 50}, [](int64_t, int64_t i, int64_t j) { return j <= i + 10; });
  EXPECT_EQ(load(saved).mask_text, "causal");
  saved.set_mask({1, 1, 40, 50}, [](int64_t, int64_t, int64_t) { return true; });
  EXPECT_EQ(load(saved).mask_text, "full");
  saved.mask = {};
  for (const auto& [text, expected] : {std::pair{"true", "causal"}, {"True", "causal"}, {"false", "full"}}) {
    const QkvTensors tensors = load(saved, {{"is_causal", text}});
    EXPECT_EQ(tensors.mask_text, expected) << text;
    EXPECT_FALSE(tensors.is_mask_assumed);
  }
  EXPECT_EQ(load(saved, {{"is_causal", "true"}}, QkvMask::full).mask_text, "full") << "the command line wins over metadata";
  EXPECT_EQ(load(saved, {{"softmax_scale", "0.5"}}).softmax_scale, .5f);
}

TEST_F(QkvTest, HalfPrecisionRunsAsItIs) {
  const QkvTensors tensors = load(Saved(100, 100, Dtype::bf16));
  CompareRequest request;
  request.methods = {{"random", {{"density", .5}, {"tile", int64_t{16}}}}};
  const Comparison comparison = compare(tensors, request, context_);
  EXPECT_EQ(comparison.input.dtype, "bf16");
  ASSERT_FALSE(comparison.methods[0].is_refused()) << comparison.methods[0].refused;
  EXPECT_GT(comparison.methods[0].output_error, .05);
  EXPECT_LT(comparison.methods[0].recall, 1);
}

TEST_F(QkvTest, TuneHoldsTheErrorBound) {
  const QkvTensors tensors = load(Saved(300, 300));
  CompareRequest request;
  request.methods = {{"mean_pool", {}}, {"random", {{"tile", int64_t{16}}}}};
  request.has_tune = true;
  request.max_error = .3;
  const Comparison comparison = compare(tensors, request, context_);
  ASSERT_TRUE(comparison.tune.has_value());
  ASSERT_EQ(comparison.tune->curves.size(), 2u);
  for (const TuneCurve& curve : comparison.tune->curves) {
    ASSERT_FALSE(curve.points.empty());
    for (const TunePoint& point : curve.points) {
      if (point.outcome == TunePoint::Outcome::within) {
        EXPECT_LE(point.excess, .3);
      }
      if (point.outcome == TunePoint::Outcome::over) {
        EXPECT_GT(point.excess, .3);
      }
    }
  }
}

TEST_F(QkvTest, RefusesByName) {
  Saved saved(20, 30);
  using Kind = Error::Kind;
  auto tensors = saved.named();
  refuses({tensors[0], tensors[1]}, Kind::io, "no tensor v");
  const Tensor ints(host_memory(), Dtype::i32, {kBatch, kHeadsQ, 20, kHeadDim});
  refuses({{"q", ints.view}, tensors[1], tensors[2]}, Kind::dtype, "q is I32");
  refuses({{"q", saved.q.view.slice(0, 0, 1)}, tensors[1], tensors[2]}, Kind::shape, "batch");
  const Tensor flat = Saved::fill(Dtype::f32, {4, 20, kHeadDim}, 1), narrow = Saved::fill(Dtype::f32, {kBatch, kHeadsQ, 20, 8}, 1);
  const Tensor three = Saved::fill(Dtype::f32, {kBatch, 3, 20, kHeadDim}, 1), other = Saved::fill(Dtype::f32, {kBatch, kHeadsKv, 31, kHeadDim}, 1);
  const Tensor half = Saved::fill(Dtype::bf16, {kBatch, kHeadsQ, 20, kHeadDim}, 1), none = Saved::fill(Dtype::f32, {kBatch, kHeadsQ, 0, kHeadDim}, 1);
  refuses({{"q", flat.view}, tensors[1], tensors[2]}, Kind::shape, "3 axes");
  refuses({{"q", narrow.view}, tensors[1], tensors[2]}, Kind::shape, "channels");
  refuses({{"q", three.view}, tensors[1], tensors[2]}, Kind::shape, "no multiple");
  refuses({tensors[0], tensors[1], {"v", other.view}}, Kind::shape, "k and v differ");
  refuses({{"q", half.view}, tensors[1], tensors[2]}, Kind::dtype, "one dtype");
  refuses({{"q", none.view}, tensors[1], tensors[2]}, Kind::value, "empty");
  refuses(tensors, Kind::value, "is_causal", {{"is_causal", "perhaps"}});
  refuses(tensors, Kind::value, "softmax_scale", {{"softmax_scale", "-1"}});
  refuses(tensors, Kind::value, "softmax_scale", {{"softmax_scale", "1x"}});

  saved.set_mask({20, 30}, [](int64_t, int64_t i, int64_t j) { return j % 10 < 5 || j < i; });
  refuses(saved.named(), Kind::unsupported, "query 0 of batch entry 0");
  saved.set_mask({kBatch, kHeadsQ, 20, 30}, [](int64_t, int64_t, int64_t) { return true; });
  refuses(saved.named(), Kind::unsupported, "differs between heads");
  saved.set_mask({20, 30}, [](int64_t, int64_t, int64_t) { return true; });
  refuses(saved.named(), Kind::value, "--mask", {}, QkvMask::causal);
  refuses(saved.named(), Kind::value, "is_causal", {{"is_causal", "true"}});
  auto wrong = saved.named();
  const Tensor additive = Saved::fill(Dtype::f32, {20, 30}, 1), short_mask(host_memory(), Dtype::boolean, {20, 29});
  wrong[3].view = additive.view;
  refuses(wrong, Kind::dtype, "mask == 0");
  std::fill_n(static_cast<bool*>(short_mask.view.raw()), 20 * 29, true);
  wrong[3].view = short_mask.view;
  refuses(wrong, Kind::shape, "mask is");

  CompareRequest request;
  request.texts = {{"one", {1, 2, 3}}};
  saved.mask = {};
  const QkvTensors loaded = load(saved);
  EXPECT_THROW(compare(loaded, request, context_), Error);
}

// A file that every later version must read: bf16, Dv unlike D, a mask of two ranges, a scale of its own.
TEST(Qkv, ReadsTheGoldenFile) {
  Context context;
  const QkvTensors read = load_qkv("tests/study/golden_qkv.safetensors", QkvMask::from_file, context);
  EXPECT_EQ(read.q.view.shape(), (Shape{1, 2, 6, 8}));
  EXPECT_EQ(read.k.view.shape(), (Shape{1, 1, 8, 8}));
  EXPECT_EQ(read.v.view.shape(), (Shape{1, 1, 8, 4}));
  EXPECT_EQ(read.softmax_scale, 0.5f);
  EXPECT_EQ(read.mask_text, "spans");
  EXPECT_FALSE(read.is_mask_assumed);
  int64_t which = 0;
  for (const Tensor* tensor : {&read.q, &read.k, &read.v}) {
    ASSERT_EQ(tensor->view.dtype(), Dtype::bf16);
    for (int64_t i = 0; i < tensor->view.numel(); ++i)
      ASSERT_EQ(static_cast<float>(tensor->view.data<bf16>()[i]), static_cast<float>((i * 7 + which) % 13 - 6) / 4) << which << " " << i;
    ++which;
  }
  ASSERT_TRUE(read.mask.spans.has_value());
  for (int64_t q = 0; q < 6; ++q) {
    for (int64_t key = 0; key < 8; ++key) {
      const auto is_in = [&](int64_t side) {
        return read.mask.spans.at<int32_t>(0, 0, q, side) <= key && key < read.mask.spans.at<int32_t>(0, 0, q, side + 1);
      };
      EXPECT_EQ(is_in(0) || is_in(2), q < 3 ? key < 4 : key == 0 || (4 <= key && key < q + 3)) << q << " " << key;
    }
  }
}

}  // namespace
}  // namespace tilewise::study
