# SPDX-License-Identifier: Apache-2.0
# The CUDA code, compiled for Hopper alone (its instructions exist nowhere else). It has a harness of its own (tools/sm90_harness.sh) and is not in
# the library's dispatch yet: switched on, this shows that the units compile.
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "TILEWISE_WITH_CUDA needs nvcc 13 on the path or in CUDACXX; without it, leave the option off")
endif()
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90a)
endif()
enable_language(CUDA)
add_library(tilewise_sm90 OBJECT tilewise/attend/sm90/forward.cu)
target_include_directories(tilewise_sm90 PRIVATE "${PROJECT_SOURCE_DIR}")
set_target_properties(tilewise_sm90 PROPERTIES JOB_POOL_COMPILE cuda POSITION_INDEPENDENT_CODE ON)
target_compile_options(tilewise_sm90 PRIVATE -std=c++20 --expt-relaxed-constexpr)  # CMake 3.25 does not know nvcc 13's CUDA20
