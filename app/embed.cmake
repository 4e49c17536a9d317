# SPDX-License-Identifier: Apache-2.0
# Writes OUTPUT, a C++ unit that holds each of FILES as tilewise::app::<name with _ for .>. Bytes as numbers: no limit on literals, no escapes.
set(text "// Made by embed.cmake.\n#include <string_view>\n\n#include \"app/report/resources.h\"\n\nnamespace tilewise::app {\n")
foreach(path IN LISTS FILES)
  get_filename_component(name "${path}" NAME)
  string(REPLACE "." "_" name "${name}")
  file(READ "${path}" hex HEX)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  string(APPEND text "namespace {\nconstexpr unsigned char ${name}_bytes[] = {${bytes}0};\n}\n")
  string(APPEND text "std::string_view ${name}() { return {reinterpret_cast<const char*>(${name}_bytes), sizeof ${name}_bytes - 1}; }\n")
endforeach()
string(APPEND text "}  // namespace tilewise::app\n")
file(WRITE "${OUTPUT}" "${text}")
