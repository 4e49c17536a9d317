# SPDX-License-Identifier: Apache-2.0
"""Tilewise runs any block-sparse attention, and tells what it cost.

    import torch, tilewise
    plan = tilewise.plan(q, k, method="xattention", threshold=0.9)   # which keys each tile of queries reads
    out = tilewise.attend(q, k, v, plan)                             # differentiable, torch.compile, any strides

Models of Hugging Face: `tilewise.configure`, `tilewise.compare`, `tilewise.capture`, module `tilewise.huggingface`. Masks and block lists of other libraries: `tilewise.exchange`.
"""

from typing import TYPE_CHECKING

from . import _library

_library.load()  # before any other module of the package imports torch

from ._attention import Measured, Operand, Paged, Quantised, attend, attention, decode, measure
from ._mask import Axis, Mask
from ._operators import ops as _ops
from ._plan import Method, Option, Plan, combine_heads, load_plan, methods, plan, plan_of_bits


if TYPE_CHECKING:
    from ._capture import capture as capture
    from ._compare import Comparison as Comparison
    from ._compare import compare as compare
    from .huggingface import configure as configure
else:  # for a type checker every name would be there

    def __getattr__(name: str) -> object:
        """configure, capture, compare: of Hugging Face models. transformers is imported when the first of them is asked for."""
        if name == "configure":
            from .huggingface import configure

            return configure
        if name == "capture":
            from ._capture import capture

            return capture
        if name in ("compare", "Comparison"):
            from . import _compare

            return getattr(_compare, name)
        raise AttributeError(f"module 'tilewise' has no attribute {name!r}")


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
