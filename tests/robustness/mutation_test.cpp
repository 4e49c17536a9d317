// SPDX-License-Identifier: Apache-2.0
// Damaged plans and tensor files: refused with the path, or safe to use.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/attend/random_plan.h"
#include "tests/base/temporary_folder.h"
#include "tests/fuzz/use_plan.h"
#include "tests/robustness/mutation.h"
#include "tilewise/base/file.h"
#include "tilewise/base/safetensors.h"
#include "tilewise/plan/file.h"

namespace tilewise::testing {
namespace {

std::vector<std::string> plan_files(const TemporaryFolder& folder) {
  std::vector<std::string> files;
  for (const char* golden : {"golden_plan", "golden_plan_by_key", "golden_plan_of_grids", "golden_plan_of_batches"})
    files.push_back(read_file(std::string("tests/plan/") + golden + ".safetensors", 1 << 20));
  Context context;
  for (uint64_t seed = 0; seed < 14; ++seed) {
    attend::testing::Rng rng(seed);
    attend::testing::PlanOptions o;
    o.seqlen_q = o.seqlen_k = 50;
    o.tile = 16;
    o.heads_q = 2;
    o.mask = static_cast<attend::testing::MaskKind>(seed % 7);
    o.has_picked = o.has_rows = seed % 2 == 0;
    o.has_order_k = seed % 3 == 0;
    o.is_by_key = seed % 5 == 1;
    const Plan plan = attend::testing::random_plan(rng, o).plan;
    save_plan(seed < 7 ? plan : complete(plan, context, 16), folder.file("seed"));
    files.push_back(read_file(folder.file("seed"), 1 << 20));
  }
  return files;
}

TEST(DamagedFiles, PlansAreRefusedOrSafe) {
  const TemporaryFolder folder;
  const std::vector<std::string> files = plan_files(folder);
  const std::string path = folder.file("plan");
  int refused = 0, taken = 0;
  for (int i = 0; i < mutations(1000); ++i) {
    std::mt19937_64 rng(static_cast<uint64_t>(i));
    TemporaryFolder::write(path, mutated(files[static_cast<size_t>(i) % files.size()], rng));
    SCOPED_TRACE("seed " + std::to_string(i));
    try {
      fuzz::use_plan(load_plan(path));
      ++taken;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), Error::Kind::io) << error.what();
      EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
      ++refused;
    }
  }
  EXPECT_GT(refused, taken * 5) << "what is taken differs where nothing is said: dead space between lists, keys of metadata that nobody reads";
  std::cout << "  " << refused << " refused, " << taken << " taken\n";
}

TEST(DamagedFiles, TensorFilesAreRefusedOrSafe) {
  const TemporaryFolder folder;
  const std::vector<std::string> files = plan_files(folder);
  const std::string path = folder.file("tensors");
  int refused = 0;
  for (int i = 0; i < mutations(1000); ++i) {
    std::mt19937_64 rng(static_cast<uint64_t>(i) + 1000000);
    TemporaryFolder::write(path, mutated(files[static_cast<size_t>(i) % files.size()], rng));
    SCOPED_TRACE("seed " + std::to_string(i));
    try {
      const SafetensorsFile file(path);
      size_t bytes = 0;
      for (const SafetensorsEntry& entry : file.entries()) bytes += file.load(entry.name, host_memory()).buffer.bytes();
      EXPECT_LE(bytes, std::filesystem::file_size(path));
    } catch (const Error& error) {
      EXPECT_TRUE(error.kind() == Error::Kind::io || error.kind() == Error::Kind::dtype || error.kind() == Error::Kind::shape) << error.what();
      EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
      ++refused;
    }
  }
  EXPECT_GT(refused, mutations(1000) / 4);
}

}  // namespace
}  // namespace tilewise::testing
