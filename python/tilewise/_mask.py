# SPDX-License-Identifier: Apache-2.0
"""The model's own mask: which keys a query may see at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

_ALL = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of a neighbourhood (GNA, arXiv 2504.16922): `length` cells, of which a cell sees `window`."""

    length: int
    window: int
    stride: int = 1
    dilation: int = 1
    is_causal: bool = False


class Mask:
    """Which keys each query may see: bands, spans or a neighbourhood. Made by its class methods.

    Query `i` counts as token `i + Sk - Sq` (bottom-right), so one mask serves prefill, chunks and decode.
    """

    __slots__ = ("numbers", "spans_tensor", "_text")

    numbers: list[int]  # as tilewise_torch/ops/plan_ops.cpp reads them
    spans_tensor: Optional[Tensor]

    def __init__(self, numbers: list[int], spans: Optional[Tensor], text: str) -> None:
        self.numbers, self.spans_tensor, self._text = numbers, spans, text

    @classmethod
    def full(cls) -> Mask:
        """Every query sees every key."""
        return cls.band()

    @classmethod
    def causal(cls) -> Mask:
        """Query token t sees the keys up to t."""
        return cls.band(right=0)

    @classmethod
    def band(cls, left: Optional[int] = None, right: Optional[int] = None, sink: int = 0) -> Mask:
        """Token t sees [t - left, t + right] and the first `sink` keys, nothing past t + right. None: no limit.

        A sliding window of W tokens, as Mistral and Gemma have it, is `Mask.band(left=W - 1, right=0)`.
        """
        return cls.bands([(left, right, sink)])

    @classmethod
    def bands(cls, bands: Sequence[tuple[Optional[int], Optional[int], int]], head_class: Sequence[int] = ()) -> Mask:
        """Several bands (left, right, sink), and for each query head the number of its band. At most 16."""
        numbers = [0, 0, len(bands), 0, len(head_class)]
        for left, right, sink in bands:
            numbers += [_ALL if left is None else left, _ALL if right is None else right, sink]
        names = ", ".join(_band_text(*band) for band in bands)
        return cls(numbers + list(head_class), None, names if len(bands) == 1 else f"Mask.bands({names})")

    @classmethod
    def spans(cls, spans: Tensor, head_class: Sequence[int] = ()) -> Mask:
        """int32 [C, B or 1, Sq, 4]: each query sees the keys [s0, s1) and [s2, s3): documents, prefixes, padding."""
        return cls([1, 0, 0, 0, len(head_class), *head_class], spans.contiguous(), f"Mask.spans({list(spans.shape)})")

    @classmethod
    def neighbourhood(cls, axes: Sequence[Axis], first: int = 0) -> Mask:
        """Each cell of a grid sees a window around itself on every axis. The grid's first cell is token `first`; tokens around it see and are seen by all."""
        numbers = [2, first, 1, len(axes), 0]
        for axis in axes:
            numbers += [axis.length, axis.window, axis.stride, axis.dilation, int(axis.is_causal)]
        return cls(numbers, None, f"Mask.neighbourhood({list(axes)}, first={first})")

    def __repr__(self) -> str:
        return self._text


def spans_of_rows(allowed: Tensor) -> Tensor:
    """int32 [..., 4] of bool [..., Sk]: the at most two ranges of keys of each row. Errors: NotImplementedError."""
    starts = allowed.clone()
    starts[..., 1:] &= ~allowed[..., :-1]
    if int(starts.sum(-1).max() if starts.numel() else 0) > 2:
        raise NotImplementedError(
            "the model's mask lets a query see more than two ranges of keys, which a mask of tilewise cannot say; pack sequences without gaps, or give this model another "
            "attn_implementation"
        )
    number = starts.int().cumsum(-1)
    spans = torch.zeros(*allowed.shape[:-1], 4, dtype=torch.int32)
    for i in (1, 2):
        part = allowed & (number == i)
        length = part.sum(-1)
        start = torch.where(length > 0, part.int().argmax(-1), 0)
        spans[..., 2 * i - 2], spans[..., 2 * i - 1] = start, start + length
    return spans


def allowed_of(mask: Tensor, who: str) -> Tensor:
    """bool of a mask that is bool, or 0 and a huge negative number (-inf to -10,000 are in use) to be added. Errors: NotImplementedError (it adds anything else)."""
    if mask.dtype == torch.bool:
        return mask
    allowed = mask == 0
    if not (allowed | (mask <= -9000)).all():
        raise NotImplementedError(f"{who}: the mask adds numbers other than 0 and -inf, and a bias is not computed")
    return allowed


def _band_text(left: Optional[int], right: Optional[int], sink: int) -> str:
    if left is None and sink == 0 and right in (None, 0):
        return "Mask.full()" if right is None else "Mask.causal()"
    return f"Mask.band(left={left}, right={right}, sink={sink})"
