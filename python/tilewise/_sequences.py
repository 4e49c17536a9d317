# SPDX-License-Identifier: Apache-2.0
"""Padded and packed batches: each sequence is planned and attended on its own tokens, as if nothing else were there."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokens of one entry of a batch that make a sequence: places on the axes of queries and of keys, int64, ascending. The last query is the last key's token."""

    entry: int
    queries: Tensor
    keys: Tensor
    is_padding: bool = False  # queries that a bidirectional model computes though nothing reads them: they see every key of the sequence


def attend_each(q: Tensor, k: Tensor, v: Tensor, sequences: Sequence[Tokens], run: Callable[[Tensor, Tensor, Tensor, tuple[Tokens, ...]], Tensor]) -> Tensor:
    """[B, Hq, Sq, Dv] of run(q, k, v, sequences) on the tokens of each sequence, 0 elsewhere. Neighbours in the list of equal lengths run as one batch."""
    kept = [one for one in sequences if one.queries.numel() and one.keys.numel()]
    groups = [tuple(group) for _, group in itertools.groupby(kept, lambda one: (one.queries.numel(), one.keys.numel(), one.is_padding))]
    batch, heads, seqlen_q, _ = q.shape
    parts = zip(_cut(q, groups, "queries"), _cut(k, groups, "keys"), _cut(v, groups, "keys"), groups)
    outs = [run(part_q, part_k, part_v, group).transpose(1, 2).flatten(0, 1) for part_q, part_k, part_v, group in parts]
    if not outs:
        return q.new_zeros(batch, heads, seqlen_q, v.shape[3])
    rows = torch.cat(outs)  # of another dtype than q under autocast
    place = torch.cat([one.entry * seqlen_q + one.queries for one in kept]).to(q.device)
    out = rows.new_zeros(batch * seqlen_q, heads, v.shape[3]).index_copy(0, place, rows)
    return out.unflatten(0, (batch, seqlen_q)).transpose(1, 2)


def _cut(x: Tensor, groups: Sequence[tuple[Tokens, ...]], axis: str) -> list[Tensor]:
    """[sequences of the group, H, S, D] of each group. One gather and one split, so that backward is one of each, too."""
    entry, place, sizes = [], [], []
    for group in groups:
        for one in group:
            tokens: Tensor = getattr(one, axis)
            entry.append(torch.full_like(tokens, one.entry))
            place.append(tokens)
        sizes.append(len(group) * place[-1].numel())
    if not groups:
        return []
    rows = x.transpose(1, 2)[torch.cat(entry).to(x.device), torch.cat(place).to(x.device)]
    return [part.unflatten(0, (len(group), -1)).transpose(1, 2) for part, group in zip(rows.split(sizes), groups)]
