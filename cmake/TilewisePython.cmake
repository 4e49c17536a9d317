# SPDX-License-Identifier: Apache-2.0
# What a wheel carries beside python/tilewise (pyproject.toml builds the target and installs the component): the operators, and the program where it is built.
add_custom_target(tilewise_python DEPENDS tilewise_ops)
install(TARGETS tilewise_ops LIBRARY DESTINATION tilewise COMPONENT python EXCLUDE_FROM_ALL)
if(TILEWISE_WITH_APP)
  add_dependencies(tilewise_python tilewise)
  install(TARGETS tilewise RUNTIME DESTINATION tilewise/bin COMPONENT python EXCLUDE_FROM_ALL)
endif()
