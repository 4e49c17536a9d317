// SPDX-License-Identifier: Apache-2.0
// SafetensorsFile over any bytes: an Error of kind io, or tensors every byte of which can be read.
#include "tilewise/base/safetensors.h"

#include "tests/fuzz/memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tilewise;
  const fuzz::MemoryFile file(data, size);
  try {
    const SafetensorsFile tensors(file.path());
    uint64_t bytes = 0;
    for (const SafetensorsEntry& entry : tensors.entries()) {
      fuzz::require(tensors.find(entry.name) == &entry);
      try {
        const Tensor tensor = tensors.load(entry.name, host_memory());
        bytes += tensor.buffer.bytes();
        volatile unsigned char sum = 0;
        for (size_t i = 0; i < tensor.buffer.bytes(); ++i) sum = static_cast<unsigned char>(sum + static_cast<unsigned char*>(tensor.view.raw())[i]);
      } catch (const Error& error) {
        fuzz::require(error.kind() != Error::Kind::memory);
      }
    }
    fuzz::require(bytes <= size);
  } catch (const Error& error) {
    fuzz::require(error.kind() == Error::Kind::io);
  }
  return 0;
}
