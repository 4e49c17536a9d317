// SPDX-License-Identifier: Apache-2.0
#pragma once

// All that a program needs to make plans and run them. Checkpoints (tilewise::infer) are in tilewise/infer/model.h.
#include "tilewise/attend/attend.h"
#include "tilewise/base/context.h"
#include "tilewise/base/dtype.h"
#include "tilewise/base/error.h"
#include "tilewise/base/tensor.h"
#include "tilewise/base/version.h"
#include "tilewise/machine/cpu/thread_pool.h"
#include "tilewise/methods/registry.h"
#include "tilewise/plan/builder.h"
#include "tilewise/plan/plan.h"
