// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tilewise/infer/model.h"
#include "tilewise/infer/recipe.h"
#include "tilewise/study/comparison.h"
#include "tilewise/study/needles.h"
#include "tilewise/study/qkv.h"

TILEWISE_BEGIN_PUBLIC

/// One row to be compared.
struct MethodChoice {
  std::string name;
  OptionValues options = {};
};

/// A text as tokens (bytes, for a model that reads bytes). `bytes` is what bits per byte divides by.
struct CompareText {
  std::string name;
  std::vector<int32_t> tokens;
};

struct CompareProgress {
  std::string row;        // "dense", "xattention stride=16", ...
  std::string part;       // "text 1/2, layer 3/8", "needle 4/10"
  double share = 0;       // of all work, 0 to 1
  double seconds_left = 0;  // from the time that the work so far took; negative: too early to say
};

struct CompareRequest {
  std::vector<MethodChoice> methods = {};     // dense runs first, whether named or not
  std::vector<CompareText> texts = {};        // at least one, of equal length, at least 2 tokens
  std::vector<NeedlePrompt> needles = {};     // none: not asked for
  std::optional<double> density = {};         // sets the option `density`; a method without one is refused in its row
  std::optional<Recipe> recipe = {};          // run as one more row, called "recipe"
  std::string recipe_name = {};               // of its file, for the row's label
  double max_bits = .005;
  double max_error = .05;  // in place of max_bits where tensors are compared
  /// Every method is run with the fastest of its settings that holds the bound on the first text: the option grids of the registry, but for options that
  /// a choice gives. Needles are then asked of the two fastest rows that hold it on every text.
  bool has_tune = false;
  bool has_maps = false;  // also map where each head's mass lies and what was left out (takes about one more dense pass a row)
  uint64_t seed = 0;
  std::function<void(const CompareProgress&)> progress = {};
  /// Called with every plan of a row over a text, outside all times. `row` counts Comparison::methods, `name` is the method's.
  std::function<void(size_t row, const std::string& name, size_t text, int layer, const Plan& plan)> on_plan = {};
};

/// Runs the model over each text once with dense attention and once per method. In a method's run every layer computes dense and sparse attention
/// of that run's own q, k and v, one after the other (which goes first alternates), and only the sparse output goes on; so dense and sparse times
/// interleave and errors add up as they would in use. Needles: the prompt with the method, then the first bytes of the answer as one dense chunk
/// over the kept K and V; right where every argmax is the answer's byte, which equals greedy decoding.
/// What a method cannot take becomes the reason in its row; nothing runs dense in its place.
/// Tuning: tilewise/study/tune.h.
/// Errors  value (no text, texts of different lengths, unknown method or option, a token outside the vocabulary), cancelled, memory, io.
TILEWISE_API Comparison compare(const Model& model, const CompareRequest& request, Context& context);

/// The same on saved tensors: one attention call, each row three times in turns with dense, the medians counted. No model, so no bits per byte, needles or
/// model time. The request holds neither texts nor needles nor a recipe.
/// Errors  as above; what attend_forward throws of dense attention.
TILEWISE_API Comparison compare(const QkvTensors& tensors, const CompareRequest& request, Context& context);

/// The rows of `make demo`: tilewise/study/demo_rows.cpp.
TILEWISE_API const std::vector<MethodChoice>& demo_rows();

TILEWISE_END_PUBLIC
