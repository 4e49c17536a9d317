// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/as_float.h"

#include "tilewise/machine/cpu/gemm.h"

namespace tilewise::select {

AsFloat::AsFloat(const TensorView& tensor, Context& context) : view(tensor) {
  if (tensor.dtype() == Dtype::f32) return;
  copy = Tensor(context.memory, Dtype::f32, tensor.shape());
  view = copy.view;
  const int64_t dim = tensor.dim(3), heads = tensor.dim(1);
  context.parallel_for(tensor.dim(0) * heads, [&](int64_t item, int) {
    for (int64_t s = 0; s < tensor.dim(2); ++s) {
      const int64_t from = tensor.offset(item / heads, item % heads, s, 0);
      float* to = static_cast<float*>(copy.view.raw()) + copy.view.offset(item / heads, item % heads, s, 0);
      if (tensor.dtype() == Dtype::bf16) {
        machine::cpu::to_float(static_cast<const bf16*>(tensor.raw()) + from, Dtype::bf16, dim, to);
      } else {
        for (int64_t d = 0; d < dim; ++d) to[d] = static_cast<float>(static_cast<const f16*>(tensor.raw())[from + d]);
      }
    }
  });
}

}  // namespace tilewise::select
