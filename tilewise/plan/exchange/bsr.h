// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/base/context.h"
#include "tilewise/plan/plan.h"

TILEWISE_BEGIN_PUBLIC

/// Blocks in compressed sparse rows, as FlashInfer takes them: block row i holds block_q queries, block column j holds block_k keys, the last ones what is
/// left. Block row i of head h reads the block columns indices[indptr[b, h, i]] to indices[indptr[b, h, i + 1] - 1].
struct Bsr {
  int64_t seqlen_q = 0, seqlen_k = 0;
  int block_q = 0, block_k = 0;
  TensorView indptr;  // [B|1, G|1, Tq + 1] i32, Tq = ceil(Sq / block_q); G divides Hq, head h uses h * G / Hq
  TensorView indices;  // [nnz] i32, ascending within a block row
  TensorView mask;  // [nnz, block_q, block_k] bool: pairs of each block; absent: all of them
};
/// One that owns its arrays.
struct OwnedBsr {
  Bsr bsr;
  Tensor indptr, indices, mask;
};

struct BsrOfPlanParams {
  Plan plan = {};
  int block_q = 0, block_k = 0;  // at least 1; 0: the plan's tile
  bool has_mask = false;  // write blocks of which only some pairs are read, with their mask; false: such a plan is refused
};
/// Exactly the pairs that the plan lets through, as blocks. Heads and batch entries that read alike share their rows. O(queries x blocks of a row).
/// Errors  value (a null plan; a block below 1), unsupported (the plan has an order or pools; a block is read in part and has_mask is not set: the message names
///         head, query and block; more than 2^31 - 1 blocks), memory, cancelled.
TILEWISE_API OwnedBsr bsr_of_plan(const BsrOfPlanParams& params, Context& context);

struct PlanOfBsrParams {
  Bsr bsr = {};
  int tile = 0;  // slots a row; 0: block_q where that is 16 to 256, else 128. Rows that hold several block rows read with `rows` bits
  Mask mask = Mask::full();  // tests the pairs of all blocks, as `causal` does in FlashInfer
  int64_t batch = 1;
  int heads_q = 1;
};
/// The plan that reads these blocks under the mask, exactly.
/// Errors  shape, dtype, device (of the arrays), value (a tile, block or mask out of range; indptr that descends or passes the end of indices; indices out of
///         range, unsorted or repeated; a pair of bsr.mask that `mask` forbids), memory, cancelled.
TILEWISE_API Plan plan_of_bsr(const PlanOfBsrParams& params, Context& context);

TILEWISE_END_PUBLIC
