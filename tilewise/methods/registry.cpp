// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/registry.h"

#include <charconv>
#include <functional>

#include "tilewise/methods/a_shape.h"
#include "tilewise/methods/dense.h"
#include "tilewise/methods/flexprefill.h"
#include "tilewise/methods/mean_pool.h"
#include "tilewise/methods/minference.h"
#include "tilewise/methods/options.h"
#include "tilewise/methods/oracle.h"
#include "tilewise/methods/random.h"
#include "tilewise/methods/xattention.h"

namespace tilewise::method {
namespace {

struct Entry {
  MethodInfo info;
  std::function<Planned(const Problem&, const OptionValues&, Context&)> run;
  std::function<OptionValues(const OptionValues&)> normalised;  // checked, every option present
};

struct Traits {
  bool needs_v = false, is_causal_only = false;
};

template <class Options>
Entry method(const std::string& name, Planned (*run)(const Problem&, const Options&, Context&), std::string source, std::string summary,
             Traits traits = {}) {
  Entry entry;
  entry.info = {name, std::move(source), std::move(summary), describe<Options>(), traits.needs_v, traits.is_causal_only};
  entry.run = [name, run](const Problem& problem, const OptionValues& values, Context& context) {
    return run(problem, read_options<Options>(name, values), context);
  };
  entry.normalised = [name](const OptionValues& values) {
    const Options options = read_options<Options>(name, values);
    OptionValues all;
    Options::each_field(options, [&](std::string_view field_name, const auto& field, const auto& limits, const auto&, std::string_view) {
      all.emplace(std::string(field_name), detail::to_value(field, limits));
    });
    return all;
  };
  return entry;
}

/// In the order of tables.
const std::vector<Entry>& entries() {
  static const std::vector<Entry> list = {
      method<DenseOptions>("dense", &dense, "arXiv 2307.08691", "all that the mask allows: the yardstick"),
      method<AShapeOptions>("a_shape", &a_shape, "arXiv 2407.02490", "first tokens and a window, the same for every head and input",
                            {.is_causal_only = true}),
      method<MInferenceOptions>("minference", &minference, "arXiv 2407.02490",
                                "keys and distances that the last queries look at, or a pattern for each head", {.is_causal_only = true}),
      method<FlexPrefillOptions>("flexprefill", &flexprefill, "arXiv 2502.20766",
                                 "columns and diagonals of tiles that cover a share of what the last queries look at", {.is_causal_only = true}),
      method<XAttentionOptions>("xattention", &xattention, "arXiv 2503.16428", "tiles by the softmax mass of logits summed along antidiagonals"),
      method<MeanPoolOptions>("mean_pool", &mean_pool, "arXiv 2407.02490", "tiles by products of mean queries and mean keys"),
      method<RandomOptions>("random", &random, "baseline", "tiles by lot: what any selector must beat"),
      method<OracleOptions>("oracle", &oracle, "baseline", "tiles by the true attention, computed in full"),
  };
  return list;
}

const Entry& entry_of(std::string_view name) {
  std::vector<std::string> names;
  for (const Entry& entry : entries()) {
    if (entry.info.name == name) return entry;
    names.push_back(entry.info.name);
  }
  fail(Error::Kind::value, "there is no method ", name.empty() ? "with an empty name" : name, "; ", suggestion(name, names), "methods are ",
       join(names));
}

std::string_view trim(std::string_view text) {
  const auto is_space = [](char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; };
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

/// `text` as a value of the same type as the option's default. The range is checked by read_options.
OptionValue parse_value(std::string_view method_name, const OptionInfo& info, std::string_view text) {
  const auto refuse = [&] { fail_option(method_name, info.name, std::string(text), info.range, info.help); };
  if (std::holds_alternative<std::string>(info.default_value)) return std::string(text);
  if (std::holds_alternative<bool>(info.default_value)) {
    if (text == "true") return true;
    if (text != "false") refuse();
    return false;
  }
  const std::string digits(text);
  const char *begin = digits.c_str(), *end = begin + digits.size();
  if (std::holds_alternative<int64_t>(info.default_value)) {
    int64_t whole = 0;
    const auto [stop, code] = std::from_chars(begin, end, whole);
    if (code != std::errc() || stop != end) refuse();
    return whole;
  }
  double real = 0;
  const auto [stop, code] = std::from_chars(begin, end, real);
  if (code != std::errc() || stop != end) refuse();
  return real;
}

std::vector<MethodInfo> all_infos() {
  std::vector<MethodInfo> infos;
  for (const Entry& entry : entries()) infos.push_back(entry.info);
  return infos;
}

}  // namespace
}  // namespace tilewise::method

TILEWISE_BEGIN_PUBLIC

const std::vector<MethodInfo>& methods() {
  static const std::vector<MethodInfo> infos = method::all_infos();
  return infos;
}

const MethodInfo& method_info(std::string_view name) { return method::entry_of(name).info; }

Planned plan_with(std::string_view name, const Problem& problem, const OptionValues& options, Context& context) {
  const method::Entry& entry = method::entry_of(name);
  context.check_cancel();
  return entry.run(problem, options, context);
}

void check_options(std::string_view name, const OptionValues& options) { method::entry_of(name).normalised(options); }

OptionValues parse_options(std::string_view name, std::string_view text) {
  const method::Entry& entry = method::entry_of(name);
  OptionValues values;
  text = method::trim(text);
  while (!text.empty()) {
    const size_t comma = text.find(',');
    const std::string_view part = method::trim(text.substr(0, comma));
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
    const size_t equals = part.find('=');
    check(equals != std::string_view::npos && equals > 0, Error::Kind::value, name, ": cannot read \"", part,
          "\" as an option; write name=value, name=value");
    const std::string_view option = method::trim(part.substr(0, equals));
    OptionValue value = std::string(method::trim(part.substr(equals + 1)));
    for (const OptionInfo& info : entry.info.options) {
      if (info.name == option) value = method::parse_value(name, info, std::get<std::string>(value));
    }
    const bool is_new = values.emplace(std::string(option), std::move(value)).second;
    check(is_new, Error::Kind::value, name, ": option ", option, " is given twice");
  }
  entry.normalised(values);
  return values;
}

std::string format_options(std::string_view name, const OptionValues& options) {
  const method::Entry& entry = method::entry_of(name);
  const OptionValues all = entry.normalised(options);
  std::string text;
  for (const OptionInfo& info : entry.info.options) {
    const OptionValue& value = all.find(info.name)->second;
    if (value == info.default_value) continue;
    text += (text.empty() ? "" : ",") + info.name + "=" + method::to_text(value);
  }
  return text;
}

TILEWISE_END_PUBLIC
