// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "tilewise/base/context.h"
#include "tilewise/plan/plan.h"

TILEWISE_BEGIN_PUBLIC

struct ScheduleData;
/// Made by attend_prepare (attend/prepare.h); null: none.
using Schedule = std::shared_ptr<const ScheduleData>;

/// Shapes: B batch, Hq and Hkv heads (Hkv divides Hq; query head h reads K/V head h * Hkv / Hq), Sq and Sk tokens, D and Dv channels.
/// Tensors are in token order unless in_slots says else; the last axis is contiguous, other strides are free.
struct AttendParams {
  TensorView q = {}, k = {}, v = {};        // [B, Hq, Sq, D], [B, Hkv, Sk, D], [B, Hkv|1, Sk, Dv]; v and out may be absent together: lse alone
  TensorView out = {}, lse = {};            // written: [B, Hq, Sq, Dv] in q's dtype, and [B, Hq, Sq] f32; an absent one is not written
  Plan plan = {};                           // which keys each row reads, and the test of masked runs; null is an error, never dense
  std::optional<float> softmax_scale = {};  // default 1 / sqrt(D); finite and > 0
  float softcap = 0;                        // s -> softcap * tanh(s / softcap); 0: none
  TensorView sink_logit = {};               // [Hq] f32, one more logit in each row's denominator, or absent
  /// The caller has reordered q, k and v by the plan's orders, and gets out and lse so: Sq and Sk count slots, and the heads of k are a multiple of the
  /// groups of order_k. Padding slots are neither read nor written (their gradients are 0); pooled keys are made here all the same.
  bool in_slots = false;
  Schedule schedule = {};  // from attend_prepare, of this plan; null: made by each call that needs one
};

struct AttendBackwardParams {
  AttendParams forward = {};  // as they went in; out and lse hold what came out (both needed)
  TensorView dout = {}, dlse = {};  // [B, Hq, Sq, Dv] in q's dtype; [B, Hq, Sq] f32 or absent
  TensorView dq = {}, dk = {}, dv = {};  // written: shapes and dtypes of q, k, v
  TensorView dsink_logit = {};  // written: [Hq] f32, or absent
};

/// What measure() sums up over.
enum class MeasureOver : uint8_t {
  tile,  // [B, Hq, Tq, Tk]  tile_q x tile_k slots, counted from slot 0 whatever the rows' edges; tile_q divides the plan's tile;
  //                  Tk goes on over the pools behind the slots of k
  query_tile,  // [B, Hq, Sq, Tk]
  query_run,  // [B, Hq, Sq, R]   R the largest number of runs (whole, masked and picked together, by start) of a row
  query,  // [B, Hq, Sq]
  key,  // [B, Hq, Sk]
  offset,  // [B, Hq, Sk]      key token subtracted from the query's token: q + Sk - Sq - k; negative offsets are left out
};

/// Reduces s, the scaled logit after softcap (and key_bias; of a pooled key with ln(real tokens)), or exp(s - lse) where a lse is given, over the
/// pairs that the plan allows. Queries and keys stand by token, or by slot where in_slots says so; tiles and runs by slot.
struct MeasureParams {
  TensorView q = {}, k = {};  // [B, Hq, Sq, D], [B, Hkv, Sk, D]
  Plan plan = {};
  TensorView lse = {};  // [B, Hq, Sq] f32: reduce exp(s - lse); absent: reduce s
  TensorView key_bias = {};  // [B, Hq, Sk] f32, added to s, or absent
  /// As AttendParams: q, k, lse and key_bias are in the plan's slots, Sq and Sk count them, and so stand the queries and keys of what is written: padding has no
  /// pair. Offsets are those of tokens, one for each of the plan's seqlen_k.
  bool in_slots = false;
  MeasureOver over = MeasureOver::tile;
  int tile_q = 0, tile_k = 0;  // slots; 0: the tile of the plan's by_query
  std::optional<float> softmax_scale = {};
  float softcap = 0;
  TensorView sum = {}, max = {}, count = {};  // written, f32, the shape that `over` names; absent ones are not. No pair: sum 0, max -inf, count 0
};

/// Which backend ran and what it read.
struct Ran {
  std::string backend;  // "cpu", "reference"
  std::string target;  // "avx512bf16", ...
  int64_t pairs_read = 0;  // over batch and heads, as density counts them; -1 where the counts lie on a GPU
};

TILEWISE_END_PUBLIC
