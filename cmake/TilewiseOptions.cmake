# SPDX-License-Identifier: Apache-2.0
# Options, warnings and the two helpers that every library and test of the project is made with.

# A wheel has the program where the machine that builds it has what the program needs; `pip install .` must not fail for want of it.
if(DEFINED SKBUILD AND NOT DEFINED TILEWISE_WITH_APP)
  find_package(dnnl CONFIG QUIET)
  find_package(nlohmann_json QUIET)
  find_package(CLI11 2.1 QUIET)
  if(NOT (dnnl_FOUND AND nlohmann_json_FOUND AND CLI11_FOUND))
    message(STATUS "The wheel is built without the program: oneDNN, nlohmann-json or CLI11 is missing")
    set(TILEWISE_WITH_INFER OFF CACHE BOOL "" FORCE)
    set(TILEWISE_WITH_APP OFF CACHE BOOL "" FORCE)
  endif()
endif()
option(TILEWISE_WITH_INFER "Build tilewise::infer (checkpoints, study; needs oneDNN and nlohmann-json)" ${PROJECT_IS_TOP_LEVEL})
option(TILEWISE_WITH_APP "Build the command line program (needs TILEWISE_WITH_INFER and CLI11)" ${PROJECT_IS_TOP_LEVEL})
option(TILEWISE_WITH_CUDA "Build the CUDA backends (needs nvcc 13)" OFF)
option(TILEWISE_WITH_TORCH "Build the torch operators of the Python package (needs a Python with torch 2.11 or newer)" OFF)
option(TILEWISE_WITH_TESTS "Build the tests (needs GoogleTest)" ${PROJECT_IS_TOP_LEVEL})
option(TILEWISE_WITH_INSTALL "Make install rules" ${PROJECT_IS_TOP_LEVEL})
option(TILEWISE_WARNINGS_AS_ERRORS "Stop at a warning of the compiler (CI does)" OFF)
option(TILEWISE_WITH_FUZZ "Build the libFuzzer targets (needs Clang and the tests)" OFF)
set(TILEWISE_SANITIZE "" CACHE STRING "Sanitizers for the whole build, e.g. address,undefined or thread")

if(TILEWISE_WITH_APP AND NOT TILEWISE_WITH_INFER)
  message(FATAL_ERROR "TILEWISE_WITH_APP needs TILEWISE_WITH_INFER: switch both on, or both off")
endif()

if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()
if(PROJECT_IS_TOP_LEVEL)
  set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
  find_program(TILEWISE_CCACHE ccache)
  if(TILEWISE_CCACHE)
    set(CMAKE_CXX_COMPILER_LAUNCHER "${TILEWISE_CCACHE}")
    set(CMAKE_CUDA_COMPILER_LAUNCHER "${TILEWISE_CCACHE}")
  endif()
endif()
set_property(GLOBAL APPEND PROPERTY JOB_POOLS link=1 cuda=1)
set(CMAKE_JOB_POOL_LINK link)
include(GNUInstallDirs)
find_package(Threads REQUIRED)

# Flags of everything that is ours. No -march here: kernels choose their target at run time.
# Clang: libstdc++ 12's own std::stable_sort calls what it declares deprecated, so that warning says nothing about our code.
add_library(tilewise_flags INTERFACE)
target_compile_features(tilewise_flags INTERFACE cxx_std_20)
target_compile_options(tilewise_flags INTERFACE -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -fno-math-errno
                                               $<$<CXX_COMPILER_ID:GNU>:-Wno-missing-field-initializers>
                                               $<$<CXX_COMPILER_ID:Clang>:-Wno-unknown-warning-option;-Wno-missing-field-initializers>
                                               $<$<CXX_COMPILER_ID:Clang>:-Wno-missing-designated-field-initializers;-Wno-deprecated-declarations>)
if(TILEWISE_WARNINGS_AS_ERRORS)
  target_compile_options(tilewise_flags INTERFACE -Werror)
endif()
target_include_directories(tilewise_flags INTERFACE "${PROJECT_SOURCE_DIR}")
if(TILEWISE_SANITIZE)
  target_compile_options(tilewise_flags INTERFACE -fsanitize=${TILEWISE_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(tilewise_flags INTERFACE -fsanitize=${TILEWISE_SANITIZE})
endif()

# tilewise_library(target OUTPUT name EXPORT name): soname, visibility, include directories.
function(tilewise_library target)
  cmake_parse_arguments(arg "" "OUTPUT;EXPORT" "" ${ARGN})
  set_target_properties(${target} PROPERTIES
    OUTPUT_NAME ${arg_OUTPUT} EXPORT_NAME ${arg_EXPORT}
    VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
    CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON POSITION_INDEPENDENT_CODE ON CXX_EXTENSIONS OFF)
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_include_directories(${target} PUBLIC "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>" "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")
  target_link_libraries(${target} PRIVATE $<BUILD_INTERFACE:tilewise_flags> PUBLIC Threads::Threads)
endfunction()

# tilewise_product(static [NEEDS other]): what users link as tilewise::<export name> and what is installed: the static library itself or, with
# BUILD_SHARED_LIBS, a shared library of the same objects that exports only what TILEWISE_API marks. Appends it to TILEWISE_<static>_PRODUCT.
function(tilewise_product static)
  cmake_parse_arguments(arg "" "NEEDS" "" ${ARGN})
  get_target_property(export ${static} EXPORT_NAME)
  set(product ${static})
  if(BUILD_SHARED_LIBS)
    set(product ${static}_shared)
    get_target_property(output ${static} OUTPUT_NAME)
    add_library(${product} SHARED "$<TARGET_OBJECTS:${static}>")
    tilewise_library(${product} OUTPUT ${output} EXPORT ${export})
    set_target_properties(${product} PROPERTIES LINKER_LANGUAGE CXX)
    target_link_options(${product} PRIVATE $<$<NOT:$<BOOL:${TILEWISE_SANITIZE}>>:LINKER:--no-undefined>)
    get_target_property(links ${static} LINK_LIBRARIES)
    if(arg_NEEDS)
      list(REMOVE_ITEM links ${arg_NEEDS})
      target_link_libraries(${product} PUBLIC ${arg_NEEDS}_shared)
    endif()
    set_property(TARGET ${product} APPEND PROPERTY LINK_LIBRARIES ${links})
  endif()
  add_library(tilewise::${export} ALIAS ${product})
  set(TILEWISE_${export}_PRODUCT ${product} PARENT_SCOPE)
endfunction()

# tilewise_commit(target): compiles tilewise/base/version.cpp into it, with the commit as it stands at each build.
function(tilewise_commit target)
  set(folder "${PROJECT_BINARY_DIR}/generated")
  add_custom_target(tilewise_commit BYPRODUCTS "${folder}/tilewise_commit.h"
    COMMAND "${CMAKE_COMMAND}" -DSOURCE=${PROJECT_SOURCE_DIR} -DOUTPUT=${folder}/tilewise_commit.h -P "${PROJECT_SOURCE_DIR}/cmake/commit.cmake"
    COMMENT "Looking up the commit")
  target_sources(${target} PRIVATE tilewise/base/version.cpp)
  set(definitions TILEWISE_PROJECT_VERSION="${PROJECT_VERSION}")
  foreach(part IN ITEMS MAJOR MINOR PATCH)
    list(APPEND definitions TILEWISE_PROJECT_${part}=${PROJECT_VERSION_${part}})
  endforeach()
  set_source_files_properties(tilewise/base/version.cpp PROPERTIES
    INCLUDE_DIRECTORIES "${folder}" OBJECT_DEPENDS "${folder}/tilewise_commit.h" COMPILE_DEFINITIONS "${definitions}")
endfunction()
