# SPDX-License-Identifier: Apache-2.0
"""Plans to and from other libraries' block lists: every round trip is exact, or refused with the part named."""

import numpy
import pytest
import scipy.sparse
import torch
from conftest import problem, random_plan
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask, flex_attention

import tilewise
from tilewise import exchange


def block_plan(seqlen_q=256, seqlen_k=256, batch=2, heads=4, block=(64, 64), mask=None, density=0.5, seed=0):
    """A plan of random whole blocks under a mask."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = -(-seqlen_q // block[0]), -(-seqlen_k // block[1])
    blocks = torch.rand(batch, heads, rows, columns, generator=generator) < density
    bits = blocks.repeat_interleave(block[0], 2).repeat_interleave(block[1], 3)[:, :, :seqlen_q, :seqlen_k]
    mask = tilewise.Mask.full() if mask is None else mask
    dense = tilewise.plan(torch.zeros(batch, heads, seqlen_q, 8), torch.zeros(batch, heads, seqlen_k, 8), "dense", mask).to_bits()
    return tilewise.plan_of_bits(bits & dense, mask, tile=64)


MASKS = [tilewise.Mask.full(), tilewise.Mask.causal(), tilewise.Mask.band(left=90, right=5, sink=7), tilewise.Mask.bands([(None, 0, 0), (70, 0, 3)], [0, 1, 1, 0])]
LENGTHS = [(256, 256), (200, 330), (64, 300)]


@pytest.mark.parametrize("mask", MASKS, ids=repr)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_block_mask(mask, lengths):
    plan = block_plan(*lengths, mask=mask)
    block_mask = exchange.to_block_mask(plan, 64, 64)
    assert block_mask.kv_indices.shape[-1] == -(-lengths[1] // 64)
    # What FlexAttention itself makes of it.
    flex_bits = torch.zeros(2, 4, *lengths, dtype=torch.bool)
    pairs = create_mask(block_mask.mask_mod, 2, 4, *lengths, device="cpu")
    for b in range(2):
        for h in range(4):
            for row in range(-(-lengths[0] // 64)):
                at = (min(b, block_mask.kv_num_blocks.shape[0] - 1), min(h, block_mask.kv_num_blocks.shape[1] - 1), row)
                rows = slice(64 * row, 64 * row + 64)
                for i in block_mask.kv_indices[at][: block_mask.kv_num_blocks[at]].tolist():
                    flex_bits[b, h, rows, 64 * i : 64 * i + 64] = pairs[b, h, rows, 64 * i : 64 * i + 64]
                for i in block_mask.full_kv_indices[at][: block_mask.full_kv_num_blocks[at]].tolist():
                    flex_bits[b, h, rows, 64 * i : 64 * i + 64] = True
    assert torch.equal(flex_bits, plan.to_bits())
    again = exchange.from_block_mask(block_mask, batch=2, heads_q=4, mask=mask)
    assert torch.equal(again.to_bits(), plan.to_bits())


@pytest.mark.filterwarnings("ignore")
def test_flex_attention_agrees():
    q, k, v = problem(batch=2, heads=4, heads_kv=4, seqlen_q=256, seqlen_k=256)
    plan = block_plan(mask=tilewise.Mask.causal(), density=0.7) | tilewise.plan(q, k, "random", density=0.1, tile=64)
    expected = flex_attention(q, k, v, block_mask=exchange.to_block_mask(plan, 64, 64))
    assert torch.allclose(tilewise.attend(q, k, v, plan), expected, atol=1e-5)


def test_block_mask_of_flex():
    mod = lambda b, h, q, k: (q >= k) & ((q - k < 70) | (k % (h + 2) == 0))  # noqa: E731
    block_mask = create_block_mask(mod, 1, 3, 200, 200, device="cpu", BLOCK_SIZE=(64, 32))
    plan = exchange.from_block_mask(block_mask, batch=2, mask=tilewise.Mask.causal())
    assert torch.equal(plan.to_bits(), create_mask(mod, 2, 3, 200, 200, device="cpu"))
    with pytest.raises(NotImplementedError, match="head 0 reads the block of 64 queries from .* in part, and not as the plan's mask"):
        exchange.to_block_mask(plan, 64, 64)
    back = exchange.from_block_mask(exchange.to_block_mask(plan, 64, 64, pairs=True), batch=2, heads_q=3, mask=tilewise.Mask.causal())
    assert torch.equal(back.to_bits(), plan.to_bits()) and back.content_hash == plan.retile(64).content_hash


def test_other_objects_are_named():
    for take, kind in ((exchange.from_block_mask, "BlockMask"), (lambda x: exchange.from_flashinfer(x, heads_q=1), "Bsr"), (lambda x: exchange.from_sparge(x, 128, 128), "Tensor")):
        with pytest.raises(TypeError, match=f"is of type int, takes .*{kind}$"):
            take(3)


def test_block_masks_are_validated():
    """FlexAttention takes all of these."""
    index = torch.arange(4).expand(1, 1, 4, 4).int().contiguous()
    count = torch.full((1, 1, 4), 2, dtype=torch.int32)
    make = lambda c, i, fc=None, fi=None: BlockMask.from_kv_blocks(c, i, fc, fi, BLOCK_SIZE=64)  # noqa: E731
    exchange.from_block_mask(make(count, index)).validate()

    def broken(count=count, index=index, **full):
        block_mask = make(torch.full((1, 1, 4), 1, dtype=torch.int32), index.clamp(0, 3), *full.values())
        block_mask.kv_num_blocks, block_mask.kv_indices = count, index
        return block_mask

    bad = count.clone()
    bad[0, 0, 2] = 9
    with pytest.raises(ValueError, match=r"the count at \[0, 0, 2\] is 9, takes 0 to 4"):
        exchange.from_block_mask(broken(count=bad))
    bad = index.clone()
    bad[0, 0, 1, 0] = 1
    with pytest.raises(ValueError, match="lists block 1 2 times"):
        exchange.from_block_mask(broken(index=bad))
    bad = index.clone()
    bad[0, 0, 3, 1] = 4
    with pytest.raises(ValueError, match=r"the block at \[0, 0, 3, 1\] is 4, takes 0 to 3"):
        exchange.from_block_mask(broken(index=bad))
    with pytest.raises(ValueError, match="as partial and as full"):
        exchange.from_block_mask(make(count, index, count, index))


def test_fa4_lists():
    plan = block_plan(256, 384, block=(128, 128), mask=tilewise.Mask.causal())
    lists, mod = exchange.block_lists(plan)
    assert lists.full_index.shape == (2, 4, 2, 3) and lists.partial_count.dtype == torch.int32
    again = exchange.plan_of_block_lists(lists, mod, batch=2, heads_q=4, mask=tilewise.Mask.causal())
    assert torch.equal(again.to_bits(), plan.to_bits())
    with pytest.raises(ValueError, match="for batch 2 and 4 heads, the plan for 3 and 4"):
        exchange.plan_of_block_lists(lists, mod, batch=3, heads_q=4)


@pytest.mark.parametrize("has_mask", [False, True])
def test_flashinfer(has_mask):
    plan = block_plan(batch=1, heads=1, seqlen_q=200, seqlen_k=330, block=(32, 16))
    bsr = exchange.to_flashinfer(plan, 32, 16, has_mask=has_mask)
    again = exchange.from_flashinfer(bsr, heads_q=3)
    assert torch.equal(again.to_bits(), plan.to_bits().expand(1, 3, -1, -1))
    assert again.to_bits().any()


def test_flashinfer_refuses():
    with pytest.raises(NotImplementedError, match="batch 2 and 4 lists"):
        exchange.to_flashinfer(block_plan(), 64, 64)
    with pytest.raises(NotImplementedError, match="head 0"):
        exchange.to_flashinfer(block_plan(batch=1, heads=1, mask=tilewise.Mask.causal(), density=0.9), 64, 64)
    bsr = exchange.to_flashinfer(block_plan(batch=1, heads=1, density=0.9), 64, 64)
    with pytest.raises(ValueError):
        exchange.from_flashinfer(exchange.Bsr(bsr.indptr.flip(0), bsr.indices, None, 256, 256, 64, 64), heads_q=1)
    with pytest.raises(ValueError):
        exchange.from_flashinfer(exchange.Bsr(bsr.indptr, bsr.indices + 9, None, 256, 256, 64, 64), heads_q=1)
    causal = exchange.from_flashinfer(bsr, heads_q=1, is_causal=True).to_bits()
    assert torch.equal(causal, exchange.from_flashinfer(bsr, heads_q=1).to_bits().tril())


@pytest.mark.parametrize("is_causal", [False, True])
def test_sparge(is_causal):
    mask_id = (torch.rand(2, 3, 3, 5) < 0.5).to(torch.int8)
    plan = exchange.from_sparge(mask_id, 300, 300, is_causal=is_causal)
    bits = mask_id.bool().repeat_interleave(128, 2).repeat_interleave(64, 3)[:, :, :300, :300]
    assert torch.equal(plan.to_bits(), bits.tril() if is_causal else bits)
    again = exchange.to_sparge(plan)
    if is_causal:  # what the mask hides altogether is not written
        mask_id &= (torch.arange(5) * 64 < (torch.arange(3)[:, None] + 1) * 128).to(torch.int8)
    assert torch.equal(again, mask_id)
    with pytest.raises(ValueError, match="takes .B, H, 3, 5."):
        exchange.from_sparge(mask_id[..., :4], 300, 300)
    with pytest.raises(ValueError, match="other than 0 and 1"):
        exchange.from_sparge(mask_id * 2, 300, 300)
    q, k, _ = problem(seqlen_q=300, seqlen_k=300)
    with pytest.raises(NotImplementedError, match="SpargeAttn has causal and none"):
        exchange.to_sparge(tilewise.plan(q, k, "a_shape", init=3, local=50))
    with pytest.raises(NotImplementedError, match="in part"):
        exchange.to_sparge(random_plan(q, k, tile=16))


def test_scipy():
    plan = block_plan(192, 256, mask=tilewise.Mask.causal())
    for b, head in ((0, 0), (1, 3)):
        matrix = exchange.to_scipy(plan, 32, 64, b=b, head=head)
        assert numpy.array_equal(matrix.toarray(), plan.to_bits()[b, head].numpy())
        again = exchange.from_scipy(matrix, heads_q=2, mask=tilewise.Mask.causal())
        assert torch.equal(again.to_bits()[0, 1], plan.to_bits()[b, head])
    entries = scipy.sparse.random_array((50, 70), density=0.1, rng=0, format="csr")
    assert numpy.array_equal(exchange.from_scipy(entries).to_bits()[0, 0].numpy(), entries.toarray() != 0)
    with pytest.raises(NotImplementedError, match="do not divide"):
        exchange.to_scipy(plan, 50, 64)


def test_orders_have_no_place():
    q, k, _ = problem(batch=1, seqlen_q=64, seqlen_k=64)
    order = torch.randperm(64).int()[None, None]
    plan = tilewise.plan(q, k, "dense", tilewise.Mask.full(), order_q=order, order_k=order)
    for convert in (exchange.to_block_mask, exchange.to_sparge, lambda p: exchange.to_flashinfer(p, 32, 32), exchange.to_scipy):
        with pytest.raises(NotImplementedError, match="order"):
            convert(plan)


def test_masks_come_back():
    q, k, _ = problem(seqlen_q=64, seqlen_k=64)
    spans = torch.tensor([[[0, 30, 40, 50]] * 64] * 2, dtype=torch.int32)[None]
    for mask in (*MASKS, tilewise.Mask.spans(spans), tilewise.Mask.neighbourhood([tilewise.Axis(8, 3), tilewise.Axis(8, 3, is_causal=True)])):
        got = tilewise.plan(q, k, "dense", mask).mask
        assert got.numbers == mask.numbers
        assert (got.spans_tensor is None) == (mask.spans_tensor is None) and (got.spans_tensor is None or torch.equal(got.spans_tensor, mask.spans_tensor))
