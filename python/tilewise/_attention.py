# SPDX-License-Identifier: Apache-2.0
"""What runs a plan."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, Optional, Union, overload

import torch
from torch import Tensor

from . import _operators
from ._errors import call, expect, natural
from ._mask import Mask
from ._plan import OptionValue, Plan, options_text
from ._plan import plan as make_plan

_attend = _operators.attend


@overload
def attend(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: Optional[float] = None, softcap: float = 0.0, sink_logit: Optional[Tensor] = None,
    return_lse: Literal[False] = False,
) -> Tensor: ...  # fmt: skip
@overload
def attend(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: Optional[float] = None, softcap: float = 0.0, sink_logit: Optional[Tensor] = None,
    *, return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def attend(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: Optional[float] = None, softcap: float = 0.0, sink_logit: Optional[Tensor] = None,
    return_lse: bool = False,
) -> Union[Tensor, tuple[Tensor, Tensor]]:  # fmt: skip
    """softmax(scale * q k^T) v over the keys that the plan reads.

    Shapes  q [B, Hq, Sq, D], k [B, Hkv, Sk, D], v [B, Hkv or 1, Sk, Dv]; Hkv divides Hq, keys are not copied for grouped heads. Any strides: views are read where
            they lie (only a last axis that is not contiguous is copied). out [B, Hq, Sq, Dv] lies in memory as q does; lse [B, Hq, Sq] float32, a natural log.
    Dtypes  float32, bfloat16 or float16, all alike. Under autocast q, k and v take its dtype.
    scale   default 1 / sqrt(D). softcap: s -> softcap * tanh(s / softcap), 0 for none. sink_logit: [Hq] float32, one more logit in each row's denominator.
    Edges   a query that reads no key gets 0 and lse -inf.
    Grads   of out and lse, in q, k, v and sink_logit. `plan.complete()` once saves each backward a transpose.
    Errors  ValueError (shapes, a plan for other sizes), TypeError (dtypes), NotImplementedError (what no backend takes, with each one's reason).
    """
    try:
        out, lse = _attend(q, k, v, plan.memory, plan.layout, scale, softcap, sink_logit)
    except RuntimeError as error:
        raise natural(error) from None
    except AttributeError:  # looked at only now: an argument of another class costs a right call nothing
        expect("attend", Tensor, q=q, k=k, v=v, **({} if sink_logit is None else {"sink_logit": sink_logit}))
        expect("attend", Plan, plan=plan)
        raise
    return (out, lse) if return_lse else out


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    method: str = "xattention",
    is_causal: bool = False,
    *,
    mask: Optional[Mask] = None,
    scale: Optional[float] = None,
    softcap: float = 0.0,
    sink_logit: Optional[Tensor] = None,
    layer: int = 0,
    order_q: Optional[Tensor] = None,
    order_k: Optional[Tensor] = None,
    **options: OptionValue,
) -> Tensor:
    """Plans with a method, then attends: :func:`plan` and :func:`attend` in one call. `mask` in place of `is_causal` where the model has another one.

    One operator, so `torch.compile(fullgraph=True)` takes it with torch's default settings. Its gradient reads the plan of the forward call, which lives as
    long as the graph that autograd keeps; where saved tensors are copied (offloading), the method plans once more.
    """
    if mask is not None and is_causal:
        raise ValueError("attention: both mask and is_causal are given; give one")
    if mask is None:
        mask = Mask.causal() if is_causal else Mask.full()
    if torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling():  # torch.library's gradients are not for torch.func
        made = make_plan(q, k, method, mask, v=v, scale=scale, softcap=softcap, layer=layer, order_q=order_q, order_k=order_k, **options)
        return attend(q, k, v, made, scale, softcap, sink_logit)
    expect("attention", Tensor, q=q, k=k, v=v)
    expect("attention", Mask, mask=mask)
    made_by = (method, options_text(options), mask.numbers, mask.spans_tensor, order_q, order_k)
    out, _, _ = call(_operators.attention, q, k, v, *made_by, scale, softcap, sink_logit, layer, 0)
    return out  # type: ignore[no-any-return]


Over = Literal["tile", "query_tile", "query_run", "query", "key", "offset"]


@dataclasses.dataclass(frozen=True)
class Measured:
    """Reductions over the plan's pairs, float32. No pair: sum 0, max -inf, count 0."""

    sum: Tensor
    max: Tensor
    count: Tensor


def measure(
    q: Tensor,
    k: Tensor,
    plan: Plan,
    over: Over = "tile",
    *,
    lse: Optional[Tensor] = None,
    key_bias: Optional[Tensor] = None,
    tile_q: int = 0,
    tile_k: int = 0,
    scale: Optional[float] = None,
    softcap: float = 0.0,
) -> Measured:
    """Reduces scaled logits, or probabilities exp(s - lse) where `lse` [B, Hq, Sq] is given, over the pairs that the plan allows.

    over    "tile" [B, Hq, Tq, Tk] (tile_q x tile_k slots, 0: the plan's tile), "query_tile" [B, Hq, Sq, Tk], "query_run" [B, Hq, Sq, R], "query" [B, Hq, Sq], "key" and
            "offset" [B, Hq, Sk].
    Without gradient.
    """
    expect("measure", Tensor, q=q, k=k)
    expect("measure", Plan, plan=plan)
    heads = [q.shape[0], q.shape[1]]
    if over in ("tile", "query_tile"):
        tiles_k = -(-plan.slots_k // (tile_k or plan.tile))
        shape = [*heads, -(-plan.slots_q // (tile_q or plan.tile)) if over == "tile" else q.shape[2], tiles_k]
    elif over == "query_run":
        shape = [*heads, q.shape[2], plan.max_runs]
    elif over == "query":
        shape = [*heads, q.shape[2]]
    else:
        shape = [*heads, k.shape[2]]
    args = (q.detach(), k.detach(), plan.memory, plan.layout, lse, key_bias, over, shape, tile_q, tile_k, scale, softcap)
    return Measured(*call(_operators.measure, *args))


@dataclasses.dataclass(frozen=True)
class Quantised:
    """Keys or values as integers: (code - zero) * scale. `data` int8 [B, H, S, D], or uint8 [B, H, S, D / 2] with two INT4 codes a byte, each plus 8.

    `scale` (and `zero`) float32 [B or 1, H or 1, ceil(S / tokens), ceil(D / channels)]; 0 for tokens or channels: all of them share one.
    """

    data: Tensor
    scale: Tensor
    zero: Optional[Tensor] = None
    tokens: int = 1
    channels: int = 0


@dataclasses.dataclass(frozen=True)
class Paged:
    """Keys or values in pages: `pool` [pages, Hkv or 1, page, D], and for each sequence the page of its tokens, `table` int32 [B, Hkv or 1, pages], -1: not stored."""

    pool: Union[Tensor, Quantised]
    table: Tensor


Operand = Union[Tensor, Quantised, Paged]


def _band_of(mask: Optional[Mask]) -> list[int]:
    numbers = Mask.causal().numbers if mask is None else mask.numbers
    if numbers[0] != 0 or numbers[2] != 1:
        raise NotImplementedError(f"decode: {mask} is not one band for all heads; plan with it, tilewise.plan(q, k, 'dense', mask)")
    return numbers[5:8]


def decode(
    q: Tensor,
    k: Operand,
    v: Operand,
    plan: Optional[Plan] = None,
    *,
    mask: Optional[Mask] = None,
    lengths: Optional[Tensor] = None,
    scale: Optional[float] = None,
    softcap: float = 0.0,
    sink_logit: Optional[Tensor] = None,
    return_lse: bool = False,
) -> Union[Tensor, tuple[Tensor, Tensor]]:
    """Attention of the newest 1 to 8 tokens over a cache. Shapes: q [B, Hq, Sq, D]; k [B, Hkv, capacity, D] and v, plain, :class:`Quantised` or :class:`Paged`.

    lengths  int32 or int64 [B], tokens of each sequence, the new ones included; default: all that the plan or the cache holds.
    plan     which keys are read; without one, every key that `mask` lets through: one band, the same for all heads (default causal).
    Without gradient.
    """
    expect("decode", Tensor, q=q)
    args: list[object] = []
    for name, operand in (("k", k), ("v", v)):
        table = operand.table if isinstance(operand, Paged) else None
        data = operand.pool if isinstance(operand, Paged) else operand
        if isinstance(data, Quantised):
            args += [data.data, data.scale, data.zero, table, [data.tokens, data.channels]]
            width = data.data.shape[-1] * (2 if data.data.dtype == torch.uint8 else 1)
        else:
            expect("decode", Tensor, **{name: data})
            args += [data, None, None, table, [0, 0]]
            width = data.shape[-1]
    memory, layout, band = (None, None, _band_of(mask)) if plan is None else (plan.memory, plan.layout, [])
    if plan is not None and mask is not None:
        raise ValueError("decode: both plan and mask are given; a plan has its mask with it")
    if isinstance(lengths, Tensor) and lengths.dtype == torch.int64:
        lengths = lengths.to(torch.int32)
    out, lse = call(_operators.decode, q.detach(), *args, lengths, memory, layout, band, width, scale, softcap, sink_logit)
    return (out, lse) if return_lse else out
