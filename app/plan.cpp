// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/plan.h"

#include <iostream>
#include <memory>

#include "app/command.h"
#include "app/interrupt.h"
#include "app/table.h"
#include "tilewise/base/safetensors.h"
#include "tilewise/plan/bits.h"
#include "tilewise/plan/content_hash.h"
#include "tilewise/plan/count.h"
#include "tilewise/plan/exchange/bsr.h"
#include "tilewise/plan/file.h"
#include "tilewise/plan/rows.h"
#include "tilewise/plan/validate.h"

namespace tilewise::app {
namespace {

std::string lists_text(const Lists& lists, int64_t slots) {
  if (!lists.has_runs()) return "none";
  const auto runs = [](const RunList& list) { return list.has_runs() ? list.start.numel() : 0; };
  return std::to_string(plan::num_rows(lists, slots)) + " rows of up to " + std::to_string(lists.tile) + "; " + std::to_string(runs(lists.whole)) +
         " whole and " + std::to_string(runs(lists.masked)) + " masked runs, " + std::to_string(runs(lists.picked)) + " picked keys";
}

std::string mask_text(const Mask& mask) {
  if (mask.spans.has_value()) return "spans";
  if (!mask.grids.empty()) return "neighbourhoods";
  std::string out;
  const auto side = [](int64_t value) { return value == Mask::kAll ? std::string("all") : std::to_string(value); };
  for (const Mask::Band& band : mask.bands) {
    out += out.empty() ? "" : "; ";
    if (band == Mask::Band{}) {
      out += "full";
    } else if (band == Mask::Band{Mask::kAll, 0, 0}) {
      out += "causal";
    } else {
      out += "band, left " + side(band.left) + ", right " + side(band.right) + ", sink " + std::to_string(band.sink);
    }
  }
  return out;
}

void show(const std::string& path) {
  const Plan plan = load_plan(path);
  const int64_t empty = empty_rows(plan);
  std::cout << "tokens     " << plan->seqlen_q << " queries, " << plan->seqlen_k << " keys; batch " << plan->batch << ", " << plan->heads_q
            << " heads\n"
            << "tile       " << (plan->by_query.has_runs() ? plan->by_query.tile : plan->by_key.tile) << "\n"
            << "density    " << number("%.4f", density(plan)) << " of what a dense plan of this mask and tile reads\n"
            << "fill       " << number("%.4f", fill(plan)) << " of what is read passes the mask\n"
            << "mask       " << mask_text(plan->mask) << "\n"
            << "by query   " << lists_text(plan->by_query, plan::slots_q(*plan)) << "\n"
            << "by key     " << lists_text(plan->by_key, plan::slots_k_with_pools(*plan)) << "\n"
            << "orders     " << (plan->order_q.token.has_value() || plan->order_k.token.has_value() ? "given" : "token order") << "\n"
            << "pools      " << plan->pools.size() << "\n"
            << "empty rows " << empty << (empty > 0 ? " (their output is 0)" : "") << "\n"
            << "hash       " << content_hash_text(plan) << "\n\n";
  Table table;
  table.add({{"head", Style::bold}, {"density", Style::bold}, {"fill", Style::bold}, {"pairs read", Style::bold}});
  for (int head = 0; head < plan->heads_q; ++head) {
    const double read = static_cast<double>(reads(plan, head));
    const double allowed = static_cast<double>(allowed_pairs(plan, head));
    table.add(
        {{std::to_string(head)}, {number("%.4f", density(plan, head))}, {number("%.4f", read > 0 ? allowed / read : 1)}, {number("%.0f", read)}});
  }
  std::cout << table.text();
}

void check_file(const std::string& path, const std::string& allowed) {
  const Plan plan = load_plan(path);  // what is wrong with the structure is thrown here
  std::optional<std::string> fault;
  if (!allowed.empty()) fault = find_fault(plan, allowed == "causal" ? Mask::causal() : Mask::full());
  check(!fault, Error::Kind::value, path, ": ", fault.value_or(""));
  std::cout << "ok    " << path << ": " << content_hash_text(plan)
            << (allowed.empty() ? "" : ", every pair is one that the " + allowed + " mask allows") << "\n";
}

struct ConvertOptions {
  std::string to, out;
  bool is_pooled = false, has_mask = false;
  int block_q = 0, block_k = 0, threads = 0;
};

void convert_to_bsr(const Plan& plan, const ConvertOptions& options) {
  Context context = make_context(options.threads);
  const OwnedBsr made = bsr_of_plan({.plan = plan, .block_q = options.block_q, .block_k = options.block_k, .has_mask = options.has_mask}, context);
  std::vector<NamedTensor> tensors{{"indptr", made.bsr.indptr}, {"indices", made.bsr.indices}};
  if (made.bsr.mask.has_value()) tensors.push_back({"mask", made.bsr.mask});
  const WritingFiles guard;
  write_safetensors(options.out, tensors,
                    {{"plan_hash", content_hash_text(plan)},
                     {"axes", "indptr: batch or 1, groups of query heads, block rows + 1; indices: block columns; mask: block, query, key"},
                     {"seqlen_q", std::to_string(made.bsr.seqlen_q)},
                     {"seqlen_k", std::to_string(made.bsr.seqlen_k)},
                     {"block_q", std::to_string(made.bsr.block_q)},
                     {"block_k", std::to_string(made.bsr.block_k)}});
}

void convert(const std::string& path, const ConvertOptions& options) {
  const bool is_bsr = options.to == "bsr";
  if (is_bsr ? options.is_pooled : options.has_mask || options.block_q != 0 || options.block_k != 0) {
    throw UsageError(is_bsr ? "plan convert: --pooled goes with --to dense; blocks of tokens hold no pooled key"
                            : "plan convert: --mask, --block-q and --block-k go with --to bsr");
  }
  const std::string& out = options.out;
  check_writable(out);
  const Plan plan = load_plan(path);
  if (is_bsr) {
    convert_to_bsr(plan, options);
    return;
  }
  constexpr double kMostBytes = 16.0 * 1024 * 1024 * 1024;
  const double bytes = static_cast<double>(plan->batch) * plan->heads_q * static_cast<double>(plan->seqlen_q) * static_cast<double>(plan->seqlen_k);
  check(bytes <= kMostBytes, Error::Kind::unsupported, "plan convert: a dense mask of ", path, " takes ", size_text(bytes), ", at most ",
        size_text(kMostBytes), " are written; plan show has its figures");
  const Tensor bits = to_bits(plan, options.is_pooled);
  const NamedTensor tensors[] = {{"bits", bits.view}};
  const WritingFiles guard;
  write_safetensors(out, tensors, {{"plan_hash", content_hash_text(plan)}, {"axes", "batch, query head, query token, key token"}});
}

}  // namespace

void add_plan_command(CLI::App& app) {
  struct Options {
    std::string file, allowed;
    ConvertOptions convert;
  };
  CLI::App* command = app.add_subcommand("plan", "look at a plan file (compare --save-plans makes them)");
  command->require_subcommand(1);
  const auto options = std::make_shared<Options>();
  CLI::App* show_command = command->add_subcommand("show", "lengths, tile, density, fill and a table of heads");
  show_command->add_option("file", options->file, "a plan")->required();
  show_command->callback([options] { show(options->file); });
  CLI::App* check_command = command->add_subcommand("check", "exit with 1 and the first fault, if there is one");
  check_command->add_option("file", options->file, "a plan")->required();
  check_command->add_option("--allowed", options->allowed, "also hold every pair against this mask of the model")
      ->check(CLI::IsMember({"causal", "full"}));
  check_command->callback([options] { check_file(options->file, options->allowed); });
  CLI::App* convert_command = command->add_subcommand("convert", "write the plan in another form");
  convert_command->add_option("file", options->file, "a plan")->required();
  convert_command
      ->add_option("--to", options->convert.to, "dense: bool [B, Hq, Sq, Sk] in a safetensors file; bsr: indptr, indices and block sizes in one")
      ->required()
      ->check(CLI::IsMember({"dense", "bsr"}));
  convert_command->add_option("--out", options->convert.out, "the file to write")->required();
  convert_command->add_flag("--pooled", options->convert.is_pooled, "dense: a pooled key stands for every token that it holds");
  convert_command->add_option("--block-q", options->convert.block_q, "bsr: queries of a block; 0: the plan's tile")->check(CLI::Range(0, 1 << 20));
  convert_command->add_option("--block-k", options->convert.block_k, "bsr: keys of a block; 0: the plan's tile")->check(CLI::Range(0, 1 << 20));
  convert_command->add_flag("--mask", options->convert.has_mask,
                            "bsr: write blocks that are read in part, with their pairs in `mask`; without it such a plan is refused");
  add_threads_option(*convert_command, options->convert.threads);
  convert_command->callback([options] { convert(options->file, options->convert); });
}

}  // namespace tilewise::app
