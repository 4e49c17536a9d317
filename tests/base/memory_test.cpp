// SPDX-License-Identifier: Apache-2.0
#include "tilewise/base/memory.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <utility>

#include "tilewise/base/context.h"

namespace tilewise {
namespace {

TEST(Memory, CountsBytesAndTheirPeak) {
  const auto counting = std::make_shared<CountingMemory>(host_memory());
  {
    Tensor a(counting, Dtype::f32, {4, 8});
    EXPECT_EQ(reinterpret_cast<uintptr_t>(a.view.raw()) % Memory::kAlignment, 0u);
    EXPECT_EQ(counting->bytes(), 128u);
    Tensor b(counting, Dtype::bf16, {4});
    EXPECT_EQ(counting->peak_bytes(), 136u);
    a = std::move(b);
    EXPECT_EQ(counting->bytes(), 8u);
  }
  EXPECT_EQ(counting->bytes(), 0u);
  EXPECT_EQ(counting->peak_bytes(), 136u);
}

TEST(Memory, RefusesByteCountsThatOverflow) { EXPECT_THROW(Tensor(host_memory(), Dtype::f32, {INT64_MAX / 2, 8}), Error); }

TEST(Context, ParallelForStopsWhenCancelled) {
  std::stop_source source;
  Context context;
  context.cancel = source.get_token();
  int done = 0;
  try {
    context.parallel_for(10, [&](int64_t item, int) {
      ++done;
      if (item == 3) source.request_stop();
    });
    FAIL() << "not cancelled";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::cancelled);
  }
  EXPECT_EQ(done, 4);
}

}  // namespace
}  // namespace tilewise
