# SPDX-License-Identifier: Apache-2.0
"""Plans: made, counted, combined, saved, moved."""

import pytest
import torch
from conftest import problem, random_plan

import tilewise


def causal(seqlen_q, seqlen_k):
    return torch.arange(seqlen_k) <= torch.arange(seqlen_q)[:, None] + seqlen_k - seqlen_q


def test_dense_reads_what_the_mask_allows():
    q, k, _ = problem(seqlen_q=100, seqlen_k=150)
    plan = tilewise.plan(q, k, "dense", tile=32)
    assert (plan.batch, plan.heads_q, plan.seqlen_q, plan.seqlen_k, plan.tile) == (2, 4, 100, 150, 32)
    assert torch.equal(plan.to_bits(), causal(100, 150).expand(2, 4, -1, -1))
    assert plan.density == 1.0 and plan.allowed_pairs() == 8 * int(causal(100, 150).sum())
    assert plan.fill == plan.allowed_pairs() / plan.reads() and plan.reads(0) * 4 == plan.reads()
    assert not plan.has_order and plan.pools == [] and plan.empty_rows == 0 and plan.max_runs >= 1
    assert "density 1.000" in repr(plan)


@pytest.mark.parametrize(
    "mask, allowed",
    [
        (tilewise.Mask.full(), lambda q, k: torch.ones_like(q + k, dtype=torch.bool)),
        (tilewise.Mask.band(left=10, right=0), lambda q, k: (k <= q) & (k >= q - 10)),
        (tilewise.Mask.band(left=10, right=2, sink=3), lambda q, k: (k <= q + 2) & ((k >= q - 10) | (k < 3))),
    ],
    ids=repr,
)
def test_masks(mask, allowed):
    q, k, _ = problem(seqlen_q=90, seqlen_k=120)
    plan = tilewise.plan(q, k, "dense", mask)
    expected = allowed(torch.arange(90)[:, None] + 30, torch.arange(120)[None])
    assert torch.equal(plan.to_bits()[0, 0], expected)
    plan.validate(mask)


def test_masks_per_head_spans_and_neighbourhoods():
    q, k, _ = problem(seqlen_q=64, seqlen_k=64)
    plan = tilewise.plan(q, k, "dense", tilewise.Mask.bands([(None, 0, 0), (7, 0, 0)], head_class=[0, 1, 1, 0]))
    bits = plan.to_bits()[0]
    assert torch.equal(bits[0], bits[3]) and torch.equal(bits[1], bits[2]) and bits[1].sum() < bits[0].sum()
    spans = torch.zeros(1, 2, 64, 4, dtype=torch.int32)
    spans[:, 0, :, 1], spans[:, 1, :, 0], spans[:, 1, :, 1] = 20, 30, 64
    bits = tilewise.plan(q, k, "dense", tilewise.Mask.spans(spans)).to_bits()
    assert bits[0, 0, :, :20].all() and not bits[0, 0, :, 20:].any() and bits[1, 2, :, 30:].all() and not bits[1, 2, :, :30].any()
    grid = tilewise.Mask.neighbourhood([tilewise.Axis(8, 3), tilewise.Axis(8, 3)])
    bits = tilewise.plan(q, k, "dense", grid).to_bits()[0, 0]
    assert bits.sum() == 64 * 9
    assert "neighbourhood" in repr(grid)


def test_bits_round_trip_and_tiles():
    bits = torch.rand(2, 4, 70, 90) < 0.3
    plan = tilewise.plan_of_bits(bits, tile=16)
    assert torch.equal(plan.to_bits(), bits)
    padded = torch.zeros(2, 4, 80, 96, dtype=torch.bool)
    padded[:, :, :70, :90] = bits
    assert torch.equal(plan.tiles(16, 32), padded.view(2, 4, 5, 16, 3, 32).any(5).any(3))
    with pytest.raises(ValueError, match="forbids|mask"):
        tilewise.plan_of_bits(bits, tilewise.Mask.causal())


def test_sets_completion_and_tiles():
    q, k, _ = problem()
    a, b = random_plan(q, k, 0.3, tile=32), tilewise.plan(q, k, "mean_pool", threshold=0.5, tile=16)
    assert torch.equal((a | b).to_bits(), a.to_bits() | b.to_bits())
    assert torch.equal((a & b).to_bits(), a.to_bits() & b.to_bits())
    whole = a.complete()
    assert whole.has_by_key and whole.complete() is whole and a.complete() is whole and whole.content_hash == a.content_hash
    assert torch.equal(a.retile(16).to_bits(), a.to_bits()) and a.retile(16).tile == 16
    mixed = tilewise.combine_heads([a, b], [0, 1, 1, 0])
    assert torch.equal(mixed.to_bits()[:, 1:3], b.to_bits()[:, 1:3]) and torch.equal(mixed.to_bits()[:, 0], a.to_bits()[:, 0])
    with pytest.raises(ValueError):
        a | tilewise.plan(q[:, :, :64], k, "dense")


def test_files(tmp_path):
    q, k, v = problem()
    plan = random_plan(q, k)
    path = tmp_path / "plan.safetensors"
    plan.save(path)
    again = tilewise.load_plan(path)
    assert again.content_hash == plan.content_hash and torch.equal(again.to_bits(), plan.to_bits())
    assert torch.equal(tilewise.attend(q, k, v, again), tilewise.attend(q, k, v, plan))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(OSError, match="cut short or is damaged"):
        tilewise.load_plan(path)
    with pytest.raises(OSError):
        plan.save(tmp_path / "nowhere" / "plan.safetensors")


def test_orders_and_padding():
    q, k, v = problem(batch=1, seqlen_q=64, seqlen_k=64)
    order = torch.full((1, 1, 80), -1, dtype=torch.int32)
    order[0, 0, :40], order[0, 0, 48:72] = torch.randperm(64)[:40].int(), 0
    used = set(order[0, 0, :40].tolist())
    order[0, 0, 48:72] = torch.tensor([t for t in range(64) if t not in used], dtype=torch.int32)
    plan = tilewise.plan(q, k, "dense", tilewise.Mask.full(), order_q=order, order_k=order)
    assert plan.has_order and plan.slots_q == 80 and plan.to_bits().all()
    dense = tilewise.attend(q, k, v, tilewise.plan(q, k, "dense", tilewise.Mask.full()))
    assert torch.allclose(tilewise.attend(q, k, v, plan), dense, atol=1e-5)


def test_a_plan_moves_with_its_layout_on_the_cpu():
    q, k, _ = problem()
    plan = random_plan(q, k)
    assert plan.to("cpu") is plan
    moved = plan.to("meta")
    assert moved.device.type == "meta" and moved.layout.device.type == "cpu"


def test_every_method_plans():
    q, k, v = problem(batch=1, seqlen_q=256, seqlen_k=256, heads=4, heads_kv=2)
    names = [method.name for method in tilewise.methods()]
    assert names[0] == "dense" and {"a_shape", "xattention", "minference", "flexprefill"} <= set(names)
    for method in tilewise.methods():
        plan = tilewise.plan(q, k, method.name, v=v if method.needs_v else None)
        plan.validate(tilewise.Mask.causal())
        assert 0 < plan.density <= 1
        assert all(option.help and option.range for option in method.options)


def test_method_errors():
    q, k, _ = problem()
    with pytest.raises(ValueError, match="did you mean xattention"):
        tilewise.plan(q, k, "xatention")
    with pytest.raises(ValueError, match="threshold"):
        tilewise.plan(q, k, "xattention", threshold=1.5)
    with pytest.raises(ValueError, match="did you mean threshold"):
        tilewise.plan(q, k, "xattention", treshold=0.5)
    with pytest.raises(TypeError):
        tilewise.plan(q.int(), k.int(), "dense")
    assert tilewise.plan(q, k, "xattention", keep_sink=True, selector="slash", stride=8, tile=64).density > 0
