// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/plan/plan.h"

TILEWISE_BEGIN_PUBLIC

/// Pairs of real slots that the plan reads before the mask, over batch and heads: bits of `rows` count, masked runs whole, pooled keys one each.
/// Taken from by_query, from by_key only where that is empty; the same in both. O(runs).
/// Errors (all functions here): value, when the plan is null or has no such head.
TILEWISE_API int64_t reads(const Plan& plan);
/// Those of one head, over the batch.
TILEWISE_API int64_t reads(const Plan& plan, int head);

/// Pairs that the mask lets through. O(runs x slots of a row) for bands and spans in token order, else pair by pair.
TILEWISE_API int64_t allowed_pairs(const Plan& plan);
TILEWISE_API int64_t allowed_pairs(const Plan& plan, int head);

/// reads / dense_reads; 0 where nothing could be read.
TILEWISE_API double density(const Plan& plan);
/// That of one head, over the batch; its denominator is dense_reads_of(plan, head).
TILEWISE_API double density(const Plan& plan, int head);
/// The part of dense_reads that is this head's: dense_reads_of_head, or an equal share.
TILEWISE_API double dense_reads_of(const Plan& plan, int head);
/// allowed_pairs / reads; 1 for a plan that reads nothing.
TILEWISE_API double fill(const Plan& plan);
/// Floating-point operations of a forward over what is read: 2 (D + Dv) a pair.
TILEWISE_API double flops(const Plan& plan, int64_t head_dim, int64_t head_dim_v);
/// The largest number of runs of a by_query row, its three lists together: R of measure over query_run.
TILEWISE_API int64_t max_runs(const Plan& plan);
/// Query rows (over batch and heads) that read no key; out is 0 there, lse -inf. Rows whose every pair is masked are not counted.
TILEWISE_API int64_t empty_rows(const Plan& plan);

TILEWISE_END_PUBLIC
