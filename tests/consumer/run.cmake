# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.25)
# cmake -DBUILD= -DPROJECT= -DWORK= -DCOMPILER= -DGENERATOR= -DWITH_INFER= -P run.cmake
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE failed OUTPUT_VARIABLE text ERROR_VARIABLE text)
  if(failed)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\nfailed with ${failed}:\n${text}")
  endif()
  set(output "${text}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE "${WORK}/prefix" "${WORK}/build")
run("${CMAKE_COMMAND}" --install "${BUILD}" --prefix "${WORK}/prefix")

# Every installed header, so that one which needs something that is not installed fails here.
file(GLOB_RECURSE headers RELATIVE "${WORK}/prefix/include" "${WORK}/prefix/include/tilewise/*.h")
list(LENGTH headers count)
if(count LESS 10)
  message(FATAL_ERROR "only ${count} headers were installed into ${WORK}/prefix/include")
endif()
set(text "")
foreach(header IN LISTS headers)
  string(APPEND text "#include \"${header}\"\n")
endforeach()
file(WRITE "${WORK}/headers.cpp" "${text}")

set(components "")
if(WITH_INFER)
  set(components infer)
endif()
run("${CMAKE_COMMAND}" -S "${PROJECT}" -B "${WORK}/build" -G "${GENERATOR}" -DCMAKE_CXX_COMPILER=${COMPILER} "-DCMAKE_PREFIX_PATH=${WORK}/prefix"
    "-DHEADERS=${WORK}/headers.cpp" "-DCONSUMER_COMPONENTS=${components}")
run("${CMAKE_COMMAND}" --build "${WORK}/build")
run("${WORK}/build/consumer")
message(STATUS "${output}")
if(NOT output MATCHES "^tilewise [0-9]+\\.[0-9]+\\.[0-9]+: out\\[0\\] = 2\n")
  message(FATAL_ERROR "the consumer printed: ${output}")
endif()

# A component that does not exist is refused by name.
execute_process(COMMAND "${CMAKE_COMMAND}" -S "${PROJECT}" -B "${WORK}/build-refused" -G "${GENERATOR}" -DCMAKE_CXX_COMPILER=${COMPILER}
                        "-DCMAKE_PREFIX_PATH=${WORK}/prefix" -DCONSUMER_COMPONENTS=nonsense
                RESULT_VARIABLE failed OUTPUT_VARIABLE text ERROR_VARIABLE text)
if(NOT failed OR NOT text MATCHES "component[ \n]+nonsense")
  message(FATAL_ERROR "find_package(tilewise COMPONENTS nonsense) should have been refused by name:\n${text}")
endif()
