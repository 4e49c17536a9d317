# SPDX-License-Identifier: Apache-2.0
"""What torch asks of operators: opcheck, torch.compile, autocast, vmap."""

import copy

import pytest
import torch
from conftest import problem, random_plan

import tilewise

ops = torch.ops.tilewise
BAND = [0, 0, 1, 0, 0, 2**63 - 1, 0, 0]  # causal, as tilewise.Mask.causal().numbers


def test_the_mask_above_is_causal():
    assert tilewise.Mask.causal().numbers == BAND


def samples():
    q, k, v = problem(batch=1, seqlen_q=70, seqlen_k=70, dim=32)
    plan = random_plan(q, k, tile=32)
    memory, layout = plan.memory, plan.layout
    out, lse = ops.attend(q, k, v, memory, layout)
    grad = lambda *xs: [x.clone().requires_grad_() for x in xs]  # noqa: E731
    sink = torch.randn(4)
    new = q[:, :, :1].clone()
    cache = [k, None, None, None, [0, 0], v, None, None, None, [0, 0]]
    scale = k.abs().amax(-1, keepdim=True) / 127
    codes = [torch.round(k / scale).to(torch.int8), scale, None, None, [1, 0], v, None, None, None, [0, 0]]
    bits = plan.to_bits()
    indptr, indices, _ = ops.plan_to_bsr(*(x for x in (memory, layout)), 32, 32, True)
    return {
        "attend": (memory, layout, None, 0.0, None),
        "attend.plain": ("attend", (q, k, v, memory, layout)),
        "attend.gradient": ("attend", (*grad(q, k, v), memory, layout, 0.2, 5.0, *grad(sink))),
        "attend.bshd": ("attend", (*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)), memory, layout)),
        "attend_backward": ("attend_backward", (torch.randn_like(out), None, q, k, v, out, lse, memory, layout)),
        "attend_backward.all": ("attend_backward", (torch.randn_like(out), torch.randn_like(lse), q, k, v, *ops.attend(q, k, v, memory, layout, None, 0.0, sink), memory, layout, None, 0.0, sink)),
        "decode.band": ("decode", (new, *cache, None, None, None, [2**63 - 1, 0, 0], 32)),
        "decode.codes": ("decode", (new, *codes, torch.tensor([50], dtype=torch.int32), None, None, [2**63 - 1, 0, 0], 32)),
        "measure": ("measure", (q, k, memory, layout, lse, None, "tile", [1, 4, 3, 3])),
        "attention": ("attention", (q, k, v, "mean_pool", "tile=32,density=0.5", BAND, None, None, 0.0, None, 0)),
        "attention_backward": ("attention_backward", (torch.randn_like(out), None, q, k, v, out, lse, "mean_pool", "tile=32,density=0.5", BAND, None, None, 0.0, None, 0)),
        "spans_of_rows": ("spans_of_rows", (torch.ones(2, 70, 70, dtype=torch.bool).tril(),)),
        "plan_with": ("plan_with", (q, k, None, "xattention", "tile=32,stride=8", BAND, None, None, None, None, 0.0, 0, 0)),
        "plan_of_bits": ("plan_of_bits", (bits, 32, BAND, None, 0, 0)),
        "plan_of_bsr": ("plan_of_bsr", (indptr, indices, None, 70, 70, 32, 32, 0, BAND, None, 1, 4)),
        "plan_to_bsr": ("plan_to_bsr", (memory, layout, 32, 32, True)),
        "plan_to_bits": ("plan_to_bits", (memory, layout, False)),
        "plan_to_tiles": ("plan_to_tiles", (memory, layout, 32, 32)),
        "plan_complete": ("plan_complete", (memory, layout, 0)),
        "plan_retile": ("plan_retile", (memory, layout, 16, 0)),
        "plan_set": ("plan_set", (memory, layout, memory, layout, True)),
        "plan_combine": ("plan_combine", ([memory, memory], [layout, layout], [0, 1, 0, 1])),
        "plan_count": ("plan_count", (memory, layout, "reads", -1)),
        "plan_validate": ("plan_validate", (memory, layout, [], None)),
    }  # fmt: skip


CASES = [name for name in samples() if name != "attend"]


@pytest.mark.parametrize("case", CASES)
def test_opcheck(case):
    name, args = samples()[case]
    torch.library.opcheck(getattr(ops, name).default, args)


def test_every_operator_is_checked():
    """opcheck has a case for each operator that takes a tensor; the others (files, names) are called by test_plan.py, those of a comparison,
    which work inside of one alone, by test_compare.py."""
    schemas = {s.name.split("::")[1] for s in torch._C._jit_get_all_schemas() if s.name.startswith("tilewise::")}
    without = {"plan_save", "plan_load", "methods", "check_method", "about"}
    schemas -= {"study_compare", "study_attend", "study_report", "study_table"}  # there where the program is built
    assert schemas == {case.split(".")[0] for case in CASES} | without


def test_compiled_is_eager():
    q, k, v = (x.requires_grad_() for x in problem())
    plan = random_plan(q, k)

    def step(q, k, v, plan):
        return tilewise.attend(q * 2, k, v, plan, softcap=10.0) + 1

    compiled = torch.compile(step, fullgraph=True)
    eager = step(q, k, v, plan)
    got = compiled(q, k, v, plan)
    assert torch.allclose(got, eager, atol=1e-6)
    for a, b in zip(torch.autograd.grad(got.square().sum(), (q, k, v)), torch.autograd.grad(eager.square().sum(), (q, k, v))):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("gradient", [False, True])
def test_five_lengths_recompile_once(gradient):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda q, k, v, plan: tilewise.attend(q, k, v, plan).square(), backend=counter, fullgraph=True)
    for length in (64, 100, 130, 257, 300):
        q, k, v = (x.requires_grad_(gradient) for x in problem(seqlen_q=length, seqlen_k=length))
        plan = random_plan(q, k)
        out = compiled(q, k, v, plan)
        assert torch.equal(out, tilewise.attend(q, k, v, plan).square())
        if gradient:
            out.sum().backward()
            assert q.grad is not None
    assert counter.frame_count <= 2, f"{counter.frame_count} graphs for five lengths"


def test_planning_compiles_where_output_sizes_may_depend_on_data():
    q, k, v = problem()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(lambda q, k, v: tilewise.attention(q, k, v, "mean_pool", is_causal=True, tile=32), fullgraph=True)
        assert torch.allclose(compiled(q, k, v), tilewise.attention(q, k, v, "mean_pool", is_causal=True, tile=32), atol=1e-6)


def test_decode_and_measure_compile():
    q, k, v = problem(seqlen_q=1)
    compiled = torch.compile(lambda q, k, v: tilewise.decode(q, k, v) * 2, fullgraph=True)
    assert torch.allclose(compiled(q, k, v), tilewise.decode(q, k, v) * 2)
    q, k, v = problem()
    plan = random_plan(q, k)
    compiled = torch.compile(lambda q, k, plan: tilewise.measure(q, k, plan, "key").sum * 2, fullgraph=True)
    assert torch.allclose(compiled(q, k, plan), tilewise.measure(q, k, plan, "key").sum * 2)


def test_a_module_with_its_plan_is_copied_and_pickled():
    q, k, v = problem()
    plan = random_plan(q, k)
    assert copy.deepcopy(plan).content_hash == plan.content_hash


def test_autocast():
    q, k, v = problem()
    plan = random_plan(q, k)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, lse = tilewise.attend(q, k.bfloat16(), v, plan, return_lse=True)
        new = tilewise.decode(q[:, :, -1:], k, v)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32 and new.dtype == torch.bfloat16
    assert torch.equal(out, tilewise.attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), plan))
    x = q.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tilewise.attend(x, k, v, plan).sum().backward()
    assert x.grad.dtype == torch.float32


def test_vmap_is_refused_with_a_reason():
    q, k, v = problem()
    plan = random_plan(q, k)
    stacked = torch.stack([q, q])
    with pytest.raises(NotImplementedError, match="fold yours into it"):
        torch.vmap(lambda x: tilewise.attend(x, k, v, plan))(stacked)
    with pytest.raises(NotImplementedError, match="fold yours into it"):
        torch.vmap(lambda x: tilewise.decode(x, k, v))(stacked[:, :, :, :1])


def test_second_derivatives_are_refused():
    q, k, v = (x.requires_grad_() for x in problem())
    (dq,) = torch.autograd.grad(tilewise.attend(q, k, v, random_plan(q, k)).square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        dq.sum().backward()


def test_meta_tensors_have_shapes():
    q, k, v = (x.to("meta") for x in problem())
    out, lse = ops.attend(q, k, v, torch.empty(10, dtype=torch.uint8, device="meta"), torch.empty(300, dtype=torch.int64))
    assert out.shape == q.shape and lse.shape == q.shape[:3] and out.device.type == "meta"
