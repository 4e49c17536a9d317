// SPDX-License-Identifier: Apache-2.0
// compare() of a model that runs in Python: C++ decides what is run, measures and judges; Python reads a text when it is asked to, and hands every layer's
// attention back to `study_attend`. And the report and the table of any comparison's document.
#include <bit>
#include <exception>

#include "app/environment.h"
#include "app/method_list.h"
#include "app/report/report.h"
#include "app/table.h"
#include "tilewise/infer/strict_json.h"
#include "tilewise/methods/registry.h"
#include "tilewise/study/clock.h"
#include "tilewise/study/comparer.h"
#include "tilewise_torch/ops/tensors.h"

namespace tilewise::ops {
namespace {

using infer::Object;
using study::StudiedAttention;
using study::StudiedLayer;
using study::StudiedPass;

/// What Python is asked for: 0, read text `index` and write bits, predictions and bytes predicted to `numbers`; 1, ask needle `index` and write 1 where the
/// answer was right. Not 0: it raised, or study_attend did.
using Callback = int32_t (*)(int64_t what, int64_t index, double* numbers);
enum class Ask : int64_t { text, needle };

/// Python raised: it keeps what, and raises it again once it hears of this. Or Python is to leave the model.
struct PythonRaised : std::runtime_error {
  using std::runtime_error::runtime_error;
};

const char* kind_of(const Mask& mask) {
  if (mask.spans.has_value()) return "spans";
  if (mask.bands.size() != 1 || mask.bands[0].sink != 0) return "mixed";
  if (mask.bands[0].left != Mask::kAll) return mask.bands[0].right == 0 ? "windows" : "mixed";
  return mask.bands[0].right == 0 ? "causal" : mask.bands[0].right == Mask::kAll ? "full" : "mixed";
}

class TorchModel : public study::StudiedModel {
 public:
  TorchModel(const infer::Json& request, Callback callback) : callback_(callback) {
    Object model(request, "tilewise.compare");
    input_.model = model.string("model");
    input_.num_layers = model.integer("num_layers", 1, 1 << 20);
    input_.heads_q = model.integer("heads_q", 1, 1 << 20);
    input_.heads_kv = model.integer("heads_kv", 1, 1 << 20);
    input_.head_dim = model.integer("head_dim", 1, 1 << 20);
    input_.length = input_.length_k = model.whole("length", 1, int64_t{1} << 40);
    input_.batch = model.whole("batch", 1, int64_t{1} << 30);
    const std::string reads = model.string("reads");
    using Reads = InputFigures::Reads;
    input_.reads = reads == "text" ? Reads::text : reads == "tokens" ? Reads::tokens : reads == "bytes" ? Reads::bytes : Reads::other;
    parameters_ = static_cast<double>(model.whole("parameters", 0, int64_t{1} << 53));
    for (const infer::Json& one : model.array("texts")) {
      Object text(one, "tilewise.compare: text");
      names_.push_back(text.string("name"));
      input_.texts.push_back({names_.back(), text.whole("bytes", 0, int64_t{1} << 53)});
    }
    check(!names_.empty(), Error::Kind::value, "tilewise.compare: there is no input; give at least one");
  }

  InputFigures input() const override { return input_; }
  bool counts_memory() const override { return false; }
  size_t num_texts() const override { return names_.size(); }
  std::string text_name(size_t text) const override { return names_[text]; }
  double linear_work(double length) const override { return 2 * parameters_ * length * static_cast<double>(input_.batch); }

  StudiedPass read(size_t text, const StudiedAttention& attention, Context& context) override {
    double numbers[3] = {0, 0, 0};
    const study::Stopwatch watch;
    ask(Ask::text, text, numbers, attention, context);
    StudiedPass pass;
    pass.total_ms = watch.ms();
    check(has_seen_, Error::Kind::unsupported, "tilewise.compare: ", input_.model,
          " ran without handing over any attention: its layers do not go through transformers' attn_implementation");
    has_run_ = true;
    const double bits = numbers[0], predictions = numbers[1], bytes = numbers[2];
    if (predictions > 0 && input_.reads != InputFigures::Reads::bytes) pass.bits_per_token = bits / predictions;
    if (bytes > 0) pass.bits_per_byte = bits / bytes;
    return pass;
  }

  bool answers(size_t needle, const StudiedAttention& attention, Context& context) override {
    double is_right = 0;
    ask(Ask::needle, needle, &is_right, attention, context);
    return is_right != 0;
  }

  /// One layer of what Python runs for ask(). What the attention function throws is kept for ask(); Python only learns that it is over.
  void attend(const StudiedLayer& layer) {
    if (!has_run_) look_at(layer.problem);
    check(layer.problem.q.dim(1) == input_.heads_q && layer.problem.layer < input_.num_layers, Error::Kind::unsupported, "tilewise.compare: layer ",
          layer.problem.layer, " has ", layer.problem.q.dim(1), " query heads, the first one ", input_.heads_q,
          "; the figures of a comparison have the same heads in every layer");
    try {
      (*attention_)(layer, *context_);
    } catch (...) {
      failure_ = std::current_exception();
    }
    if (failure_) throw PythonRaised("tilewise.compare: the reading of this row has ended");  // ask() knows why
  }

  /// The model whose callback runs in this thread.
  static TorchModel*& current() {
    static thread_local TorchModel* model = nullptr;
    return model;
  }
  const Context& context() const { return *context_; }

 private:
  void ask(Ask what, size_t index, double* numbers, const StudiedAttention& attention, Context& context) {
    attention_ = &attention;
    context_ = &context;
    failure_ = nullptr;
    TorchModel* const outer = std::exchange(current(), this);
    const int32_t code = callback_(static_cast<int64_t>(what), static_cast<int64_t>(index), numbers);
    current() = outer;
    if (code == 0) return;
    if (failure_) std::rethrow_exception(failure_);
    throw PythonRaised("tilewise.compare: the model raised");
  }

  /// Sizes and masks as the layers have them: seen in the first reading.
  void look_at(const Problem& problem) {
    if (std::exchange(has_seen_, true) == false) {
      input_.heads_q = static_cast<int>(problem.q.dim(1));
      input_.heads_kv = static_cast<int>(problem.k.dim(1));
      input_.head_dim = static_cast<int>(problem.q.dim(3));
      input_.dtype = std::string(name(problem.q.dtype()));
      input_.mask.clear();
    }
    // Sequences of a padded or packed batch come one after the other.
    const bool is_whole = problem.q.dim(0) == input_.batch && problem.q.dim(2) == input_.length;
    const std::string kind = is_whole ? kind_of(problem.mask) : "spans";
    if (input_.mask.empty()) input_.mask = kind;
    if (input_.mask == kind) return;
    const auto is_causal = [](const std::string& text) { return text == "causal" || text == "windows"; };
    input_.mask = is_causal(kind) && is_causal(input_.mask) ? "windows" : "mixed";
  }

  Callback callback_;
  InputFigures input_;
  std::vector<std::string> names_;
  double parameters_ = 0;
  bool has_seen_ = false, has_run_ = false;
  const StudiedAttention* attention_ = nullptr;
  Context* context_ = nullptr;
  std::exception_ptr failure_;
};

std::string study_compare(const Text& text, int64_t callback) {
  return guarded([&] {
    const infer::Json json = infer::parse_strict(text.value, "tilewise.compare");
    TorchModel model(json, std::bit_cast<Callback>(callback));
    Object object(json, "tilewise.compare");
    CompareRequest request;
    std::vector<std::string> methods;
    for (const infer::Json& method : object.array("methods")) methods.push_back(method.get<std::string>());
    request.has_tune = object.get("has_tune").get<bool>();
    const bool has_recipe = object.find("recipe") != nullptr && !object.get("recipe").is_null();
    if (!methods.empty()) {
      request.methods = app::parse_method_list(methods);
    } else if (!has_recipe) {
      request.methods = request.has_tune ? app::parse_method_list({"all"}) : demo_rows();
    }
    const InputFigures input = model.input();
    if (has_recipe) {
      request.recipe_name = object.string("recipe_name");
      request.recipe = parse_recipe(object.string("recipe"), request.recipe_name.empty() ? "recipe" : request.recipe_name);
      ModelConfig config;
      config.num_layers = input.num_layers;
      config.heads_q = input.heads_q;
      config.heads_kv = input.heads_kv;
      config.head_dim = input.head_dim;
      config.hash = request.recipe->config_hash;  // sizes alone, as configure() has it
      check_recipe(*request.recipe, config);
    }
    if (object.find("density") != nullptr && !object.get("density").is_null()) request.density = object.get("density").get<double>();
    request.max_bits = object.get("max_bits").get<double>();
    request.max_error = object.get("max_error").get<double>();
    request.has_maps = object.get("has_maps").get<bool>();
    request.seed = static_cast<uint64_t>(object.whole("seed", 0, INT64_MAX));
    for (const infer::Json& one : object.array("needles")) {
      Object needle(one, "tilewise.compare: needle");
      NeedlePrompt& prompt = request.needles.emplace_back();
      prompt.length = needle.whole("length", 1, int64_t{1} << 40);
      prompt.depth = needle.get("depth").get<double>();
    }
    app::ProgressLine line;
    if (object.get("has_progress").get<bool>()) request.progress = [&](const CompareProgress& progress) { line.show(progress); };
    Context context = host_context();
    Comparison comparison = study::compare_model(model, request, context);
    line.clear();
    comparison.environment = app::environment_of(context, object.string("command"));
    return to_json(comparison);
  });
}

/// One layer's attention, called by the model that study_compare reads a text with.
TorchTensor study_attend(const TorchTensor& q_in, const TorchTensor& k_in, const TorchTensor& v_in, int64_t layer, const std::vector<int64_t>& mask,
                         const MaybeTensor& spans, std::optional<double> scale, double softcap, const MaybeTensor& sink_logit, bool is_dense) {
  return guarded([&] {
    TorchModel* const model = TorchModel::current();
    check(model != nullptr, Error::Kind::value, "study_attend: is called by the models that tilewise.compare runs, and no comparison runs here");
    const TorchTensor q = with_contiguous_rows(q_in), k = with_contiguous_rows(k_in), v = with_contiguous_rows(v_in);
    StudiedLayer call;
    call.problem.q = view_of(q);
    call.problem.k = view_of(k);
    call.problem.v = view_of(v);
    check(call.problem.q.rank() == 4 && call.problem.k.rank() == 4 && call.problem.v.rank() == 4, Error::Kind::shape,
          "study_attend: takes q, k and v of four axes");
    check(call.problem.q.device().type == Device::Type::cpu, Error::Kind::unsupported,
          "tilewise.compare: the model is on a GPU; methods plan on the CPU so far: move it there, model.to(\"cpu\")");
    call.problem.mask = mask_of(mask, spans);
    if (scale.has_value()) call.problem.softmax_scale = static_cast<float>(*scale);
    call.problem.softcap = static_cast<float>(softcap);
    call.problem.layer = as_int("layer", layer);
    call.sink_logit = view_of(sink_logit);
    call.is_dense = is_dense;
    const Shape &shape_q = call.problem.q.shape(), &shape_v = call.problem.v.shape();
    TorchTensor out = empty_in_layout_of(q, {shape_q[0], shape_q[1], shape_q[2], shape_v[3]});
    call.out = writable(out);
    model->attend(call);
    return out;
  });
}

/// Throws what study_compare would throw about one of its methods, without a model.
void study_check(const Text& method) {
  guarded([&] {
    for (const MethodChoice& choice : app::parse_method_list({method.value})) check_options(choice.name, choice.options);
  });
}

std::string study_report(const Text& document, const Text& where) {
  return guarded([&] { return app::make_report(parse_comparison(document.value, where.value)); });
}

std::string study_table(const Text& document, const Text& where) {
  return guarded([&] { return app::comparison_text(parse_comparison(document.value, where.value)); });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tilewise, m) {
  m.def("study_compare(str request, int callback) -> str");
  m.def("study_attend(Tensor q, Tensor k, Tensor v, int layer, int[] mask, Tensor? spans, float? scale, float softcap, Tensor? sink_logit, bool "
        "is_dense) -> Tensor");
  m.def("study_check(str method) -> ()");
  m.def("study_report(str document, str where) -> str");
  m.def("study_table(str document, str where) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(tilewise, CompositeExplicitAutograd, m) {
  m.impl("study_compare", TORCH_BOX(&study_compare));
  m.impl("study_attend", TORCH_BOX(&study_attend));
  m.impl("study_check", TORCH_BOX(&study_check));
  m.impl("study_report", TORCH_BOX(&study_report));
  m.impl("study_table", TORCH_BOX(&study_table));
}

}  // namespace tilewise::ops
