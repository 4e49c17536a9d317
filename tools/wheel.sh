#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tools/wheel.sh BUILD [target...]: makes the sdist and a wheel for other machines in build/wheel, of the objects of the build folder BUILD; `target`s of the same
# configuration are built, too. Packages of Python go to build/python-venv.
# Needs PyPI the first time. Ends with 75 where no network is there to fetch torch.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/cpu}
shift || true
venv=build/python-venv
log=build/wheel.log
mkdir -p build

wanted=$(sha256sum python/requirements-test.txt | cut -d' ' -f1)
if [ "$(cat "$venv/requirements.sha256" 2>/dev/null)" != "$wanted" ]; then
  rm -rf "$venv"
  python3 -m venv "$venv"
  if ! "$venv/bin/pip" install --disable-pip-version-check -r python/requirements-test.txt >"$log" 2>&1; then
    if grep -qE 'NewConnectionError|ConnectTimeoutError|ReadTimeoutError|Temporary failure in name resolution|Network is unreachable' "$log"; then
      rm -rf "$venv"
      echo "wheel: there is no network to fetch torch and the other packages from ($log)"
      exit 75
    fi
    tail -n 40 "$log"
    echo 'wheel: pip could not install python/requirements-test.txt (its last words stand above)'
    exit 1
  fi
  echo "$wanted" >"$venv/requirements.sha256"
fi

failed() {
  tail -n 60 "$log"
  echo "wheel: $1"
  exit 1
}

# The option stays behind in the build folder's cache, so it is taken back: other targets of that folder need no torch.
restore() { cmake -B "$build" -DTILEWISE_WITH_TORCH=OFF -DTILEWISE_WITH_TESTS="$had_tests" -DTILEWISE_WITH_INSTALL=ON >>"$log" 2>&1 || true; }
had_tests=$(sed -n 's/^TILEWISE_WITH_TESTS:BOOL=//p' "$build/CMakeCache.txt" 2>/dev/null || true)
had_tests=${had_tests:-ON}
werror=$(sed -n 's/^TILEWISE_WARNINGS_AS_ERRORS:BOOL=//p' "$build/CMakeCache.txt" 2>/dev/null || true)
trap restore EXIT
rm -rf build/wheel
# With the CMake and the Ninja of the system: another Ninja would build everything anew.
"$venv/bin/python" -m build --wheel --no-isolation --outdir build/wheel/built -C build-dir="$build" \
  -C cmake.define.TILEWISE_WARNINGS_AS_ERRORS="${werror:-OFF}" >"$log" 2>&1 || failed 'the wheel could not be built'
"$venv/bin/python" tools/repair_wheel.py build/wheel/built/*.whl build/wheel >>"$log" 2>&1 || failed 'the wheel could not be made fit for other machines'
if [ $# -gt 0 ]; then cmake --build "$build" --target "$@" >>"$log" 2>&1 || failed "$* could not be built"; fi

# The sdist holds all that a build reads: CMake finds every source, and Ninja every other file.
"$venv/bin/python" -m build --sdist --no-isolation --outdir build/wheel >>"$log" 2>&1 || failed 'the sdist could not be made'
tar -xzf build/wheel/*.tar.gz -C build/wheel/built
{ cmake -S build/wheel/built/tilewise-* -B build/wheel/built/configured -G Ninja -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$PWD/$venv/bin/python" \
  -DTILEWISE_WITH_TORCH=ON -DTILEWISE_WITH_TESTS=OFF -DTILEWISE_WITH_INSTALL=OFF &&
  ninja -C build/wheel/built/configured -n tilewise_python; } >>"$log" 2>&1 || failed 'the sdist lacks what a build needs'
rm -rf build/wheel/built
