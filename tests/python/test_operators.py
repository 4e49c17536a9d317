# SPDX-License-Identifier: Apache-2.0
"""What torch asks of operators: opcheck, torch.compile, autocast, vmap."""

import copy

import pytest
import torch
from conftest import problem, random_plan

import tilewise
from tilewise import _compiled  # noqa: F401, for its operator

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
    mean_pool = ("mean_pool", "density=0.4,tile=32", BAND, None, None, None, None, 0.0, None, 0, 0)
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
        "attention": ("attention", (q, k, v, *mean_pool)),
        "attention.gradient": ("attention", (*grad(q, k, v), "a_shape", "init=4,local=20", BAND, None, None, None, 0.2, 5.0, *grad(sink), 0, 0)),
        "attention_backward": ("attention_backward", (torch.randn_like(out), None, q, k, v, *ops.attention(q, k, v, *mean_pool), *mean_pool)),
        "decode.band": ("decode", (new, *cache, None, None, None, [2**63 - 1, 0, 0], 32)),
        "decode.codes": ("decode", (new, *codes, torch.tensor([50], dtype=torch.int32), None, None, [2**63 - 1, 0, 0], 32)),
        "measure": ("measure", (q, k, memory, layout, lse, None, "tile", [1, 4, 3, 3])),
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
    schemas -= {"study_check", "study_compare", "study_attend", "study_report", "study_table"}  # there where the program is built
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
    """A plan as a value of the graph; attention() needs no setting (below)."""
    q, k, v = problem()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(lambda q, k, v: tilewise.attend(q, k, v, tilewise.plan(q, k, "mean_pool", tile=32)), fullgraph=True)
        assert torch.allclose(compiled(q, k, v), tilewise.attention(q, k, v, "mean_pool", is_causal=True, tile=32), atol=1e-6)


class Layer(torch.nn.Module):
    """A layer of a model that plans inside: what users compile."""

    def __init__(self, method, **options):
        super().__init__()
        self.project = torch.nn.Linear(64, 3 * 64)
        self.method, self.options = method, options

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (4, 16)).transpose(1, 2) for part in self.project(x).chunk(3, -1))
        return x + tilewise.attention(q, k, v, self.method, is_causal=True, **self.options).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("method, options", [("xattention", {"tile": 32, "stride": 8, "threshold": 0.6}), ("mean_pool", {"tile": 32, "density": 0.3})])
def test_a_model_that_plans_compiles_with_default_settings(method, options):
    assert not torch._dynamo.config.capture_dynamic_output_shape_ops
    model, x = Layer(method, **options), torch.randn(2, 200, 64)
    compiled = torch.compile(model, fullgraph=True)
    wanted = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    got = torch.autograd.grad(compiled(x).square().sum(), list(model.parameters()))
    for a, b in zip(got, wanted):
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def test_planning_recompiles_once_over_five_lengths():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    model = Layer("mean_pool", tile=32, density=0.3)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for length in (64, 100, 130, 257, 300):
        x = torch.randn(1, length, 64)
        out = compiled(x)
        assert torch.equal(out, model(x))
        out.sum().backward()
    assert counter.frame_count <= 2, f"{counter.frame_count} graphs for five lengths"


METHODS = [("a_shape", {"init": 4, "local": 40}), ("xattention", {"tile": 32, "stride": 8, "threshold": 0.6}), ("minference", {}), ("random", {"density": 0.3, "tile": 32})]


@pytest.mark.parametrize("method, options", METHODS)
def test_attention_is_plan_and_attend(method, options):
    """The same bits forward and backward, with every option."""
    q, k, v = (x.requires_grad_() for x in problem())
    sink = torch.randn(4, requires_grad=True)
    both = tilewise.attention(q, k, v, method, is_causal=True, scale=0.2, softcap=9.0, sink_logit=sink, layer=1, **options)
    plan = tilewise.plan(q, k, method, v=v, scale=0.2, softcap=9.0, layer=1, **options)
    apart = tilewise.attend(q, k, v, plan, 0.2, 9.0, sink)
    assert torch.equal(both, apart)
    weights = torch.randn_like(both)
    for a, b in zip(torch.autograd.grad(both, (q, k, v, sink), weights), torch.autograd.grad(apart, (q, k, v, sink), weights)):
        assert torch.equal(a, b)


def test_attention_with_spans_and_orders():
    """What the plan has views of lives with it."""
    q, k, v = (x.requires_grad_() for x in problem())
    order = torch.stack([torch.randperm(130) for _ in range(4)])[None].to(torch.int32)
    spans = torch.zeros(2, 1, 130, 4, dtype=torch.int32)
    spans[..., 1] = torch.tensor([130, 70])[:, None, None]
    out = tilewise.attention(q, k, v, "dense", mask=tilewise.Mask.spans(spans.clone()), order_q=order.clone(), order_k=order[:, :2].clone())
    gradients = torch.autograd.grad(out.sum(), (q, k, v))
    plan = tilewise.plan(q, k, "dense", tilewise.Mask.spans(spans), order_q=order, order_k=order[:, :2])
    wanted = torch.autograd.grad(tilewise.attend(q, k, v, plan).sum(), (q, k, v))
    assert all(torch.equal(a, b) for a, b in zip(gradients, wanted))


def backward_of(q, k, v, counts, out, lse, method):
    return ops.attention_backward(torch.ones_like(out), None, q, k, v, out, lse, counts, method, "", BAND, None, None, None, None, 0.0, None, 0, 0)


def test_backward_takes_the_plan_of_forward():
    """It has the plan by the address of the counts; a copy of them means planning again, which an unknown method cannot."""
    q, k, v = problem()
    plan = tilewise.plan(q, k, "mean_pool")
    out, lse, counts = ops.attention(q, k, v, "mean_pool", "", BAND, None, None, None, None, 0.0, None, 0, 0)
    assert counts.tolist() == [plan.reads(), plan.dense_reads]
    with_plan = backward_of(q, k, v, counts, out, lse, "no such method")
    again = backward_of(q, k, v, counts.clone(), out, lse, "mean_pool")
    assert all(torch.equal(a, b) for a, b in zip(with_plan, again))
    with pytest.raises(RuntimeError, match="no such method"):
        backward_of(q, k, v, counts.clone(), out, lse, "no such method")
    view = counts[:]
    del counts
    backward_of(q, k, v, view, out, lse, "no such method")
    del view
    fresh = torch.empty(2, dtype=torch.int64)  # perhaps at the same address, and not ours
    with pytest.raises(RuntimeError, match="no such method"):
        backward_of(q, k, v, fresh, out, lse, "no such method")


def test_compiled_training_plans_once():
    """In the backward graph the method is one that does not exist, so a second planning would fail."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func

    seen = []

    def backward_compiler(graph, _):
        for node in graph.graph.nodes:
            if node.target is ops.attention_backward.default:
                seen.append(node)
                node.args = tuple("no such method" if i == 8 else x for i, x in enumerate(node.args))
        graph.recompile()
        return make_boxed_func(graph.forward)

    forward_compiler = lambda graph, _: make_boxed_func(graph.forward)  # noqa: E731
    model, x = Layer("mean_pool", tile=32, density=0.3), torch.randn(1, 100, 64)
    compiled = torch.compile(model, backend=aot_autograd(fw_compiler=forward_compiler, bw_compiler=backward_compiler), fullgraph=True)
    compiled(x).sum().backward()
    got = model.project.weight.grad.clone()
    model.zero_grad()
    model(x).sum().backward()
    assert len(seen) == 1 and torch.equal(got, model.project.weight.grad)


def test_plans_are_planned_again_where_activations_are_copied():
    q, k, v = (x.requires_grad_() for x in problem())
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.detach().clone(), lambda x: x):
        out = tilewise.attention(q, k, v, "mean_pool", is_causal=True)
    got = torch.autograd.grad(out.sum(), (q, k, v))
    wanted = torch.autograd.grad(tilewise.attention(q, k, v, "mean_pool", is_causal=True).sum(), (q, k, v))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted))


def test_attention_under_checkpointing_and_threads():
    from concurrent.futures import ThreadPoolExecutor

    from torch.utils.checkpoint import checkpoint

    def gradient(seed):
        model, x = Layer("mean_pool", tile=32, density=0.3), torch.randn(1, 100, 64, generator=torch.Generator().manual_seed(seed))
        model.load_state_dict(weights)
        checkpoint(model, x, use_reentrant=False).sum().backward()
        return model.project.weight.grad

    weights = Layer("dense").state_dict()
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(gradient, range(16)))
    assert all(torch.equal(a, gradient(seed)) for seed, a in enumerate(got))


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
    x.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = tilewise.attention(x, k, v, "mean_pool")
    assert out.dtype == torch.bfloat16 and torch.equal(out, tilewise.attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), "mean_pool"))
    out.sum().backward()
    assert x.grad.dtype == torch.float32


def test_vmap_is_refused_with_a_reason():
    q, k, v = problem()
    plan = random_plan(q, k)
    stacked = torch.stack([q, q])
    with pytest.raises(NotImplementedError, match="fold yours into it"):
        torch.vmap(lambda x: tilewise.attend(x, k, v, plan))(stacked)
    with pytest.raises(NotImplementedError, match="fold yours into it"):
        torch.vmap(lambda x: tilewise.attention(x, k, v))(stacked)
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
