// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tilewise/infer/model.h"
#include "tilewise/infer/recipe.h"
#include "tilewise/study/compare.h"

TILEWISE_BEGIN_PUBLIC

/// Which method suits which head: every candidate plans for a calibration text, and per head the best one goes into a recipe.
/// Source  MInference, arXiv 2407.02490, section 3.2 (kernel-aware search), and the two searches of its released code.
struct HeadSearch {
  enum class Objective : uint8_t {
    mass,    // the larger mean, over the rows from first_row on, of true probability that the head still reads
    output,  // the smaller difference of its output from dense attention's
  };

  CompareText text = {};                       // read by dense attention throughout
  std::vector<RecipeMethod> candidates = {};   // at least one; ties (masses within 1e-5) go to the cheaper, then to the earlier
  Objective objective = Objective::output;
  int64_t first_row = 0;   // mass: rows before it do not count (all count where the text is not longer)
  double tolerance = 0;    // output: above 0 the number of elements that differ by more, else the Frobenius norm of the difference
  /// minference candidates: their sizes change in steps (50 of a_shape's local and vertical_slash's slash, 1 of block_sparse's blocks) until each
  /// head reads as much as a_shape with fit_init and fit_local does, as near as a step comes. 0: sizes stay.
  int fit_init = 0, fit_local = 0;
  /// As released with `mass`: winners of a_shape become vertical_slash of the same sizes, winners of block_sparse vertical_slash 1000/6096.
  bool becomes_vertical_slash = false;
  std::function<void(int layer, int num_layers)> progress = {};
};

/// What a search found out about one head.
struct HeadPick {
  int layer = 0, head = 0;
  size_t candidate = 0;              // the winner
  RecipeMethod use = {};             // as it goes into the recipe
  std::vector<double> scores = {};   // of every candidate
  std::vector<double> costs = {};    // pairs that every candidate read, over those of the dense plan
};
struct HeadSearchResult {
  Recipe recipe;
  std::vector<HeadPick> picks;  // by layer, then head
};

/// Runs the model over the text once, dense, and every candidate beside it in each layer. The recipe's default is minference as it stands, its calibration
/// names text, objective, candidates and scores. Errors: value (no text, no candidate, an unknown method or option), unsupported (a candidate that does not
/// take the problem), cancelled, memory.
TILEWISE_API HeadSearchResult search_heads(const Model& model, const HeadSearch& search, Context& context);

/// The candidates of the released search by retained mass, for a text of `length` tokens; its other numbers are first_row 2500, becomes_vertical_slash.
TILEWISE_API std::vector<RecipeMethod> released_mass_candidates(int64_t length);
/// The candidates of the released search by output; its other number is tolerance 5e-3.
TILEWISE_API std::vector<RecipeMethod> released_output_candidates();
/// The paper's, which cost as much as a_shape with 1024 and 4096 at its length of 30,000.
TILEWISE_API std::vector<RecipeMethod> paper_candidates();

/// Thresholds of xattention for each layer and head, from how its estimate ranks the tiles that dense attention needs.
struct ProfileSearch {
  std::vector<CompareText> texts = {};  // a head gets the largest threshold over them
  int tile = 128, stride = 16;
  double coverage = .9;  // share of the true mass of a row that the kept tiles are to hold
  std::function<void(int layer, int num_layers)> progress = {};
};
/// Runs the model over the texts, dense; profile_threshold() of the true and the estimated tile masses of every head. The recipe uses xattention everywhere.
/// Errors: value (no text, tile not a multiple of stride, coverage), cancelled, memory.
/// Source  the released profiler of XAttention, arXiv 2503.16428.
TILEWISE_API Recipe profile_map(const Model& model, const ProfileSearch& search, Context& context);

TILEWISE_END_PUBLIC

namespace tilewise::study {

/// One layer of search_heads, on tensors; `problem.v` is read. Errors: as there.
std::vector<HeadPick> search_layer(const Problem& problem, const HeadSearch& search, Context& context);
/// One layer of profile_map: a threshold for each query head.
std::vector<double> profile_layer(const Problem& problem, const ProfileSearch& search, Context& context);

}  // namespace tilewise::study
