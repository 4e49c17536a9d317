// SPDX-License-Identifier: Apache-2.0
// A stop inside one long item. Memory tells how far a kernel gets: a page that it may not touch asks for the stop when it is touched, a second one far behind it
// counts whether work went on. Nothing is timed.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <functional>
#include <stop_token>

#include "tests/attend/test_tensor.h"
#include "tilewise/attend/cpu/backward.h"
#include "tilewise/attend/cpu/decode.h"
#include "tilewise/attend/decode_problem.h"
#include "tilewise/plan/make.h"

namespace tilewise::attend {
namespace {

/// Zeros, two pages of which are closed at first.
class Trap {
 public:
  /// Shares of the memory at which the two pages lie.
  Trap(int64_t bytes, double first, double second) : page_(sysconf(_SC_PAGESIZE)), bytes_((bytes + page_ - 1) / page_ * page_) {
    data_ = static_cast<char*>(mmap(nullptr, static_cast<size_t>(bytes_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_NE(data_, MAP_FAILED);
    places_[0] = static_cast<int64_t>(first * static_cast<double>(bytes_)) / page_ * page_;
    places_[1] = static_cast<int64_t>(second * static_cast<double>(bytes_)) / page_ * page_;
    for (const int64_t place : places_) mprotect(data_ + place, static_cast<size_t>(page_), PROT_NONE);
    armed_ = this;
    struct sigaction action{};
    action.sa_sigaction = &touched;
    action.sa_flags = SA_SIGINFO;
    for (const int signal : {SIGSEGV, SIGBUS}) sigaction(signal, &action, &before_[signal == SIGSEGV ? 0 : 1]);
  }
  Trap(const Trap&) = delete;
  Trap& operator=(const Trap&) = delete;
  ~Trap() {
    sigaction(SIGSEGV, &before_[0], nullptr);
    sigaction(SIGBUS, &before_[1], nullptr);
    armed_ = nullptr;
    munmap(data_, static_cast<size_t>(bytes_));
  }
  void* data() const { return data_; }
  std::stop_token token() const { return source_.get_token(); }
  void will_not_stop() { is_stopping_ = false; }
  bool is_touched(int which) const { return is_touched_[which]; }

 private:
  // Called in the thread that touches a page, in the middle of a load of the kernel.
  static void touched(int signal, siginfo_t* info, void*) {
    Trap* const trap = armed_;
    const auto* const at = static_cast<const char*>(info->si_addr);
    for (int i = 0; trap != nullptr && i < 2; ++i) {
      char* const page = trap->data_ + trap->places_[i];
      if (at < page || at >= page + trap->page_) continue;
      mprotect(page, static_cast<size_t>(trap->page_), PROT_READ | PROT_WRITE);
      trap->is_touched_[i] = true;
      if (i == 0 && trap->is_stopping_) trap->source_.request_stop();
      return;
    }
    ::signal(signal, SIG_DFL);  // a fault of another kind: run the instruction again, without us
  }
  static inline Trap* armed_ = nullptr;

  int64_t page_, bytes_;
  char* data_;
  int64_t places_[2];
  bool is_touched_[2] = {false, false}, is_stopping_ = true;
  std::stop_source source_;
  struct sigaction before_[2] = {};
};

// Both ways: without a stop the second page is reached, with one it is not.
void expect_stop(int64_t bytes, const std::function<void(Trap& trap, Context& context)>& call) {
  for (const bool is_stopped : {false, true}) {
    Trap trap(bytes, 0.25, 0.75);
    if (!is_stopped) trap.will_not_stop();
    Context context;
    context.cancel = trap.token();
    if (is_stopped) {
      try {
        call(trap, context);
        ADD_FAILURE() << "was not cancelled";
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), Error::Kind::cancelled) << error.what();
      }
    } else {
      call(trap, context);
    }
    EXPECT_TRUE(trap.is_touched(0));
    EXPECT_EQ(trap.is_touched(1), !is_stopped);
  }
}

TEST(AttendStop, DecodeEndsWithinAnItem) {
  constexpr int64_t kKeys = 4000, kDim = 64;  // one item
  const testing::HostTensor q = testing::zeros(Dtype::f32, {1, 1, 1, kDim}), out = testing::zeros(Dtype::f32, {1, 1, 1, kDim}),
                            other = testing::zeros(Dtype::f32, {1, 1, kKeys, kDim});
  for (const bool is_k : {true, false}) {
    expect_stop(kKeys * kDim * static_cast<int64_t>(sizeof(float)), [&](Trap& trap, Context& context) {
      const TensorView closed(trap.data(), Dtype::f32, {1, 1, kKeys, kDim});
      const DecodeParams params{
          .q = q.view, .k = is_k ? closed : other.view, .v = is_k ? other.view : closed, .out = out.view, .dense_band = Mask::Band{.right = 0}};
      cpu::decode(check_decode(params, context), context);
    });
  }
}

TEST(AttendStop, BackwardEndsWithinAnItem) {
  constexpr int64_t kQueries = 8000, kKeys = 64, kDim = 16;  // one block of keys, read by every query
  const Shape of_queries{1, 1, kQueries, kDim}, of_keys{1, 1, kKeys, kDim};
  const testing::HostTensor rows = testing::zeros(Dtype::f32, of_queries), keys = testing::zeros(Dtype::f32, of_keys),
                            lse = testing::zeros(Dtype::f32, {1, 1, kQueries});
  const testing::HostTensor dq(Dtype::f32, of_queries), dk(Dtype::f32, of_keys), dv(Dtype::f32, of_keys);
  const Plan plan = dense_plan({.seqlen_q = kQueries, .seqlen_k = kKeys, .mask = Mask::full()});
  expect_stop(kQueries * kDim * static_cast<int64_t>(sizeof(float)), [&](Trap& trap, Context& context) {
    const TensorView closed(trap.data(), Dtype::f32, of_queries);
    const AttendParams forward{.q = closed, .k = keys.view, .v = keys.view, .out = rows.view, .lse = lse.view, .plan = plan};
    cpu::backward({.forward = forward, .dout = rows.view, .dq = dq.view, .dk = dk.view, .dv = dv.view}, context);
  });
}

}  // namespace
}  // namespace tilewise::attend
