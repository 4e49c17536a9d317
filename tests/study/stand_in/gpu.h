// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>

#include "tilewise/base/context.h"

// A GPU for tests on machines without one. What the library has of a GPU lies behind few functions, each in a unit of its own: machine/cuda/device_runtime.cpp,
// attend/backend.cpp, methods/dense.cpp and mean_pool.cpp, infer/plan_on_host.cpp, infer/cuda/gpu_queue.cpp. gpu.cpp defines them once more, and since its
// object comes first the linker leaves the library's aside. Memory of this GPU cannot be read or written but inside of those functions, so host code that
// follows a device pointer ends with a fault.
namespace tilewise::testing {

/// Memory that is out of reach while no OpenMemory lives.
std::shared_ptr<Memory> protected_memory();

/// All protected memory within reach, in the thread that made it and those that it calls.
class OpenMemory {
 public:
  OpenMemory();
  ~OpenMemory();
  OpenMemory(const OpenMemory&) = delete;
  OpenMemory& operator=(const OpenMemory&) = delete;
};

/// How often the host waited for the device, and copied from it.
struct Traffic {
  int waits = 0, copies_to_host = 0;
};
Traffic& traffic();

}  // namespace tilewise::testing
