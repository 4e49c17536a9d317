# SPDX-License-Identifier: Apache-2.0
"""attend, attention, decode and measure against the definition in float64."""

import math

import pytest
import torch
from conftest import FLOOR, assert_close, dense_error, problem, random_plan, reference

import tilewise

SHAPES = [
    dict(),
    dict(seqlen_q=1, seqlen_k=1),
    dict(seqlen_q=63, seqlen_k=65),
    dict(seqlen_q=65, seqlen_k=200, heads=6, heads_kv=2, dim=40),
    dict(seqlen_q=200, seqlen_k=129, batch=1, heads=8, heads_kv=1, dim=128),
    dict(seqlen_q=64, seqlen_k=64, heads=1, heads_kv=1, dim=256),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_lse(shape, dtype):
    q, k, v = problem(**shape, dtype=dtype)
    for mask in (tilewise.Mask.causal(), tilewise.Mask.full(), tilewise.Mask.band(left=40, right=3, sink=2)):
        plan = random_plan(q, k, mask=mask)
        out, lse = tilewise.attend(q, k, v, plan, return_lse=True)
        exact, exact_lse = reference(q, k, v, plan.to_bits())
        assert out.dtype == dtype and lse.dtype == torch.float32
        assert_close(out, exact, dense_error(q, k, v), FLOOR[dtype])
        assert torch.allclose(lse.double(), exact_lse, atol=1e-4, rtol=1e-5)


def test_softcap_scale_and_sink():
    q, k, v = problem()
    sink = torch.randn(4)
    plan = random_plan(q, k)
    out, lse = tilewise.attend(q, k, v, plan, scale=0.3, softcap=5.0, sink_logit=sink, return_lse=True)
    exact, exact_lse = reference(q, k, v, plan.to_bits(), 0.3, 5.0, sink)
    assert_close(out, exact, dense_error(q, k, v), 2e-6)
    assert torch.allclose(lse.double(), exact_lse, atol=1e-5)


def test_row_without_keys_is_zero():
    q, k, v = problem(seqlen_q=80, seqlen_k=50)  # bottom-right: the first 30 queries see nothing
    out, lse = tilewise.attend(q, k, v, tilewise.plan(q, k, "dense"), return_lse=True)
    assert torch.equal(out[:, :, :30], torch.zeros(2, 4, 30, 64))
    assert torch.isneginf(lse[:, :, :30]).all() and torch.isfinite(lse[:, :, 30:]).all()


def test_empty_batch():
    q, k, v = (x[:0] for x in problem())
    full = random_plan(*problem()[:2])
    assert tilewise.attend(q, k, v, full).shape == (0, 4, 130, 64)


@pytest.mark.parametrize("queries, keys", [(0, 130), (0, 0), (130, 0)])
@pytest.mark.parametrize("method", ["dense", "xattention", "mean_pool"])
def test_no_queries_or_no_keys(queries, keys, method):
    q, k, v = problem()
    q, k, v = q[:, :, :queries].requires_grad_(), k[:, :, :keys], v[:, :, :keys]
    out = tilewise.attention(q, k, v, method)
    assert torch.equal(out, torch.zeros(2, 4, queries, 64))
    out.sum().backward()
    assert torch.equal(q.grad, torch.zeros_like(q))


@pytest.mark.parametrize("kind", ["bshd", "fused", "step", "last axis", "expanded"])
def test_views_are_read_where_they_lie(kind):
    q, k, v = problem()
    plan = random_plan(q, k)
    expected = tilewise.attend(q, k, v, plan)
    if kind == "bshd":
        views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    elif kind == "fused":  # [B, S, heads * D] of one projection, cut up
        fused = torch.cat([x.transpose(1, 2).flatten(2) for x in (q, k, v)], -1)
        parts = fused.split([256, 128, 128], -1)
        views = [part.unflatten(-1, (-1, 64)).transpose(1, 2) for part in parts]
    elif kind == "step":
        views = [torch.stack([x, x], 3).flatten(2, 3)[:, :, ::2] for x in (q, k, v)]
    elif kind == "last axis":
        views = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)]
        assert all(x.stride(3) != 1 for x in views)
    else:
        k, v = k[:1, :1], v[:1, :1]
        views = [q, k.expand(2, 2, -1, -1), v.expand(2, 2, -1, -1)]
        plan = random_plan(q, k.expand(2, 2, -1, -1))
        expected = tilewise.attend(q, views[1].contiguous(), views[2].contiguous(), plan)
    for view, x in zip(views, (q, k, v)):
        assert torch.equal(view, x.expand_as(view))
    out = tilewise.attend(*views, plan)
    assert torch.equal(out, expected)
    if kind in ("bshd", "fused"):  # out lies as q does: what a model does next needs no copy
        assert out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("complete", [False, True])
def test_gradients(dtype, complete):
    q, k, v = problem(seqlen_q=100, seqlen_k=140, dtype=dtype)
    sink = torch.randn(4)
    plan = random_plan(q, k)
    plan = plan.complete() if complete else plan
    assert plan.has_by_key == complete
    inputs = [x.clone().requires_grad_() for x in (q, k, v, sink)]
    exact_inputs = [x.double().requires_grad_() for x in (q, k, v, sink)]
    out, lse = tilewise.attend(*inputs[:3], plan, softcap=9.0, sink_logit=inputs[3], return_lse=True)
    exact, exact_lse = reference(*exact_inputs[:3], plan.to_bits(), softcap=9.0, sink_logit=exact_inputs[3])
    dout, dlse = torch.randn_like(out), torch.randn_like(lse)
    got = torch.autograd.grad((out, lse), inputs, (dout, dlse))
    expected = torch.autograd.grad((exact, exact_lse), exact_inputs, (dout.double(), dlse.double()))
    bound = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}[dtype]
    for g, e, x in zip(got, expected, inputs):
        assert g.dtype == x.dtype and g.shape == x.shape
        assert (g.double() - e).abs().max() <= bound * max(1.0, e.abs().max().item())


def test_gradient_of_one_output_and_of_some_inputs():
    q, k, v = problem()
    plan = random_plan(q, k)
    k.requires_grad_()
    (only_out,) = torch.autograd.grad(tilewise.attend(q, k, v, plan).sum(), k)  # an expanded dout, no dlse
    kd = k.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(reference(q, kd, v, plan.to_bits())[0].sum(), kd)
    assert torch.allclose(only_out.double(), expected, atol=1e-5)
    (only_lse,) = torch.autograd.grad(tilewise.attend(q, k, v, plan, return_lse=True)[1].sum(), k)
    (expected,) = torch.autograd.grad(reference(q, kd, v, plan.to_bits())[1].sum(), kd)
    assert torch.allclose(only_lse.double(), expected, atol=1e-5)


def test_gradients_lie_as_their_tensors():
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in problem())
    grads = torch.autograd.grad(tilewise.attend(q, k, v, random_plan(q, k)).sum(), (q, k, v))
    assert all(g.stride() == x.stride() for g, x in zip(grads, (q, k, v)))


def test_no_gradient_is_kept_without_need():
    q, k, v = problem()
    plan = random_plan(q, k)
    assert not tilewise.attend(q, k, v, plan).requires_grad
    q.requires_grad_()
    assert tilewise.attend(q, k, v, plan).requires_grad
    with torch.no_grad():
        assert not tilewise.attend(q, k, v, plan).requires_grad


def test_gradients_by_torch_func():
    q, k, v = problem()
    plan = random_plan(q, k)
    loss = lambda q, k, sink: tilewise.attend(q, k, v, plan, sink_logit=sink, return_lse=True)[1].sum() + tilewise.attend(q, k, v, plan).square().sum()  # noqa: E731
    leaves = [q.clone().requires_grad_(), k.clone().requires_grad_(), torch.zeros(4, requires_grad=True)]
    loss(*leaves).backward()
    for got, leaf in zip(torch.func.grad(loss, argnums=(0, 1, 2))(q, k, torch.zeros(4)), leaves):
        assert torch.equal(got, leaf.grad)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.func.grad(lambda q: torch.func.grad(loss)(q, k, torch.zeros(4)).sum())(q)
    with pytest.raises(NotImplementedError, match="cannot be vmapped"):
        torch.vmap(torch.func.grad(lambda q: tilewise.attend(q, k, v, plan).sum()))(q[None])


def test_same_bits_for_any_number_of_threads():
    q, k, v = (x.requires_grad_() for x in problem(seqlen_q=300, seqlen_k=300))
    plan = random_plan(q, k)
    results = []
    threads = torch.get_num_threads()
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        out = tilewise.attend(q, k, v, plan)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v))])
    torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result))


def test_attention_is_plan_and_attend():
    q, k, v = problem()
    plan = tilewise.plan(q, k, "mean_pool", threshold=0.6, tile=16)
    assert torch.equal(tilewise.attention(q, k, v, "mean_pool", is_causal=True, threshold=0.6, tile=16), tilewise.attend(q, k, v, plan))
    with pytest.raises(ValueError, match="both mask and is_causal"):
        tilewise.attention(q, k, v, is_causal=True, mask=tilewise.Mask.causal())


def test_nothing_is_read_outside_the_plan():
    q, k, v = problem(seqlen_q=128, seqlen_k=256)
    allowed = torch.zeros(128, 256, dtype=torch.bool)
    allowed[:, 64:128] = True
    plan = tilewise.plan_of_bits(allowed[None, None], batch=2, heads_q=4)
    expected = tilewise.attend(q, k, v, plan)
    k[:, :, :64], v[:, :, 128:] = math.nan, math.nan
    assert torch.equal(tilewise.attend(q, k, v, plan), expected)


def test_errors_are_natural():
    q, k, v = problem()
    plan = random_plan(q, k)
    with pytest.raises(ValueError, match="^attend_forward: q and k differ in head_dim: q .* give both the same D$"):
        tilewise.attend(q[..., :32], k, v, plan)
    with pytest.raises(ValueError, match="^attend_forward: plan is made for 130 queries and 130 keys"):
        tilewise.attend(q[:, :, :100], k, v, plan)
    with pytest.raises(TypeError, match="^attend_forward: k is f32, takes bf16"):
        tilewise.attend(q.bfloat16(), k, v, plan)
    with pytest.raises(NotImplementedError, match="no backend takes this problem") as refused:
        tilewise.attend(q.double(), k.double(), v.double(), plan)
    assert "cpu:" in str(refused.value)
    with pytest.raises(ValueError, match="not a plan of this version"):
        tilewise.attend(q, k, v, tilewise.Plan(plan.memory, plan.layout[:-1]))
    with pytest.raises(ValueError, match="an array past the end"):
        broken = plan.layout.clone()
        broken[26 + 5 * 4] = 1 << 40
        tilewise.attend(q, k, v, tilewise.Plan(plan.memory, broken))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda q, k, v, plan: tilewise.attend(q.numpy(), k, v, plan), r"^attend: q is of type numpy.ndarray, takes torch.Tensor$"),
        (lambda q, k, v, plan: tilewise.attend(q, k, [v], plan), r"^attend: v is of type (list|List\[Tensor\]), takes (torch.)?Tensor$"),
        (lambda q, k, v, plan: tilewise.attend(q, k, v, None), r"^attend: plan is of type NoneType, takes tilewise.Plan$"),
        (lambda q, k, v, plan: tilewise.attend(plan, q, k, v), r"^attend: q is of type tilewise.Plan, takes torch.Tensor$"),
        (lambda q, k, v, plan: tilewise.attend(q, k, v, plan, sink_logit=0.5), r"^attend: sink_logit is of type float, takes (torch.)?Tensor( or None)?$"),
        (lambda q, k, v, plan: tilewise.attend(q, k, v, plan, scale="1"), r"^attend: scale is of type str, takes float or None$"),
        (lambda q, k, v, plan: tilewise.plan(q.numpy(), k), r"^plan: q is of type numpy.ndarray"),
        (lambda q, k, v, plan: tilewise.plan(q, k, mask="causal"), r"^plan: mask is of type str, takes tilewise.Mask$"),
        (lambda q, k, v, plan: tilewise.measure(q, k, (plan,)), r"^measure: plan is of type tuple"),
        (lambda q, k, v, plan: tilewise.decode(q[:, :, :1], k, v, lengths=[130, 130]), r"^decode: lengths is of type list, takes Tensor or None$"),
        (lambda q, k, v, plan: tilewise.decode(q[:, :, :1], k.numpy(), v), r"^decode: k is of type numpy.ndarray"),
        (lambda q, k, v, plan: tilewise.plan_of_bits(plan), r"^plan_of_bits: bits is of type tilewise.Plan"),
        (lambda q, k, v, plan: plan | "dense", "unsupported operand"),
    ],
)
def test_arguments_of_another_class(call, message):
    q, k, v = problem()
    with pytest.raises(TypeError, match=message):
        call(q, k, v, random_plan(q, k))


def test_tensors_without_strides_are_refused():
    q, k, v = problem()
    with pytest.raises(NotImplementedError, match="^attend: there is no kernel for tensors of SparseCPU; takes strided tensors"):
        tilewise.attend(q.to_sparse(), k, v, random_plan(q, k))


# measure.


@pytest.mark.parametrize("over", ["tile", "query_tile", "query", "key", "offset"])
@pytest.mark.parametrize("probabilities", [False, True])
def test_measure(over, probabilities):
    q, k, v = problem(seqlen_q=100, seqlen_k=150)
    plan = random_plan(q, k, tile=32)
    allowed = plan.to_bits()
    s = (q.double() @ k.double().repeat_interleave(2, 1).transpose(-1, -2)) / 8
    lse = tilewise.attend(q, k, v, plan, return_lse=True)[1] if probabilities else None
    x = torch.exp(s - lse.double()[..., None]) if probabilities else s
    got = tilewise.measure(q, k, plan, over, lse=lse, tile_q=16, tile_k=48)
    rows, columns = torch.arange(100)[:, None].expand(100, 150), torch.arange(150).expand(100, 150)
    index = {
        "tile": rows // 16 * 4 + columns // 48,
        "query_tile": rows * 4 + columns // 48,
        "query": rows,
        "key": columns,
        "offset": rows + 50 - columns,
    }[over]
    shape = {"tile": (7, 4), "query_tile": (100, 4), "query": (100,), "key": (150,), "offset": (150,)}[over]
    for b in range(2):
        for h in range(4):
            keep = allowed[b, h] & (index >= 0)
            sums = torch.zeros(math.prod(shape), dtype=torch.float64).index_add(0, index[keep], x[b, h][keep])
            counts = torch.zeros(math.prod(shape)).index_add(0, index[keep], torch.ones(int(keep.sum())))
            assert torch.allclose(got.sum[b, h].double(), sums.view(shape), atol=1e-4, rtol=1e-4)
            assert torch.equal(got.count[b, h], counts.view(shape))
    assert torch.isneginf(got.max[got.count == 0]).all()


def test_measure_over_runs():
    q, k, _ = problem()
    plan = random_plan(q, k, tile=16)
    got = tilewise.measure(q, k, plan, "query_run")
    assert got.count.shape == (2, 4, 130, plan.max_runs)
    assert torch.equal(got.count.sum(-1), plan.to_bits().sum(-1).float())


# decode.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("new", [1, 4])
def test_decode(dtype, new):
    q, k, v = problem(batch=3, heads=8, heads_kv=2, seqlen_q=new, seqlen_k=200, dtype=dtype)
    lengths = torch.tensor([200, 17, 130], dtype=torch.int32)
    out, lse = tilewise.decode(q, k, v, lengths=lengths, return_lse=True)
    positions = lengths[:, None] - new + torch.arange(new)
    allowed = (torch.arange(200) <= positions[..., None])[:, None]
    exact, exact_lse = reference(q, k, v, allowed)
    assert_close(out, exact, dense_error(q, k, v), FLOOR[dtype])
    assert torch.allclose(lse.double(), exact_lse, atol=1e-4)


def test_decode_with_a_plan_pages_and_codes():
    q, k, v = problem(batch=2, heads=4, heads_kv=2, seqlen_q=1, seqlen_k=128)
    plan = random_plan(q, k, density=0.5, tile=16)
    exact, _ = reference(q, k, v, plan.to_bits())
    assert_close(tilewise.decode(q, k, v, plan), exact, 1e-6, 2e-6)
    # Pages of 32 tokens, out of order.
    order = torch.randperm(8)
    pool = lambda x: x.view(2, 2, 4, 32, 64).transpose(1, 2).reshape(8, 2, 32, 64)[order]  # noqa: E731
    table = torch.argsort(order).view(2, 1, 4).int()
    paged = tilewise.decode(q, tilewise.Paged(pool(k), table), tilewise.Paged(pool(v), table), plan)
    assert torch.allclose(paged, tilewise.decode(q, k, v, plan), atol=1e-6)
    # Codes of 8 bits, one scale a token.
    scale = k.abs().amax(-1, keepdim=True) / 127
    codes = torch.round(k / scale).to(torch.int8)
    quantised = tilewise.decode(q, tilewise.Quantised(codes, scale), v, plan)
    exact, _ = reference(q, codes.double() * scale.double(), v, plan.to_bits())
    assert_close(quantised, exact, 1e-6, 2e-6)
    with pytest.raises(NotImplementedError, match="more than 8|takes 1 to 8|8"):
        tilewise.decode(*problem(seqlen_q=9))
