# SPDX-License-Identifier: Apache-2.0
"""Plans to and from the block lists of other libraries: FlexAttention, FlashAttention-4, FlashInfer, SpargeAttn, scipy.

Each conversion is exact, or refused (NotImplementedError) with the part that the other format cannot say. What comes in is validated (ValueError): nothing is trusted.
Blocks count tokens; orders and pooled keys have no place in any of these formats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from ._errors import call, expect
from ._mask import Mask
from ._operators import ops
from ._plan import Plan

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (b, h, q, k) -> bool, as FlexAttention has it


@dataclasses.dataclass(frozen=True)
class BlockLists:
    """Two lists of blocks for each row of blocks, as FlexAttention and FlashAttention-4 (BlockSparseTensorsTorch) have them, int32.

    count [B or 1, H or 1, Tq], index [B or 1, H or 1, Tq, Tk] (entries from the count on say nothing): `partial` blocks are read where a mask function says so, `full` ones whole.
    """

    partial_count: Tensor
    partial_index: Tensor
    full_count: Tensor
    full_index: Tensor
    block_q: int
    block_k: int
    seqlen_q: int
    seqlen_k: int


@dataclasses.dataclass(frozen=True)
class Bsr:
    """Block-sparse rows, as FlashInfer's BlockSparseAttentionWrapper.plan takes them: indptr [M / R + 1], indices [nnz], mask bool [nnz, R, C] or None, M x N tokens."""

    indptr: Tensor
    indices: Tensor
    mask: Optional[Tensor]
    M: int
    N: int
    R: int
    C: int


def _blocks(length: int, block: int) -> int:
    return -(-length // block)


@dataclasses.dataclass(frozen=True)
class _Tables:
    """Blocks that a plan reads in part or whole: table [B, G, Tq, most] of places in `indices`, `pairs` and `is_whole`; is_there says which entries count."""

    place: Tensor
    is_there: Tensor
    indices: Tensor
    pairs: Tensor  # bool [nnz, block_q, block_k]
    is_whole: Tensor  # bool [nnz]: every pair of real tokens


def _tables(plan: Plan, block_q: int, block_k: int) -> _Tables:
    indptr, indices, pairs = call(ops.plan_to_bsr.default, *plan._on_cpu(), block_q, block_k, True)
    start, stop = indptr[..., :-1].long(), indptr[..., 1:].long()
    most = int((stop - start).max()) if start.numel() else 0
    steps = torch.arange(most)
    is_there = steps < (stop - start)[..., None]
    place = torch.where(is_there, start[..., None] + steps, 0)
    row = torch.zeros(len(indices), dtype=torch.long)
    rows = torch.arange(start.shape[-1])[:, None].expand_as(place)
    row[place[is_there]] = rows[is_there]  # shared blocks stand in equal rows
    real = (row[:, None] * block_q + torch.arange(block_q) < plan.seqlen_q)[:, :, None] & (indices[:, None].long() * block_k + torch.arange(block_k) < plan.seqlen_k)[:, None]
    return _Tables(place, is_there, indices, pairs, (pairs | ~real).flatten(1).all(1))


def _per_head(tensor: Tensor, heads: int) -> Tensor:
    """[B, G, ...] as [B, 1 or heads, ...]."""
    groups = tensor.shape[1]
    return tensor if groups in (1, heads) else tensor.repeat_interleave(heads // groups, 1)


def _band_mod(plan: Plan, function: str) -> MaskMod:
    """The plan's mask as a mask function. Errors: NotImplementedError (spans, neighbourhoods)."""
    numbers = plan.mask.numbers
    if numbers[0] != 0:
        raise NotImplementedError(f"{function}: the plan's mask is {plan.mask}, which a mask function of a few numbers cannot say; give pairs=True")
    return _mod_of_bands(numbers, plan.heads_q, plan.seqlen_k - plan.seqlen_q)


def _mod_of_bands(numbers: list[int], heads_q: int, shift: int) -> MaskMod:
    classes, heads = numbers[2], numbers[4]
    bands = torch.tensor(numbers[5 : 5 + 3 * classes]).view(classes, 3)
    class_of_head = torch.tensor(numbers[5 + 3 * classes :]) if heads else torch.zeros(heads_q, dtype=torch.long)
    # An open side is as far as anything lies; sums with 2^63 - 1 would overflow.
    left, right, sink = bands.clamp(max=2**40)[class_of_head].T.contiguous()
    if classes == 1:
        one_left, one_right, one_sink = (int(x[0]) for x in (left, right, sink))

        def mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (k <= q + (shift + one_right)) & ((k >= q + (shift - one_left)) | (k < one_sink))

        return mod

    def mod_of_heads(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q + shift + right[h]) & ((k >= q + shift - left[h]) | (k < sink[h]))

    return mod_of_heads


def _coordinates(tables: _Tables, chosen: Tensor, block_q: int, block_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """b, group, q [n, block_q, 1] and k [n, 1, block_k] of the chosen entries of a table."""
    b, g, row, _ = (x[:, None, None] for x in torch.nonzero(chosen, as_tuple=True))
    column = tables.indices[tables.place[chosen]].long()[:, None, None]
    return b, g, row * block_q + torch.arange(block_q)[:, None], column * block_k + torch.arange(block_k)


def _check_partial(plan: Plan, tables: _Tables, mod: MaskMod, block_q: int, block_k: int, function: str, way_on: str) -> None:
    """Refuses blocks that are read in part otherwise than `mod` says."""
    heads = plan.heads_q
    groups = tables.place.shape[1]
    for head in range(heads):  # heads of one list may have masks of their own
        of_head = torch.zeros_like(tables.is_there)
        group = head * groups // heads
        of_head[:, group] = tables.is_there[:, group]
        b, _, q, k = _coordinates(tables, of_head, block_q, block_k)
        expected = mod(b, torch.tensor(head), q, k) & (q < plan.seqlen_q) & (k < plan.seqlen_k) & torch.ones(len(b), 1, 1, dtype=torch.bool)
        places = tables.place[of_head]
        wrong = ((tables.pairs[places] != expected).flatten(1).any(1) & ~tables.is_whole[places]).nonzero()
        if len(wrong):
            i = int(wrong[0])
            raise NotImplementedError(
                f"{function}: head {head} reads the block of {block_q} queries from {int(q[i, 0, 0])} and {block_k} keys from {int(k[i, 0, 0])} in part, and not as the "
                f"plan's mask ({plan.mask}) says: such pairs (bits of rows, picked keys, runs that end within a block) have no place there; {way_on}"
            )


def block_lists(plan: Plan, block_q: int = 128, block_k: int = 128, *, pairs: bool = False) -> tuple[BlockLists, MaskMod]:
    """The blocks that a plan reads, and the mask function that its partial blocks are read with: FlashAttention-4's lists and mask_mod.

    pairs  where a block is read in part otherwise than the plan's mask says: True looks every pair up in bool [B, Hq, Sq, Sk], False refuses the plan.
    """
    tables = _tables(plan, block_q, block_k)
    if pairs:
        bits = plan.to_bits()

        def mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return bits[b, h, q, k]

    else:
        mod = _band_mod(plan, "block_lists")  # type: ignore[assignment]
        _check_partial(plan, tables, mod, block_q, block_k, "block_lists", "give pairs=True, or other blocks")
    width = _blocks(plan.seqlen_k, block_k)

    def lists(select: Tensor) -> tuple[Tensor, Tensor]:
        chosen = tables.is_there & select[tables.place] if len(select) else tables.is_there
        order = torch.argsort((~chosen).to(torch.uint8), dim=-1, stable=True)
        index = torch.zeros(*chosen.shape[:-1], width, dtype=torch.int32)  # FlexAttention wants all key blocks in the last axis
        if chosen.shape[-1]:
            ordered = torch.gather(tables.indices[tables.place], -1, order)
            index[..., : chosen.shape[-1]] = torch.where(torch.gather(chosen, -1, order), ordered, 0)
        return _per_head(chosen.sum(-1).int(), plan.heads_q), _per_head(index, plan.heads_q)

    partial, full = lists(~tables.is_whole), lists(tables.is_whole)
    return BlockLists(*partial, *full, block_q, block_k, plan.seqlen_q, plan.seqlen_k), mod


def _check_lists(count: Tensor, index: Tensor, rows: int, columns: int, name: str) -> Tensor:
    """bool [B, H, rows, columns]: which blocks are listed. Errors: ValueError."""
    if count.dim() != 3 or index.dim() != 4 or index.shape[:3] != count.shape or count.shape[2] != rows:
        raise ValueError(f"{name}: count is {list(count.shape)} and index {list(index.shape)}, takes [B or 1, H or 1, {rows}] and the same with the blocks behind")
    count, index = count.long().cpu(), index.long().cpu()
    width = index.shape[3]
    if count.numel() and (int(count.min()) < 0 or int(count.max()) > width):
        bad = torch.nonzero((count < 0) | (count > width))[0].tolist()
        raise ValueError(f"{name}: the count at {bad} is {int(count[tuple(bad)])}, takes 0 to {width}")
    used = torch.arange(width) < count[..., None]
    wrong = used & ((index < 0) | (index >= columns))
    if wrong.any():
        bad = torch.nonzero(wrong)[0].tolist()
        raise ValueError(f"{name}: the block at {bad} is {int(index[tuple(bad)])}, takes 0 to {columns - 1}")
    times = torch.zeros(*count.shape, columns + 1, dtype=torch.int32)
    times.scatter_add_(3, torch.where(used, index, columns), torch.ones_like(index, dtype=torch.int32))
    times = times[..., :columns]
    if (times > 1).any():
        bad = torch.nonzero(times > 1)[0].tolist()
        raise ValueError(f"{name}: row {bad[:3]} lists block {bad[3]} {int(times[tuple(bad)])} times")
    return times > 0


def plan_of_block_lists(lists: BlockLists, mask_mod: Optional[MaskMod] = None, *, batch: int = 1, heads_q: int = 1, mask: Optional[Mask] = None, tile: int = 0) -> Plan:
    """The plan that reads these blocks: full ones whole, partial ones where mask_mod says so (None: whole, too).

    batch, heads_q  what axes of size 1 broadcast to. mask: the model's mask, which every pair must satisfy (default full). tile: slots of a row; 0: block_q, if a plan can have it.
    Errors          ValueError: counts beyond their row, blocks out of range or listed twice, in one list or in both.
    """
    block_q, block_k = lists.block_q, lists.block_k
    rows, columns = _blocks(lists.seqlen_q, block_q), _blocks(lists.seqlen_k, block_k)
    partial = _check_lists(lists.partial_count, lists.partial_index, rows, columns, "partial blocks")
    full = _check_lists(lists.full_count, lists.full_index, rows, columns, "full blocks")
    both = partial & full
    if both.any():
        bad = torch.nonzero(both)[0].tolist()
        raise ValueError(f"row {bad[:3]} lists block {bad[3]} as partial and as full")
    entries, heads = max(partial.shape[0], full.shape[0]), max(partial.shape[1], full.shape[1])
    if entries not in (1, batch) or heads_q % heads:
        raise ValueError(f"the lists are for batch {entries} and {heads} heads, the plan for {batch} and {heads_q}")
    if mask_mod is not None and partial.any():  # it may tell heads and sequences apart where the lists do not
        entries, heads = batch, heads_q
    partial, full = partial.expand(entries, heads, -1, -1), full.expand(entries, heads, -1, -1)
    read = partial | full
    pairs = None
    if mask_mod is not None and partial.any():
        b, h, row, column = torch.nonzero(read, as_tuple=True)
        pairs = torch.ones(len(b), block_q, block_k, dtype=torch.bool)
        chosen = torch.nonzero(partial[b, h, row, column])[:, 0]
        # As FlexAttention evaluates it: one number at a time under vmap, so that any function that works there works here.
        evaluate = torch.vmap(torch.vmap(torch.vmap(mask_mod, in_dims=(None, None, None, 0)), in_dims=(None, None, 0, None)))
        for part in chosen.split(max(1, (1 << 22) // (block_q * block_k))):
            q = row[part][:, None] * block_q + torch.arange(block_q)
            k = column[part][:, None] * block_k + torch.arange(block_k)
            # Places past the end are asked about the last token, and left out.
            allowed = evaluate(b[part], h[part], q.clamp(max=lists.seqlen_q - 1), k.clamp(max=lists.seqlen_k - 1))
            pairs[part] = allowed.to(torch.bool)
        q, k = row[:, None] * block_q + torch.arange(block_q), column[:, None] * block_k + torch.arange(block_k)
        pairs &= (q < lists.seqlen_q)[:, :, None] & (k < lists.seqlen_k)[:, None]
        if mask is not None and mask.numbers[0] == 0:  # where every block is read as the mask says, the mask says it all, and runs need no bits of rows
            of_mask = _mod_of_bands(mask.numbers, heads_q, lists.seqlen_k - lists.seqlen_q)(b[:, None, None], h[:, None, None], q[:, :, None], k[:, None])
            if torch.equal(of_mask & (q < lists.seqlen_q)[:, :, None] & (k < lists.seqlen_k)[:, None], pairs):
                pairs = None
    return plan_of_blocks(read, lists.seqlen_q, lists.seqlen_k, block_q, block_k, pairs=pairs, mask=mask, batch=batch, heads_q=heads_q, tile=tile)


def plan_of_blocks(
    read: Tensor, seqlen_q: int, seqlen_k: int, block_q: int, block_k: int, *,
    pairs: Optional[Tensor] = None, mask: Optional[Mask] = None, batch: int = 1, heads_q: int = 1, tile: int = 0,
) -> Plan:  # fmt: skip
    """The plan that reads the blocks that are true in bool [B or 1, H or 1, Tq, Tk]; with `pairs`, bool [blocks that are true, block_q, block_k], those of their pairs. The others as
    in :func:`plan_of_block_lists`; `Plan.tiles` is the way back."""
    mask = Mask.full() if mask is None else mask
    counts = read.sum(-1)
    total = torch.cumsum(counts.flatten(), 0).view_as(counts)
    indptr = torch.cat([(total - counts)[..., :1], total], -1).int()
    indices = torch.nonzero(read)[:, 3].int()
    sizes = (seqlen_q, seqlen_k, block_q, block_k, tile)
    return Plan(*call(ops.plan_of_bsr.default, indptr, indices, pairs, *sizes, mask.numbers, mask.spans_tensor, batch, heads_q))


# FlexAttention.


def to_block_mask(plan: Plan, block_q: int = 128, block_k: int = 128, *, pairs: bool = False) -> BlockMask:
    """FlexAttention's BlockMask of a plan. `pairs`: see :func:`block_lists`."""
    lists, pair_mod = block_lists(plan, block_q, block_k, pairs=pairs)
    shape = (_blocks(plan.seqlen_q, block_q), _blocks(plan.seqlen_k, block_k))
    read = _check_lists(lists.partial_count, lists.partial_index, *shape, "partial") | _check_lists(lists.full_count, lists.full_index, *shape, "full")
    entries, heads = read.shape[:2]

    # flex_attention without torch.compile asks the function alone and not the lists, so it must know the blocks, too.
    def mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return read[b if entries > 1 else 0, h if heads > 1 else 0, q // block_q, k // block_k] & pair_mod(b, h, q, k)

    return BlockMask.from_kv_blocks(
        lists.partial_count, lists.partial_index, lists.full_count, lists.full_index, (block_q, block_k), mod, (plan.seqlen_q, plan.seqlen_k)
    )  # fmt: skip


def from_block_mask(block_mask: BlockMask, *, batch: Optional[int] = None, heads_q: Optional[int] = None, mask: Optional[Mask] = None, tile: int = 0) -> Plan:
    """The plan of a BlockMask, validated: FlexAttention itself takes counts beyond a row and blocks that are listed twice.

    batch, heads_q  what axes of size 1 broadcast to. mask: the model's mask, the denominator of density.
    """
    expect("from_block_mask", BlockMask, block_mask=block_mask)
    block_q, block_k = block_mask.BLOCK_SIZE
    seqlen_q, seqlen_k = block_mask.seq_lengths
    count, index = block_mask.kv_num_blocks, block_mask.kv_indices
    full_count, full_index = block_mask.full_kv_num_blocks, block_mask.full_kv_indices
    if full_count is None or full_index is None:
        full_count, full_index = torch.zeros_like(count), torch.zeros_like(index)
    lists = BlockLists(count, index, full_count, full_index, block_q, block_k, seqlen_q, seqlen_k)
    entries, heads = count.shape[0], count.shape[1]
    return plan_of_block_lists(lists, block_mask.mask_mod, batch=batch or entries, heads_q=heads_q or heads, mask=mask, tile=tile)


# FlashInfer.


def to_flashinfer(plan: Plan, R: int, C: int, *, has_mask: bool = False) -> Bsr:
    """Block-sparse rows that all heads share. `has_mask`: blocks that are read in part are written with their pairs; without it they are refused."""
    indptr, indices, pairs = call(ops.plan_to_bsr.default, *plan._on_cpu(), R, C, has_mask)
    if plan.batch != 1 or (indptr != indptr[:1, :1]).any():
        raise NotImplementedError(f"to_flashinfer: the plan has batch {plan.batch} and {indptr.shape[1]} lists of rows; FlashInfer has one list for one sequence and all heads")
    return Bsr(indptr[0, 0], indices, pairs if has_mask else None, plan.seqlen_q, plan.seqlen_k, R, C)


def from_flashinfer(bsr: Bsr, *, heads_q: int, is_causal: bool = False, tile: int = 0) -> Plan:
    """The plan of block-sparse rows. `is_causal`: as FlashInfer's `causal`, it tests the pairs of all blocks. Errors: ValueError (rows that descend, blocks out of range or twice)."""
    expect("from_flashinfer", Bsr, bsr=bsr)
    mask = Mask.causal() if is_causal else Mask.full()
    sizes = (bsr.M, bsr.N, bsr.R, bsr.C, tile)
    indptr, indices = bsr.indptr.int().cpu()[None, None].contiguous(), bsr.indices.int().cpu().contiguous()
    pairs = None if bsr.mask is None else bsr.mask.cpu().contiguous()
    return Plan(*call(ops.plan_of_bsr.default, indptr, indices, pairs, *sizes, mask.numbers, mask.spans_tensor, 1, heads_q))


# SpargeAttn.

_SPARGE_Q, _SPARGE_K = 128, 64


def to_sparge(plan: Plan) -> Tensor:
    """SpargeAttn's mask_id, int8 [B, Hq, ceil(Sq / 128), ceil(Sk / 64)] of 0 and 1: blocks that are read whole, or as far as the plan's mask goes (causal or none)."""
    if plan.mask.numbers not in (Mask.causal().numbers, Mask.full().numbers):
        raise NotImplementedError(f"to_sparge: the plan's mask is {plan.mask}, SpargeAttn has causal and none")
    if plan.mask.numbers == Mask.causal().numbers and plan.seqlen_q != plan.seqlen_k:
        raise NotImplementedError(f"to_sparge: {plan.seqlen_q} queries and {plan.seqlen_k} keys; its causal mask wants equal lengths")
    tables = _tables(plan, _SPARGE_Q, _SPARGE_K)
    _check_partial(plan, tables, _band_mod(plan, "to_sparge"), _SPARGE_Q, _SPARGE_K, "to_sparge", "no way round it")
    blocks = torch.zeros(*tables.place.shape[:3], _blocks(plan.seqlen_k, _SPARGE_K), dtype=torch.int8)
    b, g, row, _ = torch.nonzero(tables.is_there, as_tuple=True)
    blocks[b, g, row, tables.indices[tables.place[tables.is_there]].long()] = 1
    return _per_head(blocks, plan.heads_q).expand(plan.batch, plan.heads_q, -1, -1).contiguous()


def from_sparge(mask_id: Tensor, seqlen_q: int, seqlen_k: int, *, is_causal: bool = False) -> Plan:
    """The plan of SpargeAttn's mask_id. Blocks that a causal mask hides altogether are left out, as there."""
    expect("from_sparge", Tensor, mask_id=mask_id)
    rows, columns = _blocks(seqlen_q, _SPARGE_Q), _blocks(seqlen_k, _SPARGE_K)
    if mask_id.dim() != 4 or mask_id.shape[2:] != (rows, columns):
        raise ValueError(f"from_sparge: mask_id is {list(mask_id.shape)}, takes [B, H, {rows}, {columns}] for {seqlen_q} queries and {seqlen_k} keys")
    if not ((mask_id == 0) | (mask_id == 1)).all():
        raise ValueError("from_sparge: mask_id holds numbers other than 0 and 1")
    batch, heads = mask_id.shape[:2]
    read = mask_id.cpu() != 0
    if is_causal:
        if seqlen_q != seqlen_k:
            raise ValueError(f"from_sparge: a causal mask over {seqlen_q} queries and {seqlen_k} keys; takes equal lengths")
        read = read & (torch.arange(columns) * _SPARGE_K < (torch.arange(rows)[:, None] + 1) * _SPARGE_Q)
    mask = Mask.causal() if is_causal else Mask.full()
    return plan_of_blocks(read, seqlen_q, seqlen_k, _SPARGE_Q, _SPARGE_K, mask=mask, batch=batch, heads_q=heads)


# scipy.


def to_scipy(plan: Plan, block_q: int = 0, block_k: int = 0, *, b: int = 0, head: int = 0) -> Any:
    """The allowed pairs of one head as a scipy.sparse.bsr_array of bool [Sq, Sk]. Blocks must divide the lengths (0: the plan's tile)."""
    import scipy.sparse

    block_q, block_k = block_q or plan.tile, block_k or plan.tile
    if plan.seqlen_q % block_q or plan.seqlen_k % block_k:
        raise NotImplementedError(f"to_scipy: blocks of {block_q} x {block_k} do not divide {plan.seqlen_q} x {plan.seqlen_k}, and scipy has no ragged ones")
    if not (0 <= b < plan.batch and 0 <= head < plan.heads_q):
        raise ValueError(f"to_scipy: sequence {b} and head {head} of a plan for batch {plan.batch} and {plan.heads_q} heads")
    indptr, indices, pairs = call(ops.plan_to_bsr.default, *plan._on_cpu(), block_q, block_k, True)
    rows = indptr[b if indptr.shape[0] > 1 else 0, head * indptr.shape[1] // plan.heads_q].numpy()
    part = slice(rows[0], rows[-1])
    return scipy.sparse.bsr_array((pairs[part].numpy(), indices[part].numpy(), rows - rows[0]), shape=(plan.seqlen_q, plan.seqlen_k))


def from_scipy(matrix: Any, *, batch: int = 1, heads_q: int = 1, mask: Optional[Mask] = None, tile: int = 0) -> Plan:
    """The plan that reads the entries of a scipy.sparse matrix [Sq, Sk] that are not 0, for every sequence and head. Other formats than BSR are taken, too."""
    import scipy.sparse

    mask = Mask.full() if mask is None else mask
    bsr = scipy.sparse.bsr_array(matrix)
    bsr.sum_duplicates()
    block_q, block_k = bsr.blocksize
    pairs = torch.from_numpy(bsr.data != 0)
    indptr = torch.from_numpy(bsr.indptr.astype("int32"))[None, None]
    indices = torch.from_numpy(bsr.indices.astype("int32"))
    sizes = (bsr.shape[0], bsr.shape[1], block_q, block_k, tile)
    return Plan(*call(ops.plan_of_bsr.default, indptr, indices, pairs, *sizes, mask.numbers, mask.spans_tensor, batch, heads_q))
