#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Looks over the machine code of every kernel (tools/check_kernels.py) and builds in DIR what runs on a Hopper GPU: tilewise_cuda_test (attend/cuda, which any GPU
# of compute capability 8.0 runs), tilewise_sm90_test, tilewise_sm90_decode_test, tilewise_sm90_measure_test and tilewise_sm90_backward_test (each against what it is
# defined as), tilewise_sm90_plan_test (plans made on the device against the host's), tilewise_sm90_plan_bench and libtilewise_sm90_bench.so (for
# bench/attend/sm90/*_bench.py). Needs nvcc 13, CMake and Ninja, no GPU.
# With a PYTHON that has torch, also the operators of the Python package (DIR/python/_ops.so).
# usage: tools/sm90_harness.sh DIR [PYTHON]
set -eu
dir=${1:?usage: tools/sm90_harness.sh DIR [PYTHON]}
python=${2:-}
cd "$(dirname "$0")/.."
cmake -S . -B "$dir" -G Ninja -DCMAKE_BUILD_TYPE=Release -DTILEWISE_WITH_CUDA=ON -DTILEWISE_WITH_INFER=OFF -DTILEWISE_WITH_APP=OFF \
  -DTILEWISE_WITH_TESTS=OFF -DTILEWISE_WITH_INSTALL=OFF ${python:+-DTILEWISE_WITH_TORCH=ON "-DPython_EXECUTABLE=$python"} > "$dir.log" || { cat "$dir.log"; exit 1; }
tools/check_kernels.py "$dir" > "$dir.kernels" 2>&1 &
check=$!
cmake --build "$dir" --target tilewise_cuda_test tilewise_sm90_test tilewise_sm90_decode_test tilewise_sm90_measure_test tilewise_sm90_backward_test tilewise_sm90_plan_test tilewise_sm90_plan_bench tilewise_sm90_bench ${python:+tilewise_ops} > "$dir.log" 2>&1 || { tail -n 50 "$dir.log"; exit 1; }
wait "$check" || { cat "$dir.kernels"; exit 1; }
cat "$dir.kernels"
