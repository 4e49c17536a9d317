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
  const double dense = static_cast<double>(plan->dense_reads) / plan->heads_q;
  for (int head = 0; head < plan->heads_q; ++head) {
    const double read = static_cast<double>(reads(plan, head));
    const double allowed = static_cast<double>(allowed_pairs(plan, head));
    table.add({{std::to_string(head)},
               {number("%.4f", dense > 0 ? read / dense : 0)},
               {number("%.4f", read > 0 ? allowed / read : 1)},
               {number("%.0f", read)}});
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

void convert(const std::string& path, const std::string& to, const std::string& out, bool is_pooled) {
  check(to == "dense", Error::Kind::unsupported, "plan convert: --to ", to, " is not built yet; --to dense writes every pair as a byte");
  check_writable(out);
  const Plan plan = load_plan(path);
  constexpr double kMostBytes = 16.0 * 1024 * 1024 * 1024;
  const double bytes = static_cast<double>(plan->batch) * plan->heads_q * static_cast<double>(plan->seqlen_q) * static_cast<double>(plan->seqlen_k);
  check(bytes <= kMostBytes, Error::Kind::unsupported, "plan convert: a dense mask of ", path, " takes ", size_text(bytes), ", at most ",
        size_text(kMostBytes), " are written; plan show has its figures");
  const Tensor bits = to_bits(plan, is_pooled);
  const NamedTensor tensors[] = {{"bits", bits.view}};
  const WritingFiles guard;
  write_safetensors(out, tensors, {{"plan_hash", content_hash_text(plan)}, {"axes", "batch, query head, query token, key token"}});
}

}  // namespace

void add_plan_command(CLI::App& app) {
  struct Options {
    std::string file, allowed, to, out;
    bool is_pooled = false;
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
  convert_command->add_option("--to", options->to, "dense: bool [B, Hq, Sq, Sk] in a safetensors file")
      ->required()
      ->check(CLI::IsMember({"dense", "bsr"}));
  convert_command->add_option("--out", options->out, "the file to write")->required();
  convert_command->add_flag("--pooled", options->is_pooled, "a pooled key stands for every token that it holds");
  convert_command->callback([options] { convert(options->file, options->to, options->out, options->is_pooled); });
}

}  // namespace tilewise::app
