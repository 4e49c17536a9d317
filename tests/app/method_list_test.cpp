// SPDX-License-Identifier: Apache-2.0
#include "app/method_list.h"

#include <gtest/gtest.h>

#include "tilewise/base/error.h"
#include "tilewise/methods/registry.h"

namespace tilewise::app {
namespace {

TEST(MethodList, ReadsNamesAndOptions) {
  const auto list = parse_method_list({"xattention:stride=16,threshold=.97,tile=64,a_shape,random:density=.5", "mean_pool"});
  ASSERT_EQ(list.size(), 4u);
  EXPECT_EQ(list[0].name, "xattention");
  EXPECT_EQ(list[0].options, (OptionValues{{"stride", int64_t{16}}, {"threshold", .97}, {"tile", int64_t{64}}}));
  EXPECT_EQ(list[1].name, "a_shape");
  EXPECT_TRUE(list[1].options.empty());
  EXPECT_EQ(list[2].options, (OptionValues{{"density", .5}}));
  EXPECT_EQ(list[3].name, "mean_pool");
}

TEST(MethodList, AllIsEveryMethodButDense) {
  const auto list = parse_method_list({"all"});
  EXPECT_EQ(list.size(), methods().size() - 1);
  for (const MethodChoice& choice : list) EXPECT_NE(choice.name, "dense");
  EXPECT_EQ(parse_method_list({"all,a_shape:local=7"}).size(), methods().size());
}

TEST(MethodList, DemoRowsAreEightThatTheRegistryTakes) {
  EXPECT_EQ(demo_rows().size(), 8u);
  for (const MethodChoice& choice : demo_rows()) EXPECT_NO_THROW(check_options(choice.name, choice.options)) << choice.name;
}

}  // namespace
}  // namespace tilewise::app
