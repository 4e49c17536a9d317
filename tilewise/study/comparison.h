// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tilewise/methods/method.h"

TILEWISE_BEGIN_PUBLIC

/// A figure that was not taken: `null` in the JSON.
inline constexpr double kNoFigure = std::numeric_limits<double>::quiet_NaN();

/// Cells of a head's map: side_q x side_k of cell_q queries by cell_k keys, row by row; as a triangle, row i holds the keys' cells 0 to i.
struct MapShape {
  int side_q = 0, side_k = 0;
  int64_t cell_q = 0, cell_k = 0;
  bool is_triangle = false;

  int64_t cells() const { return is_triangle ? int64_t{side_q} * (side_q + 1) / 2 : int64_t{side_q} * side_k; }
};

/// One head's attention on the first text, a byte a cell. A share of mass is the mean over the cell's queries of their softmax mass on the cell's keys.
struct HeadMap {
  std::vector<uint8_t> mass;  // 255 * (share of dense attention's mass) ^ (1/4)
  std::vector<uint8_t> kept;  // 255 * (allowed pairs read / allowed pairs)
  std::vector<uint8_t> missed;  // as mass, of what is not read

  bool has_value() const { return !mass.empty(); }
};

/// A tile of tokens that a row leaves out, or reads in part.
struct WorstTile {
  int layer = 0, head = 0;
  int64_t first_q = 0, last_q = 0, first_k = 0, last_k = 0;  // tokens [first, last)
  double missed = 0;  // share of its queries' softmax mass, their mean
};

/// One head of one layer, averaged over the texts.
struct HeadFigures {
  int layer = 0, head = 0;
  double density = kNoFigure;  // pairs read / pairs that the dense plan of this tile reads
  double allowed_density = kNoFigure;  // allowed pairs read / allowed pairs
  double recall = kNoFigure;  // mean over rows of exp(lse_plan - lse_dense); 1 - recall is the missed mass
  double output_error = kNoFigure;  // ||sparse - dense|| / ||dense||, Frobenius norms over rows and channels
  HeadMap map = {};  // where maps were asked for
};

/// Needle prompts of one length and depth.
struct NeedleCell {
  int64_t length = 0;
  double depth = 0;
  int correct = 0, of = 0;
};
struct NeedleFigures {
  int correct = 0, of = 0;
  std::vector<NeedleCell> cells;  // by length, then depth
};

/// What one text cost under one method. Which of the bits there are: InputFigures::Reads.
struct TextFigures {
  std::string name;
  double bits_per_byte = kNoFigure, dense_bits_per_byte = kNoFigure;
  double bits_per_token = kNoFigure, dense_bits_per_token = kNoFigure;
};

/// Dense attention in a run of its own. Times are per text: with several texts, their mean.
struct DenseFigures {
  double attend_ms = 0, model_ms = kNoFigure, bits_per_byte = kNoFigure;  // tensors have neither a model nor bits
  size_t peak_bytes = 0;  // 0: not taken
  std::string backend;  // "cpu/avx512"
  std::optional<NeedleFigures> needle;
  double bits_per_token = kNoFigure;  // 2 to the power of it is the perplexity
};

/// One method with one set of options. Where `refused` is set every figure is missing.
struct MethodFigures {
  std::string name;
  OptionValues options;  // all of them, defaults filled in
  std::string label;  // "xattention stride=16,threshold=0.97"
  double density = kNoFigure, allowed_density = kNoFigure, recall = kNoFigure;
  double output_error = kNoFigure;  // per layer over all its heads, then the mean of the layers
  double bits_per_byte = kNoFigure, bits_per_token = kNoFigure;  // the mean of the texts
  double max_extra_bits = kNoFigure;  // the largest difference from dense over the texts, per byte or token: what a budget must hold
  double plan_ms = kNoFigure, attend_ms = kNoFigure, total_ms = kNoFigure;  // over all layers; total = plan + attend
  double dense_attend_ms = kNoFigure;  // dense attention timed inside this run, layer by layer beside the sparse one
  double speedup = kNoFigure;  // dense_attend_ms / total_ms
  double model_ms = kNoFigure;  // the whole forward, without the dense pass and the taking of figures
  size_t peak_bytes = 0;  // of this run: cache, activations, plans and work space; neither weights nor the dense pass; 0: not taken
  std::string backend;
  std::optional<NeedleFigures> needle;
  std::vector<HeadFigures> heads;  // by layer, then head
  std::vector<TextFigures> texts;
  std::vector<WorstTile> worst_tiles;  // most missed first; where maps were asked for
  std::vector<std::string> notes;
  bool is_baseline = false;  // a yardstick (oracle, random): shown, never recommended
  std::string refused;  // why the method was not run; empty: it was

  bool is_refused() const { return !refused.empty(); }
};

/// Where a comparison ran. Filled by whoever runs it; printed, never read.
struct Environment {
  std::string version, commit, device, command, created;  // created: UTC, ISO 8601
  int threads = 0;
};

struct InputFigures {
  /// What a model's tokens are, and with that what its bits are per.
  enum class Reads : uint8_t {
    bytes,  // a token is a byte: bits per byte
    text,  // a tokenizer made tokens of text: bits per byte of that text, and per token
    tokens,  // tokens alone were given: bits per token
    other,  // the model predicts no tokens: no bits, and the output error is what is bounded
  };

  std::string model;
  struct Text {
    std::string path;
    int64_t bytes = 0;  // of the file
  };
  std::vector<Text> texts;
  int64_t length = 0;  // tokens read of each (of bytes: a token is a byte); of tensors: Sq
  std::vector<int64_t> needle_lengths;  // none: no needles
  int num_layers = 0, heads_q = 0, heads_kv = 0, head_dim = 0;
  int64_t length_k = 0, batch = 1;  // Sk (of texts: length) and B
  std::string qkv;  // file of tensors; empty: a model with texts
  std::string mask = "causal";  // "causal", "full", "spans", "windows" (causal, some layers with a window), "mixed"
  bool is_mask_assumed = false;  // nothing said which
  std::string dtype = "f32";  // of q, k and v
  Reads reads = Reads::bytes;

  bool has_model() const { return qkv.empty(); }
  bool has_bits() const { return has_model() && reads != Reads::other; }
  /// " bits per byte", " bits per token" or " output error": the unit of Comparison::excess(), behind a figure.
  TILEWISE_API const char* unit() const;
};

/// One setting that --tune tried, alone, on the first text (or the tensors).
struct TunePoint {
  enum class Outcome : uint8_t { within, over, slow, refused };  // slow: given up, it costs more than the best or than dense
  OptionValues options;  // those that were tuned, by name
  std::string label;
  double density = kNoFigure, excess = kNoFigure;  // excess: bits per byte above dense; of tensors the output error
  double cost_ms = kNoFigure;  // what chooses: CPU time of the plan and the counted work of attention at this machine's rates; load changes it little
  double plan_ms = kNoFigure, attend_ms = kNoFigure;  // wall time
  Outcome outcome = Outcome::refused;
  std::string refused;

  double total_ms() const { return plan_ms + attend_ms; }
};
/// All settings that were tried of one method, in the order of the trials.
struct TuneCurve {
  std::string name;
  std::vector<TunePoint> points;
  std::optional<size_t>
      chosen;  // index into points: the cheapest within the bound, else the nearest to it, else the sparsest; nothing where none ran
  bool is_within = false;  // the chosen one holds the bound
};
struct TuneFigures {
  std::string text;  // that chose
  std::vector<TuneCurve> curves;
};

/// What `tilewise compare` found out, as data.
struct Comparison {
  Environment environment;
  InputFigures input;
  double max_bits = .005;  // what a recommended method may add to dense bits per byte, on every text
  DenseFigures dense;
  std::vector<MethodFigures> methods;
  double max_error = .05;  // where there are no bits: the output error that a recommended method may have
  std::optional<TuneFigures> tune;
  std::optional<MapShape> map;  // of the heads' maps

  /// What the bound holds of a row (extra bits or output error), and the bound.
  double excess(const MethodFigures& row) const { return input.has_bits() ? row.max_extra_bits : row.output_error; }
  double bound() const { return input.has_bits() ? max_bits : max_error; }
};

/// The one recommendation.
struct Verdict {
  std::optional<size_t> best;  // index into Comparison::methods; nothing where no method holds the bounds
  std::string text;  // one line; says plainly when none does, and how near the nearest came
};

/// The fastest method that is not a baseline and leaves something out (largest speed-up over dense, above 1), whose bits per byte stay within
/// `max_bits` of dense on every text, and which answers as many needles as dense does, but for one in twenty. Of tensors: whose output error stays
/// within `max_error`. After --tune the text quotes the texts that did not choose, where there are any.
TILEWISE_API Verdict verdict_of(const Comparison& comparison);

/// docs/formats/compare.md, schema 1, indented by one space, UTF-8 whatever the paths hold.
TILEWISE_API std::string to_json(const Comparison& comparison);
/// What to_json wrote, of any version of schema 1: keys that came later may be missing, unknown ones are left alone, the verdict is found anew.
/// Errors: io (not JSON, cut off, another schema, a key missing or of another type), value (a figure out of range, maps of another size than `map` says);
/// the message names `where` and the key.
TILEWISE_API Comparison parse_comparison(std::string_view text, const std::string& where);
/// The same of a file, of at most 64 MiB.
TILEWISE_API Comparison read_comparison(const std::string& path);

TILEWISE_END_PUBLIC
