# SPDX-License-Identifier: Apache-2.0
"""Operators for compiled graphs, in which no size and no branch may depend on what a tensor holds: they keep that inside.

`tilewise::attention` plans and attends, `tilewise::spans_of_rows` makes a mask small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from . import _mask
from ._errors import call
from ._operators import _empty_in_layout_of, ops


def _plan(
    q: Tensor, k: Tensor, v: Tensor, method: str, options: str, mask: Sequence[int], spans: Optional[Tensor], scale: Optional[float], softcap: float, layer: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    on_cpu = (x.detach().cpu() for x in (q, k, v))
    memory, layout = call(ops.plan_with.default, *on_cpu, method, options, list(mask), spans, None, None, scale, softcap, layer, 0)
    return memory.to(q.device), layout


@torch.library.custom_op("tilewise::attention", mutates_args=())
def attention(
    q: Tensor, k: Tensor, v: Tensor, method: str, options: str, mask: Sequence[int], spans: Optional[Tensor], scale: Optional[float], softcap: float,
    sink_logit: Optional[Tensor], layer: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out and lse of `method`, whose plan is made here and thrown away. `mask` and `spans` are those of a Mask, `options` a text as the library parses it."""
    plan = _plan(q, k, v, method, options, mask, spans, scale, softcap, layer)
    with torch._C._AutoDispatchBelowAutograd():
        out, lse = call(ops.attend.default, q, k, v, *plan, scale, softcap, sink_logit)
    return out, lse


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _empty_in_layout_of(q, (*q.shape[:3], v.shape[3])), q.new_empty(q.shape[:3], dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, method, options, mask, spans, scale, softcap, sink_logit, layer = inputs
    ctx.save_for_backward(q, k, v, *output, spans, sink_logit)
    ctx.rest = (method, options, mask, scale, softcap, layer)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dout: Optional[Tensor], dlse: Optional[Tensor]) -> tuple[Any, ...]:
    q, k, v, out, lse, spans, sink_logit = ctx.saved_tensors
    method, options, mask, scale, softcap, layer = ctx.rest
    dout = torch.zeros_like(out) if dout is None else dout
    dq, dk, dv, dsink = attention_backward(dout, dlse, q, k, v, out, lse, method, options, mask, spans, scale, softcap, sink_logit, layer)
    return dq, dk, dv, None, None, None, None, None, None, None if sink_logit is None else dsink, None


attention.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op("tilewise::attention_backward", mutates_args=())
def attention_backward(
    dout: Tensor, dlse: Optional[Tensor], q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, method: str, options: str, mask: Sequence[int],
    spans: Optional[Tensor], scale: Optional[float], softcap: float, sink_logit: Optional[Tensor], layer: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k, v and sink_logit. The plan is made again: methods give the same one for the same tensors."""
    plan = _plan(q, k, v, method, options, mask, spans, scale, softcap, layer)
    dq, dk, dv, dsink = call(ops.attend_backward.default, dout, dlse, q, k, v, out, lse, *plan, scale, softcap, sink_logit)
    return dq, dk, dv, dsink


@attention_backward.register_fake
def _(
    dout: Tensor, dlse: Any, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, method: str, options: str, mask: Any, spans: Any, scale: Any, softcap: float,
    sink_logit: Any, layer: int,
) -> Any:  # fmt: skip
    dsink = q.new_empty((0,) if sink_logit is None else sink_logit.shape, dtype=torch.float32)
    return _empty_in_layout_of(q, q.shape), _empty_in_layout_of(k, k.shape), _empty_in_layout_of(v, v.shape), dsink


@torch.library.custom_op("tilewise::spans_of_rows", mutates_args=())
def spans_of_rows(allowed: Tensor) -> Tensor:
    """int32 [..., 4] of bool [..., Sk]: _mask.spans_of_rows."""
    return _mask.spans_of_rows(allowed)


@spans_of_rows.register_fake
def _(allowed: Tensor) -> Tensor:
    return torch.empty((*allowed.shape[:-1], 4), dtype=torch.int32)
