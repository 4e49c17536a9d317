# SPDX-License-Identifier: Apache-2.0
"""Plans: which runs of keys each tile of queries reads."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
from torch import Tensor

from ._errors import call, expect
from ._mask import Mask
from ._operators import DENSE_READS, ops

OptionValue = Union[bool, int, float, str]

# Places in the layout: enum LayoutField of tilewise_torch/ops/plan_tensors.h.
_SEQLEN_Q, _SEQLEN_K, _BATCH, _HEADS_Q, _MASK_FIRST, _TILE_Q, _POOLS, _DENSE_READS_OF_HEAD, _BANDS, _ARRAYS = 3, 4, 6, 7, 9, 10, 18, 19, 20, 26
_LISTS_ARRAYS, _NUMBERS_PER_ARRAY = 17, 5
_ORDER_Q, _ORDER_K, _SPANS = (_ARRAYS + _NUMBERS_PER_ARRAY * i for i in (34, 35, 36))
_VALUES = _ARRAYS + _NUMBERS_PER_ARRAY * 37


class Plan:
    """Which keys each query reads: made by :func:`plan`, :func:`load_plan` or `tilewise.exchange`; immutable, shared freely.

    Holds two tensors, which is also how operators and compiled graphs take it: `memory` (uint8, on the plan's device) and `layout` (int64, on the CPU).
    """

    def __init__(self, memory: Tensor, layout: Tensor) -> None:
        self.memory = memory
        self.layout = layout
        self._numbers: Optional[list[int]] = None
        self._completed: Optional[Plan] = None

    # What the layout says.

    def _number(self, place: int) -> int:
        if self._numbers is None:
            self._numbers = self.layout.tolist()
        return self._numbers[place]

    @property
    def seqlen_q(self) -> int:
        """Query tokens that the plan is made for."""
        return self._number(_SEQLEN_Q)

    @property
    def seqlen_k(self) -> int:
        """Key tokens that the plan is made for."""
        return self._number(_SEQLEN_K)

    @property
    def batch(self) -> int:
        """Batch size that the plan is made for."""
        return self._number(_BATCH)

    @property
    def heads_q(self) -> int:
        """Query heads that the plan is made for."""
        return self._number(_HEADS_Q)

    @property
    def tile(self) -> int:
        """Most query slots of a row."""
        return self._number(_TILE_Q)

    @property
    def dense_reads(self) -> int:
        """Pairs that the dense plan of the model's mask and this tile reads: the denominator of density."""
        return self._number(DENSE_READS)

    @property
    def device(self) -> torch.device:
        return self.memory.device

    def _has_runs(self, direction: int) -> bool:
        first = _ARRAYS + _NUMBERS_PER_ARRAY * (direction * _LISTS_ARRAYS + 2)  # begin of whole, masked, picked
        return any(self._number(first + _NUMBERS_PER_ARRAY * 5 * kind) >= 0 for kind in range(3))

    @property
    def has_by_query(self) -> bool:
        """Whether the lists of what each query reads are there."""
        return self._has_runs(0)

    @property
    def has_by_key(self) -> bool:
        """Whether the lists of what reads each key are there, which backward wants (:meth:`complete`)."""
        return self._has_runs(1)

    @property
    def has_order(self) -> bool:
        """Whether queries or keys are read in an order of their own."""
        return self._number(_ORDER_Q) >= 0 or self._number(_ORDER_K) >= 0

    @property
    def pools(self) -> list[int]:
        """Group sizes of pooled keys."""
        return [self._number(_VALUES + i) for i in range(self._number(_POOLS))]

    def _slots(self, place: int, tokens: int) -> int:
        return tokens if self._number(place) < 0 else self._number(place + 3)  # offset, then [B|1, G|1, slots]

    @property
    def slots_q(self) -> int:
        """Query slots: tokens, and the padding of an order."""
        return self._slots(_ORDER_Q, self.seqlen_q)

    @property
    def slots_k(self) -> int:
        """Key slots with the pooled keys behind them."""
        slots = self._slots(_ORDER_K, self.seqlen_k)
        return slots + sum(-(-slots // group) for group in self.pools)

    @property
    def mask(self) -> Mask:
        """The test of its masked runs: what a read pair must satisfy, too. The model's mask, unless a method made a narrower one of it (a_shape)."""
        at = _VALUES + self._number(_POOLS) + self._number(_DENSE_READS_OF_HEAD)
        bands, grids, axes, heads = (self._number(_BANDS + i) for i in range(4))
        band_numbers = [self._number(at + i) for i in range(3 * bands)]
        grid_numbers = [self._number(at + 3 * bands + i) for i in range(5 * grids * axes)]
        head_class = [self._number(at + 3 * bands + 5 * grids * axes + i) for i in range(heads)]
        if bands:
            limit = lambda number: None if number == 2**63 - 1 else number  # noqa: E731
            parts = [(limit(band_numbers[3 * i]), limit(band_numbers[3 * i + 1]), band_numbers[3 * i + 2]) for i in range(bands)]
            return Mask.band(*parts[0]) if bands == 1 and not heads else Mask.bands(parts, head_class)
        if grids:
            return Mask([2, self._number(_MASK_FIRST), grids, axes, heads, *grid_numbers, *head_class], None, "Mask.neighbourhood(...)")
        offset, *sizes = (self._number(_SPANS + i) for i in range(5))
        count = sizes[0] * sizes[1] * sizes[2] * sizes[3]
        return Mask.spans(self.memory[offset : offset + 4 * count].view(torch.int32).view(sizes).cpu(), head_class)

    # Counts.

    def _count(self, what: str, head: Optional[int]) -> int:
        return int(call(ops.plan_count.default, *self._on_cpu(), what, -1 if head is None else head).item())

    def reads(self, head: Optional[int] = None) -> int:
        """Pairs that are read before the mask, over batch and heads; or those of one head."""
        return self._count("reads", head)

    def allowed_pairs(self, head: Optional[int] = None) -> int:
        """Pairs that the mask lets through."""
        return self._count("allowed_pairs", head)

    @property
    def density(self) -> float:
        """reads / dense_reads; 0 where nothing could be read."""
        return self.reads() / self.dense_reads if self.dense_reads else 0.0

    @property
    def fill(self) -> float:
        """allowed_pairs / reads; 1 for a plan that reads nothing."""
        reads = self.reads()
        return self.allowed_pairs() / reads if reads else 1.0

    @property
    def max_runs(self) -> int:
        """The largest number of runs of a row."""
        return self._count("max_runs", None)

    @property
    def empty_rows(self) -> int:
        """Query rows that read no key; their output is 0."""
        return self._count("empty_rows", None)

    @property
    def content_hash(self) -> str:
        """16 hexadecimal digits of what the plan says, however its arrays lie."""
        return f"{self._count('content_hash', None) % 2**64:016x}"

    # Views of it.

    def to_bits(self, pooled: bool = False) -> Tensor:
        """bool [B, Hq, Sq, Sk] in tokens: which pairs the plan lets through. `pooled`: pooled keys stand for every token they hold, else they are left out."""
        return call(ops.plan_to_bits.default, *self._on_cpu(), pooled)

    def tiles(self, tile_q: int, tile_k: int) -> Tensor:
        """bool [B, Hq, Tq, Tk] in slots: in which tiles the plan reads a pair, before the mask."""
        return call(ops.plan_to_tiles.default, *self._on_cpu(), tile_q, tile_k)

    # Others made of it.

    def complete(self) -> Plan:
        """The plan with both directions. Without it each backward transposes the plan anew. Kept, so a second call costs nothing."""
        if self._completed is None:
            both = self.has_by_query and self.has_by_key
            self._completed = self if both else _plan(ops.plan_complete.default, *self._on_cpu(), 0).to(self.device)
        return self._completed

    def retile(self, tile_q: int, tile_k: int = 0) -> Plan:
        """The same pairs in rows of at most `tile_q` query slots and `tile_k` key slots (0: unchanged)."""
        return _plan(ops.plan_retile.default, *self._on_cpu(), tile_q, tile_k).to(self.device)

    def __or__(self, other: Plan) -> Plan:
        """What either plan reads."""
        if not isinstance(other, Plan):
            return NotImplemented
        return _plan(ops.plan_set.default, *self._on_cpu(), *other._on_cpu(), True).to(self.device)

    def __and__(self, other: Plan) -> Plan:
        """What both plans read."""
        if not isinstance(other, Plan):
            return NotImplemented
        return _plan(ops.plan_set.default, *self._on_cpu(), *other._on_cpu(), False).to(self.device)

    def to(self, device: Union[str, int, torch.device]) -> Plan:
        """The plan with its memory on another device."""
        memory = self.memory.to(device)
        return self if memory is self.memory else Plan(memory, self.layout)

    def validate(self, allowed: Optional[Mask] = None) -> None:
        """Raises ValueError with the first fault of the plan's structure; with `allowed`, also where it lets a pair through that this mask does not."""
        numbers, spans = ([], None) if allowed is None else (allowed.numbers, allowed.spans_tensor)
        call(ops.plan_validate.default, *self._on_cpu(), numbers, spans)

    def save(self, path: Union[str, os.PathLike[str]]) -> None:
        """Writes the plan as one safetensors file (docs/formats/plan.md), beside its target and then renamed."""
        call(ops.plan_save.default, *self._on_cpu(), os.fspath(path))

    def _on_cpu(self) -> tuple[Tensor, Tensor]:
        return self.memory.cpu(), self.layout

    def __repr__(self) -> str:
        sizes = f"batch {self.batch}, {self.heads_q} heads, {self.seqlen_q} queries, {self.seqlen_k} keys"
        return f"<tilewise.Plan: {sizes}, tile {self.tile}, density {self.density:.3f}>"


def _plan(op: Any, *args: Any) -> Plan:
    return Plan(*call(op, *args))


def options_text(options: dict[str, OptionValue]) -> str:
    """Options as the library parses them: `threshold=0.97,keep_sink=true`."""

    def text(value: OptionValue) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        return value if isinstance(value, str) else repr(value)

    return ",".join(f"{name}={text(value)}" for name, value in options.items())


def plan(
    q: Tensor,
    k: Tensor,
    method: str = "xattention",
    mask: Optional[Mask] = None,
    *,
    v: Optional[Tensor] = None,
    scale: Optional[float] = None,
    softcap: float = 0.0,
    layer: int = 0,
    order_q: Optional[Tensor] = None,
    order_k: Optional[Tensor] = None,
    **options: OptionValue,
) -> Plan:
    """Plans with a method by name (:func:`methods` lists them and their options).

    q, k    [B, Hq, Sq, D] and [B, Hkv, Sk, D], float32, bfloat16 or float16, as attention reads them (after rotary); any strides.
    mask    the model's own mask; default causal.
    v       only for methods that say so. order_q, order_k: int32 [B or 1, G or 1, slots], the token in each slot, -1 for padding.
    Errors  ValueError (unknown method or option, a value outside its range, shapes), TypeError (dtypes), NotImplementedError (the method does not take this problem).
    """
    mask = Mask.causal() if mask is None else mask
    expect("plan", Tensor, q=q, k=k)
    expect("plan", Mask, mask=mask)
    q, k = q.detach(), k.detach()
    v = None if v is None else v.detach()
    made = _plan(
        ops.plan_with.default, q, k, v, method, options_text(options), mask.numbers, mask.spans_tensor, order_q, order_k, scale, softcap, layer, 0
    )  # fmt: skip
    return made


def load_plan(path: Union[str, os.PathLike[str]]) -> Plan:
    """Reads a plan file and validates it: nothing in it is trusted. Errors: OSError, MemoryError."""
    return _plan(ops.plan_load.default, os.fspath(path))


def plan_of_bits(bits: Tensor, mask: Optional[Mask] = None, *, tile: int = 128, batch: Optional[int] = None, heads_q: Optional[int] = None) -> Plan:
    """The plan that reads exactly the pairs of bool [B or 1, Hq or 1, Sq, Sk]; `to_bits()` gives them back.

    mask  the model's mask (default full), which every pair must satisfy; `batch` and `heads_q`: what sizes of 1 broadcast to.
    """
    mask = Mask.full() if mask is None else mask
    expect("plan_of_bits", Tensor, bits=bits)
    return _plan(ops.plan_of_bits.default, bits.cpu(), tile, mask.numbers, mask.spans_tensor, batch or 0, heads_q or 0)


def combine_heads(plans: Sequence[Plan], plan_of_head: Sequence[int]) -> Plan:
    """One plan for heads that were planned apart: head h reads what it reads in `plans[plan_of_head[h]]`."""
    parts = [one._on_cpu() for one in plans]
    return _plan(ops.plan_combine.default, [memory for memory, _ in parts], [layout for _, layout in parts], list(plan_of_head))


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a method."""

    name: str
    default: OptionValue
    range: str
    help: str


@dataclasses.dataclass(frozen=True)
class Method:
    """A published way to a plan."""

    name: str
    source: str
    summary: str
    needs_v: bool
    is_causal_only: bool
    options: tuple[Option, ...]


def methods() -> list[Method]:
    """Every method of this build, "dense" first."""
    found: list[Method] = []
    for line in call(ops.methods.default).splitlines():
        if not line.startswith("\t"):
            name, source, summary, needs_v, is_causal_only = line.split("\t")
            found.append(Method(name, source, summary, needs_v == "1", is_causal_only == "1", ()))
            continue
        _, name, kind, default, limits, text = line.split("\t")
        value: OptionValue = default == "true" if kind == "bool" else int(default) if kind == "int" else float(default) if kind == "float" else default
        found[-1] = dataclasses.replace(found[-1], options=(*found[-1].options, Option(name, value, limits, text)))
    return found


def check_method(method: str, options: dict[str, OptionValue]) -> None:
    """Raises ValueError for an unknown method or option, or a value outside its range."""
    call(ops.check_method.default, method, options_text(options))
