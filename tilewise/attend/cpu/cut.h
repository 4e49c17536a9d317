// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tilewise/attend/cpu/block.h"
#include "tilewise/attend/cpu/seen_by_lanes.h"
#include "tilewise/attend/cpu/slots.h"
#include "tilewise/base/context.h"
#include "tilewise/plan/plan.h"

// From a plan to blocks: which queries run together, and which keys they read. Plain C++.
namespace tilewise::attend::cpu {

/// Up to kBlockLanes neighbouring query slots of one row of by_query, or of several rows that share their lists.
struct QueryBlock {
  int64_t b;
  int head;
  int64_t row;
  int32_t first;   // query slot
  int32_t lanes;
  int32_t offset;  // slots of the row before `first`, a multiple of kBlockLanes
  int64_t keys;    // before the mask: the work
  int64_t picked;  // of these, keys of the picked list
};

/// What both refusals share: dtype, head dims, device.
std::optional<std::string> refusal_of_operand(const char* name, const TensorView& view);

/// The plan, or, where it has by_key alone, its transpose: made anew at every call, so a caller with such a plan does better to complete() it once.
Plan with_by_query(const Plan& plan, Context& context);

/// What a worker keeps of the block that it is at.
struct BlockCut {
  std::array<int32_t, kBlockLanes> token;  // of each lane's query; -1: padding, or no lane
  uint64_t real;                           // lanes that hold a token
  LaneBand band;                           // what tested segments are tested by
  std::vector<Segment> segments;           // keys are slots of the key axis, pools included

 private:
  friend class Cut;
  SeenByLanes seen_;
  bool is_seen_set_ = false, is_banded_ = false;
};

/// Which segments a block gets.
enum class CutFor : uint8_t {
  forward,  // lanes of padding queries may read anything, since nobody looks at them; segments that all lanes read come first
  measure,  // bits hold lanes of real queries alone
  measure_runs,  // and segments keep the order of run starts over the three lists; `cell` is the run's place in it (else 0)
};

/// Lets the kernels see a request to stop; what they return then is thrown away by the next check_cancel().
inline void set_stop(const Context& context, Block& block) {
  block.is_stopped = [](const void* stop) { return static_cast<const std::stop_token*>(stop)->stop_requested(); };
  block.stop = &context.cancel;
}

/// A plan as the kernels walk it. Shared by all workers; `plan` must outlive it.
class Cut {
 public:
  Cut(const PlanData& plan, int heads);

  const SlotAxes& queries() const { return queries_; }
  const SlotAxes& keys() const { return keys_; }

  /// All blocks that hold a query. Heads stay together (their K and V stay in the cache), longest first within a head.
  std::vector<QueryBlock> blocks(int64_t batch) const;

  /// Fills `cut` with what the block reads: runs of whole, then masked, then picked. Keys that the mask denies to every lane are left out, and those that it
  /// grants to every lane are not tested. Where the mask is a band of key slots for each lane, its edge is tested by the kernel; elsewhere (neighbourhoods,
  /// scattered spans, orders of keys, pooled keys) it is asked here, key by key, and bits carry the answer. Returns the pairs read, before the mask.
  int64_t cut(const QueryBlock& block, CutFor purpose, BlockCut& cut) const;

 private:
  void set_lanes(const QueryBlock& block, BlockCut& cut) const;

  const PlanData& plan_;
  int heads_;
  int64_t slots_k_;
  SlotAxes queries_, keys_;
};

}  // namespace tilewise::attend::cpu
