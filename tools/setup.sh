#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# tools/setup.sh demo|test|python|ci|format: installs what that target needs and the machine lacks, from the distribution (Debian 12 and 13; written for
# Ubuntu 24.04, too). Needs root or sudo only when something is missing; says which packages and how when it cannot install them.
set -eu
goal=${1:-test}
missing=''

need_command() { # command package
  command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
need_header() { # header package
  if command -v c++ >/dev/null 2>&1; then
    printf '#if !__has_include(<%s>)\n#error missing\n#endif\n' "$1" | c++ -x c++ -std=c++20 -E -o /dev/null - >/dev/null 2>&1 || missing="$missing $2"
  else
    missing="$missing $2"
  fi
}
need_package() { # package: for what is neither a command nor a header
  dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q '^install ok installed$' || missing="$missing $1"
}

case $goal in
  demo | test | python | ci | format) ;;
  *) echo "tools/setup.sh: takes demo, test, python, ci or format, got '$goal'" >&2; exit 2 ;;
esac
if [ "$goal" != format ]; then
  need_command c++ build-essential
  need_command git git
  need_command cmake cmake
  need_command ninja ninja-build
  need_header oneapi/dnnl/dnnl.hpp libdnnl-dev
  need_header CL/cl.h ocl-icd-opencl-dev # Debian's CMake package of oneDNN asks for it, though the CPU needs none
  need_header nlohmann/json.hpp nlohmann-json3-dev
  need_header CLI/CLI.hpp libcli11-dev
fi
if [ "$goal" = test ] || [ "$goal" = ci ]; then
  need_header gtest/gtest.h libgtest-dev
fi
if [ "$goal" = python ]; then
  need_command python3 python3
  python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || missing="$missing python3-venv"
fi
if [ "$goal" = ci ]; then
  need_command clang++-19 clang-19
  need_command clang-tidy-19 clang-tidy-19
  need_command llvm-symbolizer-19 llvm-19
  if command -v dpkg-query >/dev/null 2>&1; then need_package libclang-rt-19-dev; fi
fi
if [ "$goal" = ci ] || [ "$goal" = format ]; then need_command clang-format-19 clang-format-19; fi

how() {
  echo "tools/setup.sh: these packages are missing and $1:$missing" >&2
  echo "  Debian and Ubuntu: sudo apt-get update && sudo apt-get install$missing" >&2
  echo "  elsewhere: install the same tools and libraries under that system's names, then run this again" >&2
  exit 1
}
if [ -n "$missing" ]; then
  command -v apt-get >/dev/null 2>&1 || how 'there is no apt-get here to install them with'
  sudo=''
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 || how 'you are neither root nor have sudo'
    sudo=sudo
  fi
  echo "tools/setup.sh: installing$missing"
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  # shellcheck disable=SC2086  # $sudo may be empty, $missing is a list
  if ! { $sudo apt-get update -qq && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing; } \
    >"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    rm -f "$log"
    how 'apt-get could not install them (its last words stand above)'
  fi
  rm -f "$log"
fi

# What is there must also be new enough.
if [ "$goal" != format ]; then
  version=$(cmake --version | sed -n '1s/[^0-9]*\([0-9]*\.[0-9]*\).*/\1/p')
  if [ "${version%%.*}" -lt 3 ] || { [ "${version%%.*}" -eq 3 ] && [ "${version#*.}" -lt 25 ]; }; then
    echo "tools/setup.sh: cmake is $version, 3.25 or newer is needed (Debian 12 has it)" >&2
    exit 1
  fi
  if ! echo 'int main() { return 0; }' | c++ -x c++ -std=c++20 -fsyntax-only - 2>/dev/null || ! printf '#include <version>\n#if !defined(__cpp_lib_ranges)\n#error old\n#endif\n' |
    c++ -x c++ -std=c++20 -fsyntax-only - 2>/dev/null; then
    echo "tools/setup.sh: c++ has no C++20; GCC 12 or Clang 16 is needed" >&2
    exit 1
  fi
fi
