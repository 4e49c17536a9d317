#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tools/python_test.sh BUILD: makes a wheel (tools/wheel.sh, which uses the objects of the build folder BUILD), installs it in build/python-venv, checks its types
# and runs its tests. Where no network is there to fetch torch it says so and ends well; every other failure is one.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/cpu}
venv=build/python-venv

# The C++ door, too: its example compares itself with torch. Nobody sends this wheel anywhere, so it is packed in haste.
status=0
TILEWISE_WHEEL_COMPRESSION=1 tools/wheel.sh "$build" example_torch_attention || status=$?
if [ "$status" = 75 ]; then echo 'python-test: NOT RUN'; exit 0; fi
[ "$status" = 0 ] || exit "$status"
"$build/python/example_torch_attention"
"$venv/bin/pip" install --disable-pip-version-check --quiet --force-reinstall --no-deps --no-index build/wheel/*.whl
"$venv/bin/tilewise" methods >/dev/null
(cd python && "../$venv/bin/mypy" --config-file ../pyproject.toml)
# Away from the source tree, so that what is tested is what was installed.
# Small problems on one thread each: on a busy machine the barriers of torch's threads make minutes of seconds. One test takes more threads itself.
(cd tests/python && OMP_NUM_THREADS=1 "../../$venv/bin/python" -m pytest -q --durations=5)
