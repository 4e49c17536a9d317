// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string_view>

// The files of app/report that the program carries inside itself; app/embed.cmake writes the definitions.
namespace tilewise::app {

std::string_view template_html();
std::string_view style_css();
std::string_view common_js();
std::string_view table_js();
std::string_view plots_js();
std::string_view atlas_js();
std::string_view main_js();

}  // namespace tilewise::app
