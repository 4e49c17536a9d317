// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/cuda/weights.h"

#include <algorithm>
#include <utility>

#include "tilewise/machine/device.h"

namespace tilewise::infer::cuda {
namespace {

constexpr int64_t kRoundedPerItem = 1 << 16;

class Loader {
 public:
  Loader(const WeightSource& source, Dtype dtype, Queue& queue, Context& context)
      : source_(source), dtype_(dtype), queue_(queue), context_(context), host_(machine::on_cpu(context)) {}

  /// [numel] f32, or [rows, columns] of a matrix.
  Tensor tensor(const std::string& name) const {
    const auto& sizes = source_.shape(name);
    Tensor result = machine::make_tensor(context_, Dtype::f32, sizes.size() == 1 ? Shape{sizes[0]} : Shape{sizes[0], sizes[1]});
    fill(name, result.view, 0);
    return result;
  }

  DeviceLinear linear(const LinearNames& names) const {
    int64_t out = 0, in = 0;
    for (const std::string& part : names.parts) {
      const auto& sizes = source_.shape(part + ".weight");
      out += sizes[0];
      in = sizes[1];
    }
    DeviceLinear result{machine::make_tensor(context_, dtype_, {out, in})};
    if (names.has_bias) result.bias = machine::make_tensor(context_, Dtype::f32, {out});
    int64_t row = 0;
    for (const std::string& part : names.parts) {
      fill(part + ".weight", result.weights.view, row * in);
      if (names.has_bias) fill(part + ".bias", result.bias.view, row);
      row += source_.shape(part + ".weight")[0];
    }
    return result;
  }

 private:
  /// Writes a tensor from element `at` of `to` on, in the dtype of `to`.
  void fill(const std::string& name, const TensorView& to, int64_t at) const {
    context_.check_cancel();
    const int64_t count = source_.numel(name);
    std::byte* const place = static_cast<std::byte*>(to.raw()) + at * static_cast<int64_t>(size_of(to.dtype()));
    if (const auto draw = source_.drawn(name)) {
      queue_.run(DrawArgs{.key = draw->key, .deviation = draw->deviation, .y = {place, to.dtype() == Dtype::bf16}, .count = count});
      return;
    }
    const Tensor values(host_.memory, Dtype::f32, {count});
    source_.read(name, values.view.data<float>(), host_);
    if (to.dtype() == Dtype::f32) {
      queue_.upload(place, values.view.raw(), static_cast<size_t>(count) * sizeof(float));
      return;
    }
    const Tensor rounded(host_.memory, Dtype::bf16, {count});
    host_.parallel_for((count + kRoundedPerItem - 1) / kRoundedPerItem, [&](int64_t item, int) {
      const int64_t last = std::min(count, (item + 1) * kRoundedPerItem);
      for (int64_t i = item * kRoundedPerItem; i < last; ++i) rounded.view.data<bf16>()[i] = bf16(values.view.data<float>()[i]);
    });
    queue_.upload(place, rounded.view.raw(), static_cast<size_t>(count) * sizeof(bf16));
  }

  const WeightSource& source_;
  Dtype dtype_;
  Queue& queue_;
  Context& context_;
  Context host_;
};

LinearNames joined(LinearNames first, const LinearNames& second) {
  first.parts.insert(first.parts.end(), second.parts.begin(), second.parts.end());
  return first;
}

}  // namespace

DeviceWeights make_weights(const WeightSource& source, const ModelConfig& config, Dtype dtype, Queue& queue, Context& context) {
  const Loader loader(source, dtype, queue, context);
  DeviceWeights weights;
  weights.embedding = loader.tensor(kEmbeddingName);
  weights.final_norm = loader.tensor(kFinalNormName);
  weights.head = loader.linear(names_of_head(config));
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const LayerNames names = names_of_layer(config, layer);
    DeviceLayer part;
    part.attention_norm = loader.tensor(names.attention_norm);
    part.mlp_norm = loader.tensor(names.mlp_norm);
    if (config.has_qk_norm) {
      part.q_norm = loader.tensor(names.q_norm);
      part.k_norm = loader.tensor(names.k_norm);
    }
    part.qkv = loader.linear(names.qkv);
    part.output = loader.linear(names.output);
    part.gate_up = loader.linear(joined(names.gate, names.up));
    part.down = loader.linear(names.down);
    weights.layers.push_back(std::move(part));
  }
  queue.wait();
  return weights;
}

}  // namespace tilewise::infer::cuda
