#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the Hopper kernels' own harness into DIR: forward_test (against f64) and libsm90.so (for bench/attend/sm90/forward_bench.py).
# usage: tools/sm90_harness.sh DIR
set -eu
dir=${1:?usage: tools/sm90_harness.sh DIR}
mkdir -p "$dir"
cd "$(dirname "$0")/.."
nvcc="${NVCC:-nvcc} -std=c++20 -O3 -I. --expt-relaxed-constexpr -Xcompiler -fPIC -gencode=arch=compute_90a,code=sm_90a"
# A spill, or a wgmma that the compiler made synchronous (C75xx), is an error: both halve the speed without a sound.
$nvcc -Xptxas -v -c tilewise/attend/sm90/forward.cu -o "$dir/forward.o" > "$dir/forward.log" 2>&1 || { cat "$dir/forward.log"; exit 1; }
if grep -E "C75[0-9][0-9]|[1-9][0-9]* bytes spill" "$dir/forward.log"; then exit 1; fi
$nvcc -c tests/attend/sm90/forward_test.cu -o "$dir/forward_test.o"
$nvcc -c bench/attend/sm90/harness.cu -o "$dir/harness.o"
$nvcc "$dir/forward_test.o" "$dir/forward.o" -o "$dir/forward_test"
$nvcc -shared "$dir/harness.o" "$dir/forward.o" -o "$dir/libsm90.so"
