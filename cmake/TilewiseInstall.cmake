# SPDX-License-Identifier: Apache-2.0
# Install rules: libraries, public headers, the program, and a package that find_package(tilewise [COMPONENTS infer]) finds.
include(CMakePackageConfigHelpers)

set(package_folder "${CMAKE_INSTALL_LIBDIR}/cmake/tilewise")

# Each component has an export set of its own: a program that wants the plans and kernels alone needs no oneDNN.
set(components tilewise)
install(TARGETS ${TILEWISE_tilewise_PRODUCT} EXPORT tilewiseTargets)
install(EXPORT tilewiseTargets NAMESPACE tilewise:: DESTINATION "${package_folder}" FILE tilewiseTargets.cmake)
if(TILEWISE_WITH_INFER)
  list(APPEND components infer)
  install(TARGETS ${TILEWISE_infer_PRODUCT} EXPORT tilewiseInferTargets)
  install(EXPORT tilewiseInferTargets NAMESPACE tilewise:: DESTINATION "${package_folder}" FILE tilewiseInferTargets.cmake)
endif()

# A header is public if it declares something public; the list is made at install time, so it is never behind the tree.
install(CODE "
  set(TILEWISE_SOURCE \"${PROJECT_SOURCE_DIR}\")
  set(TILEWISE_HEADERS_TO \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_INCLUDEDIR}\")
  set(TILEWISE_WITH_INFER ${TILEWISE_WITH_INFER})
  include(\"${PROJECT_SOURCE_DIR}/cmake/install_headers.cmake\")")

# BUILD_SHARED_LIBS may be unset, which would leave nothing to test in the configuration.
set(infer_is_static ON)
if(BUILD_SHARED_LIBS)
  set(infer_is_static OFF)
endif()
configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/tilewiseConfig.cmake.in" "${PROJECT_BINARY_DIR}/package/tilewiseConfig.cmake"
                              INSTALL_DESTINATION "${package_folder}")
# Before 1.0 a minor version may break its callers (docs/stability.md).
write_basic_package_version_file("${PROJECT_BINARY_DIR}/package/tilewiseConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/package/tilewiseConfig.cmake" "${PROJECT_BINARY_DIR}/package/tilewiseConfigVersion.cmake"
        DESTINATION "${package_folder}")
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" "${PROJECT_SOURCE_DIR}/NOTICE" DESTINATION "${CMAKE_INSTALL_DOCDIR}")
