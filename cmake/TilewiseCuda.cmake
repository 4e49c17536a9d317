# SPDX-License-Identifier: Apache-2.0
# The CUDA backends, put into tilewise_core: attend/sm90 compiled for Hopper alone (its instructions exist nowhere else), attend/cuda as PTX of compute
# capability 8.0, which the driver of any later GPU compiles at its first call (a file for each dtype, so that no more than what is asked for).
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "TILEWISE_WITH_CUDA needs nvcc 13 on the path or in CUDACXX; without it, leave the option off")
endif()
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90a)
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

# Kernels apart, since nvcc does not take the warnings that the C++ units are compiled with.
add_library(tilewise_sm90 OBJECT
  tilewise/attend/sm90/backward.cu
  tilewise/attend/sm90/backward_slots.cu
  tilewise/attend/sm90/backward_steps.cu
  tilewise/attend/sm90/decode.cu
  tilewise/attend/sm90/forward.cu
  tilewise/attend/sm90/measure.cu
  tilewise/attend/sm90/schedule.cu
  tilewise/plan/cuda/kernels.cu
  tilewise/select/cuda/antidiagonal.cu
  tilewise/select/cuda/kernels.cu
  tilewise/select/cuda/patterns.cu)
target_include_directories(tilewise_sm90 PRIVATE "${PROJECT_SOURCE_DIR}")
set_target_properties(tilewise_sm90 PROPERTIES JOB_POOL_COMPILE cuda POSITION_INDEPENDENT_CODE ON)
# CMake 3.25 does not know nvcc 13's CUDA20. Unique symbols would make two builds of the bench's library in one process share their statics.
target_compile_options(tilewise_sm90 PRIVATE -std=c++20 --expt-relaxed-constexpr -Xcompiler=-fno-gnu-unique)

add_library(tilewise_cuda OBJECT tilewise/attend/cuda/backward_bf16.cu tilewise/attend/cuda/backward_f16.cu tilewise/attend/cuda/backward_f32.cu
  tilewise/attend/cuda/forward_bf16.cu tilewise/attend/cuda/forward_f16.cu tilewise/attend/cuda/forward_f32.cu tilewise/attend/cuda/measure.cu)
target_include_directories(tilewise_cuda PRIVATE "${PROJECT_SOURCE_DIR}")
set_target_properties(tilewise_cuda PROPERTIES JOB_POOL_COMPILE cuda POSITION_INDEPENDENT_CODE ON CUDA_ARCHITECTURES 80-virtual)
target_compile_options(tilewise_cuda PRIVATE -std=c++20 --expt-relaxed-constexpr -Xcompiler=-fno-gnu-unique)

target_sources(tilewise_core PRIVATE
  "${PROJECT_SOURCE_DIR}/tilewise/machine/cuda/memory.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/attend/cuda/backward.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/attend/cuda/backward_problem.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/attend/cuda/forward.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/attend/cuda/measure.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/attend/cuda/measure_problem.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/attend/cuda/problem.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/attend/cuda/workspace.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/attend/sm90/backward.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/attend/sm90/decode.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/attend/sm90/device_plan.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/attend/sm90/forward.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/attend/sm90/measure.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/attend/sm90/schedule.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/plan/cuda/complete.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/plan/cuda/validate.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/select/cuda/antidiagonal.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/select/cuda/flex.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/select/cuda/inputs_args.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/select/cuda/mask_plan.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/select/cuda/mean_pool.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/select/cuda/patterns.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/select/cuda/plan.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/select/cuda/scored_plan.cpp"
  $<TARGET_OBJECTS:tilewise_cuda>
  $<TARGET_OBJECTS:tilewise_sm90>)
target_include_directories(tilewise_core SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(tilewise_core PRIVATE CUDA::cudart_static)
set_source_files_properties("${PROJECT_SOURCE_DIR}/tilewise/attend/backend.cpp" "${PROJECT_SOURCE_DIR}/tilewise/attend/prepare.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/methods/a_shape.cpp" "${PROJECT_SOURCE_DIR}/tilewise/methods/dense.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/methods/flexprefill.cpp" "${PROJECT_SOURCE_DIR}/tilewise/methods/mean_pool.cpp" "${PROJECT_SOURCE_DIR}/tilewise/methods/minference.cpp" "${PROJECT_SOURCE_DIR}/tilewise/methods/oracle.cpp" "${PROJECT_SOURCE_DIR}/tilewise/methods/problem.cpp"
  "${PROJECT_SOURCE_DIR}/tilewise/methods/xattention.cpp" TARGET_DIRECTORY tilewise_core
  PROPERTIES COMPILE_DEFINITIONS TILEWISE_WITH_CUDA)

# What runs on the GPU machine, which has neither GoogleTest nor this tree's other tools (tools/gpu_check.py).
add_executable(tilewise_sm90_test EXCLUDE_FROM_ALL tests/attend/sm90/forward_test.cpp)
add_executable(tilewise_cuda_test EXCLUDE_FROM_ALL tests/attend/cuda/device_test.cpp)
add_executable(tilewise_sm90_decode_test EXCLUDE_FROM_ALL tests/attend/sm90/decode_test.cpp)
add_executable(tilewise_sm90_measure_test EXCLUDE_FROM_ALL tests/attend/sm90/measure_test.cpp)
add_executable(tilewise_sm90_backward_test EXCLUDE_FROM_ALL tests/attend/sm90/backward_test.cpp)
add_executable(tilewise_sm90_plan_test EXCLUDE_FROM_ALL tests/attend/sm90/plan_test.cpp)
add_executable(tilewise_sm90_plan_bench EXCLUDE_FROM_ALL bench/attend/sm90/plan_bench.cpp)
foreach(test tilewise_cuda_test tilewise_sm90_test tilewise_sm90_decode_test tilewise_sm90_measure_test tilewise_sm90_backward_test tilewise_sm90_plan_test tilewise_sm90_plan_bench)
  target_link_libraries(${test} PRIVATE tilewise_core tilewise_flags CUDA::cudart_static)
  target_include_directories(${test} SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  target_link_options(${test} PRIVATE -static-libgcc -static-libstdc++)
endforeach()
add_library(tilewise_sm90_bench SHARED EXCLUDE_FROM_ALL bench/attend/sm90/harness.cu bench/attend/sm90/backward_harness.cpp bench/attend/cuda/harness.cpp)
target_link_libraries(tilewise_sm90_bench PRIVATE tilewise_core CUDA::cudart_static)
target_include_directories(tilewise_sm90_bench SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
target_link_options(tilewise_sm90_bench PRIVATE -static-libgcc -static-libstdc++)
target_include_directories(tilewise_sm90_bench PRIVATE "${PROJECT_SOURCE_DIR}")
target_compile_options(tilewise_sm90_bench PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20 --expt-relaxed-constexpr>)
