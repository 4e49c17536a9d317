# SPDX-License-Identifier: Apache-2.0
"""Tilewise runs any block-sparse attention, and tells what it cost.

    import torch, tilewise
    plan = tilewise.plan(q, k, method="xattention", threshold=0.9)   # which keys each tile of queries reads
    out = tilewise.attend(q, k, v, plan)                             # differentiable, torch.compile, any strides

Models of Hugging Face: `tilewise.huggingface`. Masks and block lists of other libraries: `tilewise.exchange`.
"""

from ._attention import Measured, Operand, Paged, Quantised, attend, attention, decode, measure
from ._mask import Axis, Mask
from ._operators import ops as _ops
from ._plan import Method, Option, Plan, combine_heads, load_plan, methods, plan, plan_of_bits

__version__, __commit__, _ = _ops.about.default().split("\t")

__all__ = [
    "Axis",
    "Mask",
    "Measured",
    "Method",
    "Operand",
    "Option",
    "Paged",
    "Plan",
    "Quantised",
    "attend",
    "attention",
    "combine_heads",
    "decode",
    "load_plan",
    "measure",
    "methods",
    "plan",
    "plan_of_bits",
]
