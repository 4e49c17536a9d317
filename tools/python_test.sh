#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tools/python_test.sh BUILD: makes a wheel in the build folder BUILD (whose objects it uses), installs it in build/python-venv, checks its types and runs its tests.
# Needs PyPI the first time. Where no network is there to fetch torch it says so and ends well; every other failure is one.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/cpu}
venv=build/python-venv
log=build/python-test.log
mkdir -p build

wanted=$(sha256sum python/requirements-test.txt | cut -d' ' -f1)
if [ "$(cat "$venv/requirements.sha256" 2>/dev/null)" != "$wanted" ]; then
  rm -rf "$venv"
  python3 -m venv "$venv"
  if ! "$venv/bin/pip" install --disable-pip-version-check -r python/requirements-test.txt >"$log" 2>&1; then
    if grep -qE 'NewConnectionError|ConnectTimeoutError|ReadTimeoutError|Temporary failure in name resolution|Network is unreachable' "$log"; then
      rm -rf "$venv"
      echo 'python-test: NOT RUN: there is no network to fetch torch and the other packages from (build/python-test.log)'
      exit 0
    fi
    tail -n 40 "$log"
    echo 'python-test: pip could not install python/requirements-test.txt (its last words stand above)'
    exit 1
  fi
  echo "$wanted" >"$venv/requirements.sha256"
fi

# The option stays behind in the build folder's cache, so it is taken back: other targets of that folder need no torch.
restore() { cmake -B "$build" -DTILEWISE_WITH_TORCH=OFF -DTILEWISE_WITH_TESTS="$had_tests" -DTILEWISE_WITH_INSTALL=ON >>"$log" 2>&1 || true; }
had_tests=$(sed -n 's/^TILEWISE_WITH_TESTS:BOOL=//p' "$build/CMakeCache.txt" 2>/dev/null || true)
had_tests=${had_tests:-ON}
werror=$(sed -n 's/^TILEWISE_WARNINGS_AS_ERRORS:BOOL=//p' "$build/CMakeCache.txt" 2>/dev/null || true)
trap restore EXIT
rm -rf build/wheel
# With the CMake and the Ninja of the system: another Ninja would build everything anew.
if ! "$venv/bin/python" -m build --wheel --no-isolation --outdir build/wheel -C build-dir="$build" \
  -C cmake.define.TILEWISE_WARNINGS_AS_ERRORS="${werror:-OFF}" >"$log" 2>&1; then
  tail -n 60 "$log"
  echo 'python-test: the wheel could not be built'
  exit 1
fi
for file in tilewise/_ops.so tilewise/py.typed tilewise/bin/tilewise licenses/LICENSE licenses/NOTICE; do
  "$venv/bin/python" -m zipfile -l build/wheel/*.whl | grep -qF "$file" || { echo "python-test: the wheel lacks $file"; exit 1; }
done
# The C++ door, too: its example compares itself with torch.
if ! cmake --build "$build" --target example_torch_attention >>"$log" 2>&1; then
  tail -n 60 "$log"
  echo 'python-test: examples/torch_attention.cpp does not build'
  exit 1
fi
"$build/python/example_torch_attention"
"$venv/bin/pip" install --disable-pip-version-check --quiet --force-reinstall --no-deps --no-index build/wheel/*.whl
"$venv/bin/tilewise" methods >/dev/null
(cd python && "../$venv/bin/mypy" --config-file ../pyproject.toml)
# Away from the source tree, so that what is tested is what was installed.
# Small problems on one thread each: on a busy machine the barriers of torch's threads make minutes of seconds. One test takes more threads itself.
(cd tests/python && OMP_NUM_THREADS=1 "../../$venv/bin/python" -m pytest -q --durations=5)
