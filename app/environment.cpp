// SPDX-License-Identifier: Apache-2.0
#include "app/environment.h"

#include <chrono>
#include <ctime>

#include "tilewise/base/version.h"
#include "tilewise/machine/cpu/target.h"
#include "tilewise/machine/device.h"

namespace tilewise::app {
namespace {

std::string utc_now() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

}  // namespace

Environment environment_of(const Context& context, std::string command) {
  Environment environment;
  environment.version = version();
  environment.commit = commit();
  environment.device = "cpu " + std::string(machine::cpu::name(machine::cpu::current_target())) + ", " + machine::cpu::processor_name();
  if (context.device.type == Device::Type::cuda) {
    environment.device =
        "cuda:" + std::to_string(context.device.index) + " " + machine::name_of_gpu(context.device.index) + "; " + environment.device;
  }
  environment.command = std::move(command);
  environment.created = utc_now();
  environment.threads = context.concurrency();
  return environment;
}

}  // namespace tilewise::app
