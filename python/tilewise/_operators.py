# SPDX-License-Identifier: Apache-2.0
"""The operators `torch.ops.tilewise.*` (loaded by _library.py) are given what torch wants to know about them (shapes, gradients, autocast, vmap).

Their kernels and schemas are in tilewise_torch/ops. A plan is two tensors: its memory (uint8) and its layout (int64, on the CPU).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Optional

import torch
from torch import Tensor

from ._errors import call

ops = torch.ops.tilewise


def _empty_in_layout_of(like: Tensor, shape: Sequence[int]) -> Tensor:
    # As tensors.cpp: [B, S, H, D] in memory where `like` lies so.
    if like.dim() == 4 and like.stride(1) < like.stride(2):
        batch, heads, tokens, channels = shape
        return like.new_empty((batch, tokens, heads, channels)).transpose(1, 2)
    return like.new_empty(shape)


# Fake tensors: shapes and dtypes without a kernel.


@torch.library.register_fake("tilewise::attend")
def _(q: Tensor, k: Tensor, v: Tensor, plan: Tensor, layout: Tensor, scale: Any = None, softcap: float = 0.0, sink_logit: Any = None) -> tuple[Tensor, Tensor]:
    out = _empty_in_layout_of(q, (*q.shape[:3], v.shape[3]))
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.register_fake("tilewise::attend_backward")
def _(
    dout: Tensor, dlse: Any, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, plan: Tensor, layout: Tensor,
    scale: Any = None, softcap: float = 0.0, sink_logit: Optional[Tensor] = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dsink = q.new_empty((0,) if sink_logit is None else sink_logit.shape, dtype=torch.float32)
    return _empty_in_layout_of(q, q.shape), _empty_in_layout_of(k, k.shape), _empty_in_layout_of(v, v.shape), dsink


@torch.library.register_fake("tilewise::attention")
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    out = _empty_in_layout_of(q, (*q.shape[:3], v.shape[3]))
    return out, q.new_empty(q.shape[:3], dtype=torch.float32), torch.empty(2, dtype=torch.int64)


@torch.library.register_fake("tilewise::attention_backward")
def _(dout: Tensor, dlse: Any, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sink_logit = rest[-3]
    dsink = q.new_empty((0,) if sink_logit is None else sink_logit.shape, dtype=torch.float32)
    return _empty_in_layout_of(q, q.shape), _empty_in_layout_of(k, k.shape), _empty_in_layout_of(v, v.shape), dsink


@torch.library.register_fake("tilewise::decode")
def _(
    q: Tensor, k: Tensor, k_scale: Any, k_zero: Any, k_table: Any, k_group: Any, v: Tensor, v_scale: Any, v_zero: Any, v_table: Any, v_group: Any,
    lengths: Any, plan: Any, layout: Any, band: Any, head_dim_v: int, scale: Any = None, softcap: float = 0.0, sink_logit: Any = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _empty_in_layout_of(q, (*q.shape[:3], head_dim_v)), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.register_fake("tilewise::measure")
def _(
    q: Tensor, k: Tensor, plan: Tensor, layout: Tensor, lse: Any, key_bias: Any, over: str, shape: Sequence[int],
    tile_q: int = 0, tile_k: int = 0, scale: Any = None, softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return tuple(q.new_empty(shape, dtype=torch.float32) for _ in range(3))  # type: ignore[return-value]


def _some(dtype: torch.dtype, rank: int = 1) -> Tensor:
    """A tensor on the CPU whose sizes only the kernel knows: they depend on what the plan reads."""
    context = torch.library.get_ctx()
    return torch.empty([context.new_dynamic_size() for _ in range(rank)], dtype=dtype)


def _fake_plan(*_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return _some(torch.uint8), _some(torch.int64)


for _name in ("plan_with", "plan_of_bits", "plan_of_bsr", "plan_complete", "plan_retile", "plan_set", "plan_combine", "plan_load"):
    torch.library.register_fake(f"tilewise::{_name}", _fake_plan)
torch.library.register_fake("tilewise::plan_to_bsr", lambda *_: (_some(torch.int32, 3), _some(torch.int32), _some(torch.bool, 3)))
torch.library.register_fake("tilewise::plan_to_bits", lambda *_: _some(torch.bool, 4))
torch.library.register_fake("tilewise::plan_to_tiles", lambda *_: _some(torch.bool, 4))
torch.library.register_fake("tilewise::plan_count", lambda *_: torch.empty(1, dtype=torch.int64))
torch.library.register_fake("tilewise::plan_validate", lambda *_: None)
torch.library.register_fake("tilewise::plan_save", lambda *_: None)


# Gradients.


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, plan, layout, scale, softcap, sink_logit = inputs
    ctx.save_for_backward(q, k, v, *output, plan, layout, sink_logit)
    ctx.scale, ctx.softcap = scale, softcap
    ctx.set_materialize_grads(False)  # a missing gradient of lse costs a pass over it


def _backward(ctx: Any, dout: Optional[Tensor], dlse: Optional[Tensor]) -> tuple[Optional[Tensor], ...]:
    q, k, v, out, lse, plan, layout, sink_logit = ctx.saved_tensors
    if dout is None:
        dout = torch.zeros_like(out)
    run = _BackwardInTransform.apply if torch._C._are_functorch_transforms_active() else ops.attend_backward.default
    dq, dk, dv, dsink = call(run, dout, dlse, q, k, v, out, lse, plan, layout, ctx.scale, ctx.softcap, sink_logit)
    return dq, dk, dv, None, None, None, None, None if sink_logit is None else dsink


torch.library.register_autograd("tilewise::attend", _backward, setup_context=_save)


def _save_method(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, ctx.method, ctx.options, ctx.mask, spans, order_q, order_k, ctx.scale, ctx.softcap, sink_logit, ctx.layer, ctx.seed = inputs
    ctx.save_for_backward(q, k, v, *output, spans, order_q, order_k, sink_logit)  # the third output brings the plan with it
    ctx.set_materialize_grads(False)


def _backward_of_method(ctx: Any, dout: Optional[Tensor], dlse: Optional[Tensor], _: None) -> tuple[Optional[Tensor], ...]:
    q, k, v, out, lse, counts, spans, order_q, order_k, sink_logit = ctx.saved_tensors
    if dout is None:
        dout = torch.zeros_like(out)
    call_again = (ctx.method, ctx.options, ctx.mask, spans, order_q, order_k, ctx.scale, ctx.softcap, sink_logit, ctx.layer, ctx.seed)
    dq, dk, dv, dsink = call(ops.attention_backward.default, dout, dlse, q, k, v, out, lse, counts, *call_again)
    return dq, dk, dv, *[None] * 8, None if sink_logit is None else dsink, None, None


torch.library.register_autograd("tilewise::attention", _backward_of_method, setup_context=_save_method)


DENSE_READS = 5  # its place in a layout, enum LayoutField of tilewise_torch/ops/plan_tensors.h
_library = torch.library.Library("tilewise", "FRAGMENT")


_attend = ops.attend.default


class _Attend(torch.autograd.Function):
    """The same gradient for eager calls: torch.library's own function looks through the schema at each call, which takes as long as a small problem."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = _attend(*inputs)
        _save(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Optional[Tensor]) -> Any:
        return _backward(ctx, *grads)


class _AttendInTransform(torch.autograd.Function):
    """The form that torch.func.grad and vjp take, which that of torch.library is not."""

    @staticmethod
    def forward(*inputs: Any) -> Any:
        return _attend(*inputs)

    setup_context = staticmethod(_save)
    backward = staticmethod(_backward)

    @staticmethod
    def vmap(*_: Any) -> NoReturn:
        _refuse_vmap("attend")


class _BackwardInTransform(torch.autograd.Function):
    """Likewise of attend_backward."""

    @staticmethod
    def forward(*inputs: Any) -> Any:
        return ops.attend_backward.default(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> NoReturn:
        _refuse_gradient("attend_backward", _NO_SECOND)

    @staticmethod
    def vmap(*_: Any) -> NoReturn:
        _refuse_vmap("attend_backward")


def attend(*inputs: Any) -> tuple[Tensor, Tensor]:
    """torch.ops.tilewise.attend by the shortest way that does the same."""
    if torch.compiler.is_compiling():
        return _attend(*inputs)
    if torch._C._are_functorch_transforms_active():
        return _AttendInTransform.apply(*inputs)
    if torch._C._is_any_autocast_enabled():
        return _attend(*inputs)
    if torch.is_grad_enabled():
        q, k, v, _, _, _, _, sink_logit = inputs
        if q.requires_grad or k.requires_grad or v.requires_grad or (sink_logit is not None and sink_logit.requires_grad):
            return _Attend.apply(*inputs)
    with torch._C._AutoDispatchBelowAutograd():
        return _attend(*inputs)


_NO_SECOND = "second derivatives of attention are not computed"


def _refuse_gradient(name: str, way_on: str, *_: Any) -> NoReturn:
    raise NotImplementedError(f"tilewise::{name} has no gradient; {way_on}")


for _name, _way_on in (("attend_backward", _NO_SECOND), ("attention_backward", _NO_SECOND), ("decode", "use tilewise.attend for training"), ("measure", "detach q and k")):
    torch.library.register_autograd(
        f"tilewise::{_name}", functools.partial(_refuse_gradient, _name, _way_on), setup_context=lambda ctx, inputs, output: None
    )


# Autocast: as scaled_dot_product_attention, q, k and v go to the lower precision.


def _autocast(name: str, operands: tuple[int, ...], device: str, key: str) -> None:
    op = getattr(ops, name).default
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        values = list(args)
        for i in operands:
            value = values[i] if i < len(values) else None
            if value is not None and value.is_floating_point() and value.dtype in (torch.float32, torch.float16, torch.bfloat16):
                values[i] = value.to(dtype)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*values)

    torch.library.impl(f"tilewise::{name}", key, kernel, lib=_library)


for _device, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
    _autocast("attend", (0, 1, 2), _device, _key)
    _autocast("attention", (0, 1, 2), _device, _key)
    _autocast("decode", (0, 1, 6), _device, _key)


# vmap.


def _refuse_vmap(name: str, *_: Any) -> NoReturn:
    raise NotImplementedError(
        f"tilewise::{name} cannot be vmapped: a plan is made for one batch size. Tensors have a batch axis already: fold yours into it, "
        "[N, B, H, S, D] to [N * B, H, S, D], and plan for that batch"
    )


for _name in ("attend", "attend_backward", "attention", "attention_backward", "decode", "measure"):
    torch.library.register_vmap(f"tilewise::{_name}", functools.partial(_refuse_vmap, _name))

Operator = Callable[..., Any]
attention: Operator = ops.attention.default
decode: Operator = ops.decode.default
measure: Operator = ops.measure.default
