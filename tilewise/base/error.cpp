// SPDX-License-Identifier: Apache-2.0
#include "tilewise/base/error.h"

TILEWISE_BEGIN_PUBLIC

std::string_view name(Error::Kind kind) {
  switch (kind) {
    case Error::Kind::shape: return "shape";
    case Error::Kind::dtype: return "dtype";
    case Error::Kind::device: return "device";
    case Error::Kind::value: return "value";
    case Error::Kind::unsupported: return "unsupported";
    case Error::Kind::memory: return "memory";
    case Error::Kind::io: return "io";
    case Error::Kind::cuda: return "cuda";
    case Error::Kind::cancelled: return "cancelled";
  }
  return "unknown";
}

TILEWISE_END_PUBLIC
