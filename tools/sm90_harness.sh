#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds in DIR what runs on a Hopper GPU: tilewise_cuda_test (attend/cuda, which any GPU of compute capability 8.0 runs), tilewise_sm90_test, tilewise_sm90_decode_test, tilewise_sm90_measure_test and
# tilewise_sm90_backward_test (attend_forward, attend_decode, measure and attend_backward against what they are defined as), tilewise_sm90_plan_test (plans made on the device against the host's), tilewise_sm90_plan_bench and
# libtilewise_sm90_bench.so (for bench/attend/sm90/*_bench.py), and looks over the machine code of the kernels. Needs nvcc 13, CMake and Ninja, no GPU.
# With a PYTHON that has torch, also the operators of the Python package (DIR/python/_ops.so).
# usage: tools/sm90_harness.sh DIR [PYTHON]
set -eu
dir=${1:?usage: tools/sm90_harness.sh DIR [PYTHON]}
python=${2:-}
cd "$(dirname "$0")/.."
cmake -S . -B "$dir" -G Ninja -DCMAKE_BUILD_TYPE=Release -DTILEWISE_WITH_CUDA=ON -DTILEWISE_WITH_INFER=OFF -DTILEWISE_WITH_APP=OFF \
  -DTILEWISE_WITH_TESTS=OFF -DTILEWISE_WITH_INSTALL=OFF ${python:+-DTILEWISE_WITH_TORCH=ON "-DPython_EXECUTABLE=$python"} > "$dir.log" || { cat "$dir.log"; exit 1; }
# The list of every kernel's registers comes with the object, so that a cached build has it, too.
nvcc="${NVCC:-nvcc} -std=c++20 -O3 -I. --expt-relaxed-constexpr -gencode=arch=compute_90a,code=sm_90a"
$nvcc -Xptxas -v -cubin tilewise/attend/sm90/forward.cu -o "$dir/forward.cubin" > "$dir/forward.ptxas" 2>&1 || { cat "$dir/forward.ptxas"; exit 1; }
# A wgmma that the compiler made synchronous (C75xx) halves the speed without a sound. So does a spill in a plain kernel; the general ones (variant 4)
# and those that an idea is measured against (3) may spill.
python3 - "$dir/forward.ptxas" <<'PYTHON'
import re, sys
text = open(sys.argv[1]).read()
faults = re.findall(r".*C75\d\d.*", text)
kernels = re.findall(r"Compiling entry function '\S*ForwardConfigILi(\d+)E(\S+?)Li(\d)E\S*' for.*?(\d+) bytes spill stores", text, re.S)
faults += [f"spills {spill} bytes: head_dim {dim} {dtype} variant {variant}" for dim, dtype, variant, spill in kernels if variant in "015678" and spill != "0"]
print(f"{len(kernels)} kernels, bytes spilt by the general ones: {[int(k[3]) for k in kernels if k[2] == '4']}")
sys.exit("\n".join(faults) if faults or not kernels else 0)
PYTHON
# Of decode, the kernels of up to 128 channels may not spill.
$nvcc -Xptxas -v -cubin tilewise/attend/sm90/decode.cu -o "$dir/decode.cubin" > "$dir/decode.ptxas" 2>&1 || { cat "$dir/decode.ptxas"; exit 1; }
python3 - "$dir/decode.ptxas" <<'PYTHON'
import re, sys
kernels = re.findall(r"Compiling entry function '\S*DecodeConfigILi(\d+)E\S*' for.*?(\d+) bytes spill stores", open(sys.argv[1]).read(), re.S)
print(f"{len(kernels)} decode kernels, bytes spilt: {[int(spill) for _, spill in kernels]}")
sys.exit(1 if not kernels or any(int(dim) <= 128 and spill != "0" for dim, spill in kernels) else 0)
PYTHON
# Of measure, none may spill or wait for each wgmma.
$nvcc -Xptxas -v -cubin tilewise/attend/sm90/measure.cu -o "$dir/measure.cubin" > "$dir/measure.ptxas" 2>&1 || { cat "$dir/measure.ptxas"; exit 1; }
python3 - "$dir/measure.ptxas" <<'PYTHON'
import re, sys
text = open(sys.argv[1]).read()
faults = re.findall(r".*C75\d\d.*", text)
kernels = re.findall(r"Compiling entry function '\S*MeasureConfigILi(\d+)E\S*' for.*?(\d+) bytes spill stores", text, re.S)
faults += [f"measure spills {spill} bytes: head_dim {dim}" for dim, spill in kernels if spill != "0"]
print(f"{len(kernels)} measure kernels")
sys.exit("\n".join(faults) if faults or not kernels else 0)
PYTHON
# Of the backward, the kernels without softcap may not spill, and none may wait for each wgmma.
$nvcc -Xptxas -v -cubin tilewise/attend/sm90/backward.cu -o "$dir/backward.cubin" > "$dir/backward.ptxas" 2>&1 || { cat "$dir/backward.ptxas"; exit 1; }
python3 - "$dir/backward.ptxas" <<'PYTHON'
import re, sys
text = open(sys.argv[1]).read()
faults = re.findall(r".*C75\d\d.*", text)
kernels = re.findall(r"Compiling entry function '\S*BackwardConfigILi(\d+)E(\S+?)Lb(\d)E\S*' for.*?(\d+) bytes spill stores", text, re.S)
faults += [f"backward spills {spill} bytes: head_dim {dim} {dtype}" for dim, dtype, softcap, spill in kernels if softcap == "0" and spill != "0"]
print(f"{len(kernels)} backward kernels, bytes spilt by those with softcap: {[int(k[3]) for k in kernels if k[2] == '1']}")
sys.exit("\n".join(faults) if faults or not kernels else 0)
PYTHON
# Of what makes plans and runs models, no kernel may spill.
for kernels in attend/sm90/backward_slots attend/sm90/backward_steps plan/cuda/kernels select/cuda/kernels select/cuda/antidiagonal select/cuda/patterns infer/cuda/kernels; do
  name=$(echo "$kernels" | tr / _)
  $nvcc -Xptxas -v -cubin "tilewise/$kernels.cu" -o "$dir/$name.cubin" > "$dir/$name.ptxas" 2>&1 || { cat "$dir/$name.ptxas"; exit 1; }
done
python3 - "$dir"/attend_sm90_backward_*.ptxas "$dir"/plan_cuda_*.ptxas "$dir"/select_cuda_*.ptxas "$dir"/infer_cuda_*.ptxas <<'PYTHON'
import re, sys
kernels = [spill for name in sys.argv[1:] for spill in re.findall(r"Compiling entry function.*?(\d+) bytes spill stores", open(name).read(), re.S)]
print(f"{len(kernels)} kernels that make plans and run models, bytes spilt: {sum(map(int, kernels))}")
sys.exit(1 if not kernels or any(spill != "0" for spill in kernels) else 0)
PYTHON
# Of attend/cuda, the 16-bit kernels of up to 128 channels may not spill on what their PTX is made for.
for part in forward backward; do
  ${NVCC:-nvcc} -std=c++20 -O3 -I. --expt-relaxed-constexpr -gencode=arch=compute_80,code=sm_80 -Xptxas -v -cubin "tilewise/attend/cuda/${part}_bf16.cu" \
    -o "$dir/cuda_$part.cubin" > "$dir/cuda_$part.ptxas" 2>&1 || { cat "$dir/cuda_$part.ptxas"; exit 1; }
done
python3 - "$dir/cuda_forward.ptxas" "$dir/cuda_backward.ptxas" <<'PYTHON'
import re, sys
text = "".join(open(name).read() for name in sys.argv[1:])
kernels = re.findall(r"Compiling entry function '\S*cuda_(\w+?)_kernel\S*?Bf16E(?:Li(\d+)E)?\S*' for.*?(\d+) bytes spill stores", text, re.S)
print(f"{len(kernels)} kernels of attend/cuda, bytes spilt: {[int(k[2]) for k in kernels]}")
sys.exit(1 if not kernels or any(spill != "0" and dim in ("64", "128") for _, dim, spill in kernels) else 0)
PYTHON
if command -v cuobjdump > /dev/null; then
  count=$(cuobjdump -sass "$dir/forward.cubin" | grep -c HGMMA)
  test "$count" -gt 0 || { echo "no HGMMA in the kernels"; exit 1; }
  echo "$count HGMMA"
fi
cmake --build "$dir" --target tilewise_cuda_test tilewise_sm90_test tilewise_sm90_decode_test tilewise_sm90_measure_test tilewise_sm90_backward_test tilewise_sm90_plan_test tilewise_sm90_plan_bench tilewise_sm90_bench ${python:+tilewise_ops} > "$dir.log" 2>&1 || { tail -n 50 "$dir.log"; exit 1; }
