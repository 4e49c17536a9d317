// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/options.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "tilewise/methods/registry.h"

namespace tilewise {
namespace {

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::value) << error.what();
    return error.what();
  }
  return "";
}

TEST(Registry, ListsMethodsDenseFirst) {
  std::vector<std::string> names;
  for (const MethodInfo& info : methods()) {
    names.push_back(info.name);
    EXPECT_FALSE(info.source.empty()) << info.name;
    EXPECT_FALSE(info.summary.empty()) << info.name;
    for (const OptionInfo& option : info.options) {
      EXPECT_FALSE(option.help.empty()) << info.name << " " << option.name;
      EXPECT_FALSE(option.range.empty()) << info.name << " " << option.name;
      // Every value that --tune tries is one that the method takes.
      for (const OptionValue& value : option.grid)
        EXPECT_NO_THROW(check_options(info.name, {{option.name, value}})) << info.name << " " << option.name;
      EXPECT_NO_THROW(check_options(info.name, {{option.name, option.default_value}}));
    }
  }
  EXPECT_EQ(names, (std::vector<std::string>{"dense", "a_shape", "minference", "flexprefill", "xattention", "mean_pool", "random", "oracle"}));
  EXPECT_TRUE(method_info("xattention").has_option("density"));
  EXPECT_FALSE(method_info("dense").has_option("density"));
  EXPECT_FALSE(method_info("a_shape").has_option("density"));
  EXPECT_TRUE(method_info("a_shape").is_causal_only);
}

TEST(Registry, NamesTheClosestMethod) {
  EXPECT_NE(message_of([] { method_info("xatention"); }).find("did you mean xattention?"), std::string::npos);
  EXPECT_NE(message_of([] { method_info("a-shape"); }).find("did you mean a_shape?"), std::string::npos);
  const std::string far = message_of([] { method_info("flash"); });
  EXPECT_EQ(far.find("did you mean"), std::string::npos) << far;
  EXPECT_NE(far.find("dense, a_shape, minference"), std::string::npos) << far;
}

TEST(Options, ReadWhatTheyWrite) {
  for (const auto& [method, text] : std::vector<std::pair<std::string, std::string>>{{"xattention", "tile=64,stride=8,threshold=0.97"},
                                                                                     {"xattention", "selector=slash,norm=1.5,kdb=2,keep_sink=true"},
                                                                                     {"oracle", "rule=max,threshold=0.05"},
                                                                                     {"a_shape", "init=0,local=4096"},
                                                                                     {"random", "seed=9223372036854775807"},
                                                                                     {"dense", ""}}) {
    EXPECT_EQ(format_options(method, parse_options(method, text)), text);
  }
  EXPECT_EQ(format_options("xattention", parse_options("xattention", "threshold=0.9, tile = 128")), "") << "defaults are left out";
  EXPECT_EQ(format_options("xattention", parse_options("xattention", "stride=8,tile=64")), "tile=64,stride=8") << "in the method's order";
  const OptionValues values = parse_options("xattention", "threshold=0.97,tile=64,compat=false");
  EXPECT_EQ(std::get<double>(values.at("threshold")), 0.97);
  EXPECT_EQ(std::get<int64_t>(values.at("tile")), 64);
  EXPECT_FALSE(std::get<bool>(values.at("compat")));
}

TEST(Options, TakeNumbersAsJsonWritesThem) {
  EXPECT_NO_THROW(check_options("xattention", {{"tile", 64.0}, {"threshold", int64_t{1}}}));
  EXPECT_EQ(format_options("xattention", {{"tile", 64.0}, {"threshold", int64_t{1}}}), "tile=64,threshold=1");
  for (const MethodInfo& info : methods()) {
    for (const OptionInfo& option : info.options) {
      if (const auto* value = std::get_if<double>(&option.default_value)) {
        EXPECT_LT(method::to_text(*value).size(), 8u) << "prints as it was written";
      }
    }
  }
}

struct Bad {
  const char *method, *option;
  OptionValue value;
};

// Each is refused with the method, the option, the value and the range in one line.
TEST(Options, RefuseBadValues) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  const std::vector<Bad> bad = {
      {"dense", "tile", int64_t{15}},
      {"dense", "tile", int64_t{257}},
      {"dense", "tile", int64_t{-64}},
      {"dense", "tile", 64.5},
      {"dense", "tile", std::string("64")},
      {"dense", "tile", true},
      {"dense", "tile", nan},
      {"dense", "tile", infinity},
      {"dense", "tile", 1e300},
      {"dense", "tile", int64_t{4294967296 + 64}},
      {"a_shape", "init", int64_t{-1}},
      {"a_shape", "init", int64_t{1} << 31},
      {"a_shape", "local", int64_t{0}},
      {"a_shape", "local", int64_t{-5}},
      {"a_shape", "tile", int64_t{8}},
      {"xattention", "tile", int64_t{0}},
      {"xattention", "tile", int64_t{512}},
      {"xattention", "stride", int64_t{0}},
      {"xattention", "stride", int64_t{65}},
      {"xattention", "threshold", 1.01},
      {"xattention", "threshold", -0.01},
      {"xattention", "threshold", nan},
      {"xattention", "threshold", infinity},
      {"xattention", "threshold", std::string("high")},
      {"xattention", "threshold", true},
      {"xattention", "density", 1.5},
      {"xattention", "density", -1.0},
      {"xattention", "top_k", int64_t{-1}},
      {"xattention", "selector", std::string("diagonal")},
      {"xattention", "selector", std::string("")},
      {"xattention", "selector", int64_t{1}},
      {"xattention", "norm", 0.0},
      {"xattention", "norm", -2.0},
      {"xattention", "norm", 1e9},
      {"xattention", "kdb", int64_t{0}},
      {"xattention", "keep_sink", int64_t{1}},
      {"xattention", "keep_recent", std::string("true")},
      {"xattention", "compat", 0.0},
      {"xattention", "seed", int64_t{-1}},
      {"xattention", "chunk_size", int64_t{-2048}},
      {"mean_pool", "tile", int64_t{300}},
      {"mean_pool", "threshold", 2.0},
      {"mean_pool", "density", nan},
      {"random", "density", 1.1},
      {"random", "density", std::string("0.1")},
      {"random", "seed", 0.5},
      {"oracle", "rule", std::string("mean")},
      {"oracle", "rule", true},
      {"oracle", "threshold", -1.0},
      {"oracle", "tile", int64_t{1}},
      {"oracle", "force", std::string("yes")},
      {"oracle", "density", infinity},
  };
  ASSERT_GE(bad.size(), 40u);
  for (const Bad& b : bad) {
    const std::string message = message_of([&] { check_options(b.method, {{b.option, b.value}}); });
    const std::string what = std::string(b.method) + " " + b.option + " = " + method::to_text(b.value);
    std::string range;
    for (const OptionInfo& info : method_info(b.method).options) {
      if (info.name == b.option) range = info.range;
    }
    EXPECT_NE(message.find(b.method), std::string::npos) << what << ": " << message;
    EXPECT_NE(message.find(b.option), std::string::npos) << what << ": " << message;
    EXPECT_NE(message.find("it takes " + range), std::string::npos) << what << ": " << message;
    const std::string got = method::to_text(b.value);
    EXPECT_NE(message.find(got.empty() ? "empty" : got), std::string::npos) << what << ": " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
}

TEST(Options, RefuseBadText) {
  const std::vector<std::pair<std::string, std::string>> bad = {
      {"threshold", "as an option"},
      {"=0.9", "as an option"},
      {"threshold=", "threshold is empty"},
      {"threshold=0.9x", "0.9x"},
      {"tile=6 4", "6 4"},
      {"tile=0x40", "0x40"},
      {"tile=64.0", "64.0"},
      {"keep_sink=1", "true or false"},
      {"tile=64,tile=64", "given twice"},
      {"thresold=0.9", "did you mean threshold?"},
      {"foo=1", "it takes tile, stride"},
      {"tile=64,,stride=8", "as an option"},
      {"selector=inverted", "inverse, slash, random, double, triple"},
      {"tile=99999999999999999999", "16 to 256"},
      {"threshold=nan", "0 to 1"},
  };
  for (const auto& [text, part] : bad) {
    const std::string message = message_of([&, t = text] { parse_options("xattention", t); });
    EXPECT_NE(message.find(part), std::string::npos) << text << ": " << message;
  }
}

TEST(Options, RefuseValuesThatDoNotGoTogether) {
  std::vector<float> x(64 * 8);
  Problem problem;
  problem.q = problem.k = TensorView::of(x.data(), {1, 1, 64, 8});
  Context context;
  const auto message = [&](const std::string& text) {
    return message_of([&] { plan_with("xattention", problem, parse_options("xattention", text), context); });
  };
  EXPECT_NE(message("tile=40,stride=16").find("multiple of stride 16"), std::string::npos);
  EXPECT_NE(message("tile=64,stride=16,kdb=3").find("times kdb 3"), std::string::npos);
  EXPECT_NE(message("density=0.5,top_k=3").find("give one"), std::string::npos);
}

}  // namespace
}  // namespace tilewise
