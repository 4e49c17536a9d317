#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the program with CUDA in DIR/build and packs it as DIR/tilewise.tar.xz with what a GPU machine without the distribution's packages lacks: oneDNN and
# what that needs. There: python3 -m tarfile -e tilewise.tar.xz, then tilewise-program/tilewise compare --device cuda (TILEWISE_CUBLASLT=FILE where libcublasLt.so.13 lies
# in no folder that the loader knows). Needs nvcc 13, CMake, Ninja and cublasLt.h of CUDA 13 (pip's nvidia-cublas brings it); no GPU.
# usage: tools/carry_program.sh DIR [FOLDER_OF_CUBLASLT_H]
set -eu
dir=${1:?usage: tools/carry_program.sh DIR [FOLDER_OF_CUBLASLT_H]}
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
# DT_RPATH, which counts for the libraries of libraries, too.
cmake -S "$root" -B "$dir/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DTILEWISE_WITH_CUDA=ON -DTILEWISE_WITH_TESTS=OFF -DTILEWISE_WITH_INSTALL=OFF \
  ${2:+-DTILEWISE_CUBLASLT_INCLUDE_DIR="$2"} -DCMAKE_BUILD_RPATH='$ORIGIN' -DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags > "$dir/build.log" || { cat "$dir/build.log"; exit 1; }
if grep -q 'TILEWISE_CUBLASLT_INCLUDE_DIR:PATH=.*NOTFOUND' "$dir/build/CMakeCache.txt"; then
  echo "carry_program: cublasLt.h is not found; name its folder" >&2
  exit 1
fi
cmake --build "$dir/build" --target tilewise > "$dir/build.log" 2>&1 || { tail -n 50 "$dir/build.log"; exit 1; }
program=$dir/tilewise-program
rm -rf "$program"
mkdir "$program"
strip -o "$program/tilewise" "$dir/build/app/tilewise"
for name in libdnnl libgomp libOpenCL; do
  file=$(ldd "$dir/build/app/tilewise" | awk -v name="$name" 'index($1, name) == 1 { print $3 }')
  test -z "$file" || cp -L "$file" "$program/"
done
XZ_OPT=-T0 tar -cJf "$dir/tilewise.tar.xz" -C "$dir" tilewise-program
ls -l "$dir/tilewise.tar.xz"
