// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/machine/cuda/block.h"

// What block.h is, for kernels whose warps multiply matrices: a Block then has besides
//   typename Block::template Registers<T, n> of(block)   n numbers of each thread, of(thread, i): registers where i is known to the compiler
//   block.lanes([&](int thread) { ... })   a step without a barrier behind it: threads write registers of their own, and shared memory up to block.sync()
//   block.sync()
//   block.quad(numbers, fold)              folds each of them over the four threads 4i .. 4i + 3, which get the same bits
//   block.load_matrices<kIsTransposed>(out, address)   `ldmatrix`: four 8x8 matrices of 16-bit numbers; address(thread) is row thread % 8 of matrix
//                                          thread % 32 / 8 of its warp; out(thread, m) are two neighbours in row thread / 4 (transposed: column) of m
//   block.multiply<Element>(acc, at, a, a_at, b, b_at)  `mma.sync` m16n8k16: acc[at .. at + 4) += a[a_at .. a_at + 4) b[b_at .. b_at + 2)
//   block.copy16(to, from, is_there)       `cp.async`: 16 bytes to shared memory, zeros where it is not there; in a step, by one thread
//   block.close_copies(), block.await_copies<n>()   a group of the copies so far; waits until n groups at most are under way (a barrier must follow)
// All threads of a block come by all of these. DeviceWarps (device_warps.cuh) is one instruction each; the tests' HostWarps goes through the lanes of the
// documented layouts (PTX ISA, "Matrix fragments for mma.m16n8k16", "ldmatrix"), and lets a copy arrive no sooner than it is waited for.
//
// A 16x8 result lies so: lane l has rows l / 4 and l / 4 + 8, columns 2 (l % 4) and one more: numbers (row 0, two columns), (row 1, two columns).
namespace tilewise::machine::cuda {

TILEWISE_HOST_DEVICE constexpr int fragment_row(int thread) { return thread / 32 * 16 + thread % 32 / 4; }  // of the block; the second is 8 below
TILEWISE_HOST_DEVICE constexpr int fragment_column(int thread) { return thread % 4 * 2; }  // of 8

}  // namespace tilewise::machine::cuda
