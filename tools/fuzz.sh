#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tools/fuzz.sh BUILD SECONDS [TARGET...]: runs the libFuzzer targets of a build (preset fuzz or asan) two at a time, each for SECONDS, from fresh seeds.
# A finding ends it with the input's path; BUILD/fuzz/TARGET keeps the corpus.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:?a build folder} seconds=${2:?seconds a target}
shift 2
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(plan_reader validator safetensors config recipe comparison)
corpora=$build/fuzz
rm -rf "$corpora"
mkdir -p "$corpora"
"$build"/tests/fuzz/fuzz_seeds "$corpora"
one() { # target
  local log=$corpora/$1.log
  if "$build/tests/fuzz/fuzz_$1" -max_total_time="$seconds" -max_len=16384 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="$corpora/$1-" "$corpora/$1" >"$log" 2>&1; then
    echo "$1: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs, $(find "$corpora/$1" -type f | wc -l) in the corpus"
  else
    tail -n 60 "$log"
    echo "$1: FAILED, see $corpora/$1-*"
    return 1
  fi
}
export -f one
export build seconds corpora
printf '%s\n' "${targets[@]}" | xargs -P 2 -I{} bash -c 'one {}'
