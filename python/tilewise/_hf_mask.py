# SPDX-License-Identifier: Apache-2.0
"""The masks of transformers as masks of tilewise: a band or spans, never a dense S x S."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Optional, Union

import torch
from torch import Tensor
from transformers import masking_utils

from . import _compiled
from ._mask import Mask, spans_of_rows
from ._plan import Plan
from ._sequences import Tokens

_ROWS = 128  # queries whose mask is evaluated together where it is not one of the known ones


@dataclasses.dataclass
class VisibleKeys:
    """What an attention layer gets for a mask: which keys each query sees, and how many of the keys are written at all."""

    mask: Optional[Mask]  # None: only `sequences` can say it
    num_keys: int  # the first so many of the keys; the queries are the last of them, or nothing depends on where they stand
    is_band: bool  # the same for every sequence: decode takes it without a plan
    left: Optional[int]
    band: Optional[Mask] = None  # of a padded or packed batch: what each of its `sequences` obeys among its own tokens
    find_sequences: Callable[[], tuple[Tokens, ...]] = tuple
    is_traced: bool = False  # made by torch.compile, which cannot tell sequences apart
    plans: dict[Any, Plan] = dataclasses.field(default_factory=dict)  # that depend on lengths alone
    ndim: int = 4  # with a static cache, generate() hands it to the model as a mask, and the model back to tilewise_mask

    @functools.cached_property
    def sequences(self) -> tuple[Tokens, ...]:
        """Those of a padded or packed batch; none: the mask is not of that kind. Found when a method first asks."""
        return self.find_sequences()


Band = tuple[Optional[int], Optional[int]]


def _closure(function: Callable[..., Any], maker: str) -> dict[str, Any]:
    """What a mask function of transformers holds, by name; nothing unless `maker` made it."""
    if not getattr(function, "__qualname__", "").startswith(f"{maker}.<locals>"):
        return {}
    return dict(zip(function.__code__.co_freevars, (cell.cell_contents for cell in function.__closure__ or ())))


def _band(mask_function: Callable[..., Any]) -> Optional[Band]:
    """(left, right) of a mask function that is one of transformers' own bands."""
    if mask_function is masking_utils.causal_mask_function:
        return None, 0
    if mask_function is masking_utils.bidirectional_mask_function:
        return None, None
    if torch.compiler.is_compiling():  # which cannot look into a function
        return None
    both = _closure(mask_function, "and_masks").get("mask_functions", ())
    if len(both) != 2 or both[1] is not masking_utils.causal_mask_function:
        return None
    window = _closure(both[0], "sliding_window_overlay").get("sliding_window")
    return None if window is None else (window - 1, 0)


def _packed(mask_function: Callable[..., Any]) -> Optional[tuple[Band, Tensor]]:
    """The band and the number of each token's sequence, int [B, S], where `mask_function` is that of a packed batch."""
    both = _closure(mask_function, "and_masks").get("mask_functions", ())
    if len(both) != 2:
        return None
    inner = _closure(both[0], "remap_positions_for_packed_sequence").get("mask_function")
    packed = _closure(both[1], "packed_sequence_mask_function").get("packed_sequence_mask")
    band = None if inner is None or packed is None else _band(inner)
    return None if band is None or packed is None else (band, packed)


def tilewise_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Union[int, Tensor] = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: Union[Tensor, VisibleKeys, None] = None,
    use_vmap: bool = False,
    device: Union[torch.device, str] = "cpu",
    **kwargs: Any,
) -> VisibleKeys:
    """The mask function that transformers calls once for each forward pass and kind of layer."""
    if isinstance(attention_mask, VisibleKeys):
        return attention_mask
    if torch.compiler.is_compiling() and (attention_mask is not None or _band(mask_function) is None):
        # Nothing may depend on what a tensor holds, so all rows of the mask are asked.
        rows = masking_utils.sdpa_mask(
            batch_size=batch_size, q_length=q_length, kv_length=kv_length, q_offset=q_offset, kv_offset=kv_offset, mask_function=mask_function,  # type: ignore[arg-type]
            attention_mask=attention_mask, allow_is_causal_skip=False, use_vmap=use_vmap, device=device,
        )  # fmt: skip
        assert rows is not None
        return VisibleKeys(Mask.spans(_compiled.spans_of_rows(rows.expand(batch_size, 1, q_length, kv_length)[:, 0])[None]), kv_length, False, None, is_traced=True)
    first = int(q_offset) - kv_offset  # of the keys, where the queries begin
    band = _band(mask_function)
    num_keys = kv_length
    if band is not None and band[1] == 0:
        num_keys = min(kv_length, first + q_length)  # the rest of a static cache lies in the future
    padding = None
    if attention_mask is not None:
        padded = masking_utils.prepare_padding_mask(attention_mask, kv_length, kv_offset)
        assert padded is not None
        padding = padded[:, kv_offset : kv_offset + num_keys]
        if padding.all():
            padding = None
    aligned = band is not None and (band[1] is None or first + q_length == num_keys)
    if band is not None and aligned and padding is None:
        return VisibleKeys(Mask.band(*band), num_keys, True, band[0])
    if band is not None and padding is not None:
        spans = _spans_of_padding(band, first, q_length, padding)
        visible = VisibleKeys(None, num_keys, False, None, Mask.band(*band), functools.partial(_padded_sequences, band, first, q_length, padding))
        if spans is None and not visible.sequences:
            spans = _evaluated(batch_size, q_length, num_keys, int(q_offset), kv_offset, mask_function, attention_mask, use_vmap, device)
        visible.mask = None if spans is None else Mask.spans(spans)
        return visible
    packed = _packed(mask_function) if padding is None and band is None else None
    if packed is not None and first == 0 and packed[1].shape == (batch_size, num_keys) and q_length == num_keys:
        return _packed_batch(*packed)
    spans = _evaluated(batch_size, q_length, num_keys, int(q_offset), kv_offset, mask_function, attention_mask, use_vmap, device)
    return VisibleKeys(Mask.spans(spans), num_keys, False, None)


def _padded_sequences(band: Band, first: int, q_length: int, padding: Tensor) -> tuple[Tokens, ...]:
    """The real tokens of each entry; none where leaving padding out would widen a window."""
    sequences, computed_padding = [], []
    for entry, real in enumerate(padding.cpu()):
        keys = real.nonzero()[:, 0]
        if band[0] is not None and keys.numel() and int(keys[-1] - keys[0]) + 1 != keys.numel():
            return ()
        if band[1] is None and q_length != real.numel():  # cross-attention: the padding is that of other tokens than the queries
            sequences.append(Tokens(entry, torch.arange(q_length), keys))
            continue
        queries = real[first : first + q_length].nonzero()[:, 0]
        sequences.append(Tokens(entry, queries, keys))
        if band[1] is None:
            computed_padding.append(Tokens(entry, (~real).nonzero()[:, 0], keys, is_padding=True))
    return (*sequences, *computed_padding)


def _spans_of_padding(band: Band, first: int, q_length: int, padding: Tensor) -> Optional[Tensor]:
    """Spans where each sequence's tokens are neighbours (left or right padding); None where they are not."""
    count = padding.sum(1, keepdim=True)
    start = padding.int().argmax(1, keepdim=True)
    stop = start + count
    place = torch.arange(padding.shape[1], device=padding.device)
    if not torch.equal(padding, (place >= start) & (place < stop)):
        return None
    return _spans_of_band(band, first + torch.arange(q_length, device=padding.device), start.expand(-1, q_length), stop.expand(-1, q_length))


def _packed_batch(band: Band, number: Tensor) -> VisibleKeys:
    sequences, starts, stops = [], torch.zeros_like(number), torch.zeros_like(number)
    for entry, row in enumerate(number.cpu()):
        start = 0
        for length in torch.unique_consecutive(row, return_counts=True)[1].tolist():
            tokens = torch.arange(start, start + length)
            sequences.append(Tokens(entry, tokens, tokens))
            starts[entry, start : start + length], stops[entry, start : start + length] = start, start + length
            start += length
    spans = _spans_of_band(band, torch.arange(number.shape[1], device=number.device), starts, stops)
    return VisibleKeys(Mask.spans(spans), number.shape[1], False, None, Mask.band(*band), lambda: tuple(sequences))


def _spans_of_band(band: Band, token: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    """int32 [1, B, Sq, 4]: what a band lets query `token` [Sq] see of the keys [start, stop), both [B, Sq]."""
    left, right = band
    low = start if left is None else torch.maximum(start, token - left)
    high = stop if right is None else torch.minimum(stop, token + right + 1)
    seen = high > low
    spans = torch.zeros(1, *start.shape, 4, dtype=torch.int32)
    spans[0, :, :, 0], spans[0, :, :, 1] = torch.where(seen, low, 0), torch.where(seen, high, 0)
    return spans


def _evaluated(
    batch: int, q_length: int, keys: int, q_offset: int, kv_offset: int, mask_function: Callable[..., Any], attention_mask: Optional[Tensor],
    use_vmap: bool, device: Union[torch.device, str],
) -> Tensor:  # fmt: skip
    """Spans of any mask function, by asking it a few rows at a time."""
    parts = []
    for row in range(0, q_length, _ROWS):
        rows = min(_ROWS, q_length - row)
        allowed = masking_utils.sdpa_mask(
            batch_size=batch, q_length=rows, kv_length=keys, q_offset=q_offset + row, kv_offset=kv_offset, mask_function=mask_function,
            attention_mask=attention_mask, allow_is_causal_skip=False, use_vmap=use_vmap, device=device,
        )  # fmt: skip
        assert allowed is not None  # it may not be left out
        parts.append(spans_of_rows(allowed.expand(batch, 1, rows, keys)[:, 0]))
    return torch.cat(parts, 1)[None] if parts else torch.zeros(1, batch, 0, 4, dtype=torch.int32)
