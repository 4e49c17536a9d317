// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/registry.h"

#include <iostream>
#include <memory>

#include "app/command.h"
#include "app/table.h"

namespace tilewise::app {
namespace {

std::string value_text(const OptionValue& value) {
  struct Printer {
    std::string operator()(bool held) const { return held ? "true" : "false"; }
    std::string operator()(int64_t held) const { return std::to_string(held); }
    std::string operator()(double held) const { return number("%g", held); }
    std::string operator()(const std::string& held) const { return held; }
  };
  return std::visit(Printer{}, value);
}

void list_methods() {
  Table table;
  table.add({{"method", Style::bold}, {"source", Style::bold}});
  for (const MethodInfo& info : methods()) {
    std::string options;
    for (const OptionInfo& option : info.options) options += (options.empty() ? "" : ", ") + option.name + "=" + value_text(option.default_value);
    table.add({{info.name}, {info.source}});
    table.add_line(info.summary, Style::plain);
    if (!options.empty()) table.add_line(options, Style::dim);
  }
  std::cout << table.text()
            << "\n\"tilewise methods NAME\" explains a method's options; compare takes them as --methods name:option=value,option=value\n";
}

void show_method(const std::string& name) {
  const MethodInfo& info = usage([&]() -> const MethodInfo& { return method_info(name); });
  std::cout << styled(info.name, Style::bold) << "  " << info.summary << "\nsource: " << info.source << "\n";
  if (info.needs_v) std::cout << "reads v to plan\n";
  if (info.is_causal_only) std::cout << "takes causal masks alone\n";
  if (info.options.empty()) {
    std::cout << "no options\n";
    return;
  }
  Table table;
  table.add({{"option", Style::bold}, {"default", Style::bold}, {"takes", Style::bold}, {"tuned over", Style::bold}});
  for (const OptionInfo& option : info.options) {
    std::string grid;
    for (const OptionValue& value : option.grid) grid += (grid.empty() ? "" : ", ") + value_text(value);
    table.add({{option.name}, {value_text(option.default_value)}, {option.range}, {grid.empty() ? "-" : grid}});
    table.add_line(option.help, Style::dim);
  }
  std::cout << table.text();
}

}  // namespace

void add_methods_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("methods", "list the methods, or one with its options, ranges and source");
  const auto name = std::make_shared<std::string>();
  command->add_option("name", *name, "a method");
  command->callback([name] {
    if (name->empty()) {
      list_methods();
    } else {
      show_method(*name);
    }
  });
}

}  // namespace tilewise::app
