# SPDX-License-Identifier: Apache-2.0
"""The masks of transformers as masks of tilewise: a band or spans, never a dense S x S."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Optional, Union

import torch
from torch import Tensor
from transformers import masking_utils

from ._mask import Mask
from ._plan import Plan

_ROWS = 128  # queries whose mask is evaluated together where it is not one of the known ones


@dataclasses.dataclass
class VisibleKeys:
    """What an attention layer gets for a mask: which keys each query sees, and how many of the keys are written at all."""

    mask: Mask
    num_keys: int  # the first so many of the keys; the queries are the last of them, or nothing depends on where they stand
    is_band: bool  # the same for every sequence: decode takes it without a plan
    left: Optional[int]
    plans: dict[Any, Plan] = dataclasses.field(default_factory=dict)  # that depend on lengths alone
    ndim: int = 4  # with a static cache, generate() hands it to the model as a mask, and the model back to tilewise_mask


def _band(mask_function: Callable[..., Any]) -> Optional[tuple[Optional[int], Optional[int]]]:
    """(left, right) of a mask function that is one of transformers' own bands."""
    if mask_function is masking_utils.causal_mask_function:
        return None, 0
    if mask_function is masking_utils.bidirectional_mask_function:
        return None, None
    if getattr(mask_function, "__qualname__", "") != "and_masks.<locals>.and_mask":
        return None
    parts = mask_function.__closure__[0].cell_contents  # type: ignore[index]
    if len(parts) != 2 or getattr(parts[0], "__qualname__", "") != "sliding_window_overlay.<locals>.inner_mask" or parts[1] is not masking_utils.causal_mask_function:
        return None
    return parts[0].__closure__[0].cell_contents - 1, 0


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
        spans = _padded_band(band, first, q_length, padding)
        if spans is not None:
            return VisibleKeys(Mask.spans(spans), num_keys, False, None)
    spans = _evaluated(batch_size, q_length, num_keys, int(q_offset), kv_offset, mask_function, attention_mask, use_vmap, device)
    return VisibleKeys(Mask.spans(spans), num_keys, False, None)


def _padded_band(band: tuple[Optional[int], Optional[int]], first: int, q_length: int, padding: Tensor) -> Optional[Tensor]:
    """Spans where each sequence's tokens are neighbours (left or right padding); None where they are not."""
    keys = padding.shape[1]
    count = padding.sum(1)
    start = padding.int().argmax(1)
    stop = start + count
    place = torch.arange(keys, device=padding.device)
    if not torch.equal(padding, (place >= start[:, None]) & (place < stop[:, None])):
        return None
    left, right = band
    token = first + torch.arange(q_length, device=padding.device)
    low = start[:, None].expand(-1, q_length) if left is None else torch.maximum(start[:, None], token - left)
    high = stop[:, None].expand(-1, q_length) if right is None else torch.minimum(stop[:, None], token + right + 1)
    high = torch.maximum(low, high)
    spans = torch.zeros(1, padding.shape[0], q_length, 4, dtype=torch.int32)
    seen = high > low
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


def spans_of_rows(allowed: Tensor) -> Tensor:
    """int32 [..., 4] of bool [..., Sk]: the at most two ranges of keys of each row. Errors: NotImplementedError."""
    starts = allowed.clone()
    starts[..., 1:] &= ~allowed[..., :-1]
    if int(starts.sum(-1).max() if starts.numel() else 0) > 2:
        raise NotImplementedError(
            'attn_implementation="tilewise": the mask lets a query see more than two ranges of keys, which a mask of tilewise cannot say; '
            "pack sequences without gaps, or give this model another attn_implementation"
        )
    number = starts.int().cumsum(-1)
    spans = torch.zeros(*allowed.shape[:-1], 4, dtype=torch.int32)
    for i in (1, 2):
        part = allowed & (number == i)
        length = part.sum(-1)
        start = torch.where(length > 0, part.int().argmax(-1), 0)
        spans[..., 2 * i - 2], spans[..., 2 * i - 1] = start, start + length
    return spans


def mask_of_4d(mask: Tensor) -> Tensor:
    """bool of a ready-made 4-D mask: bool, or 0 and a huge negative number to be added. Errors: NotImplementedError (a mask that adds anything else)."""
    if mask.dtype == torch.bool:
        return mask
    allowed = mask == 0
    hidden = mask <= torch.finfo(mask.dtype).min / 2
    if not (allowed | hidden).all():
        raise NotImplementedError('attn_implementation="tilewise": the 4-D mask adds numbers other than 0 and -inf, and a bias is not computed')
    return allowed
