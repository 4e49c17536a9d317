# SPDX-License-Identifier: Apache-2.0
"""Tensors on a GPU go through the same operators; what the build has no kernel for, attend refuses by name."""

import pytest
import torch
from conftest import problem, random_plan, reference

import tilewise

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def on_gpu(dtype=torch.bfloat16, **sizes):
    sizes = dict(batch=2, heads=4, heads_kv=2, seqlen_q=300, seqlen_k=300, dim=64) | sizes
    q, k, v = problem(**sizes, dtype=dtype)
    return (q, k, v), (q.cuda(), k.cuda(), v.cuda())


def run(function, *args, **kwargs):
    """function(...), or the test is left out where the build has no kernels for a GPU at all."""
    try:
        return function(*args, **kwargs)
    except NotImplementedError as error:
        assert "no backend takes this problem" in str(error) and "cuda:0" in str(error)
        if "sm90" not in str(error):
            pytest.skip("this build has no kernels for a GPU")
        raise


def attend(*args, **kwargs):
    return run(tilewise.attend, *args, **kwargs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dim", [64, 128])
def test_forward(dtype, dim):
    host, gpu = on_gpu(dtype, dim=dim)
    for plan in (tilewise.plan(*host[:2], "dense", tile=128), random_plan(*host[:2], tile=128)):
        moved = plan.to("cuda")
        assert moved.device.type == "cuda" and moved.layout.device.type == "cpu"
        out, lse = attend(*gpu, moved, return_lse=True)
        exact, exact_lse = reference(*host, plan.to_bits())
        assert out.is_cuda and (out.cpu().double() - exact).abs().max() < 3e-2
        assert (lse.cpu().double() - exact_lse).abs().max() < 1e-2
        views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in gpu]
        assert torch.equal(attend(*views, moved), out)


def test_streams_and_memory():
    host, gpu = on_gpu(seqlen_q=2048, seqlen_k=2048)
    plan = random_plan(*host[:2], tile=128).to("cuda")
    expected = attend(*gpu, plan)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = [x * 1 for x in gpu]
        out = attend(*late, plan)
    stream.synchronize()
    assert torch.equal(out, expected)
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    for _ in range(3):
        out = attend(*gpu, plan)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= held + 2**20  # scratch goes back


@pytest.mark.parametrize("dim", [64, 128])
def test_backward(dim):
    """Gradients of out and lse, in q, k, v and the sink logit."""
    host, gpu = on_gpu(dim=dim)
    plan = random_plan(*host[:2], tile=128)
    sink = torch.randn(4)
    leaves = [x.clone().requires_grad_() for x in (*gpu, sink.cuda())]
    out, lse = attend(*leaves[:3], plan.to("cuda"), sink_logit=leaves[3], return_lse=True)
    exact_leaves = [x.double().requires_grad_() for x in (*host, sink)]
    exact, exact_lse = reference(*exact_leaves[:3], plan.to_bits(), sink_logit=exact_leaves[3])
    dout, dlse = torch.randn(out.shape, dtype=torch.float64), torch.randn(lse.shape, dtype=torch.float64)
    ((out * dout.to(out)).sum() + (lse * dlse.to(lse)).sum()).backward()
    ((exact * dout).sum() + (exact_lse * dlse).sum()).backward()
    for got, expected in zip(leaves, exact_leaves):
        assert (got.grad.cpu().double() - expected.grad).abs().max() < 2e-2 * expected.grad.abs().max() + 1e-2


@pytest.mark.parametrize("new", [1, 5])
def test_decode(new):
    """Over plain, paged and INT8 caches, with lengths that stay on the GPU."""
    q, k, v = problem(batch=2, heads=8, heads_kv=2, seqlen_q=new, seqlen_k=256, dtype=torch.bfloat16)
    lengths = torch.tensor([256, 100], dtype=torch.int32)
    allowed = (torch.arange(256) <= (lengths[:, None] - new + torch.arange(new))[..., None])[:, None]
    exact, _ = reference(q, k, v, allowed)
    gpu = [x.cuda() for x in (q, k, v)]
    plain = run(tilewise.decode, *gpu, lengths=lengths.cuda())
    assert (plain.cpu().double() - exact).abs().max() < 3e-2
    order = torch.randperm(8)
    pool = lambda x: x.view(2, 2, 4, 64, 64).transpose(1, 2).reshape(8, 2, 64, 64)[order].cuda()  # noqa: E731
    table = torch.argsort(order).view(2, 1, 4).int().cuda()
    paged = run(tilewise.decode, gpu[0], tilewise.Paged(pool(k), table), tilewise.Paged(pool(v), table), lengths=lengths.cuda())
    assert (paged.cpu().double() - exact).abs().max() < 3e-2
    codes = []
    for x in (k, v):
        scale = x.float().abs().amax((2, 3), keepdim=True) / 127
        codes.append((torch.round(x.float() / scale).to(torch.int8), scale))
    exact, _ = reference(q, *(data.double() * scale.double() for data, scale in codes), allowed)
    quantised = run(tilewise.decode, gpu[0], *(tilewise.Quantised(data.cuda(), scale.cuda(), tokens=0) for data, scale in codes), lengths=lengths.cuda())
    assert (quantised.cpu().double() - exact).abs().max() < 3e-2


def test_compiled_and_autocast():
    host, gpu = on_gpu()
    plan = random_plan(*host[:2], tile=128).to("cuda")
    expected = attend(*gpu, plan)
    compiled = torch.compile(lambda q, k, v: tilewise.attend(q * 1, k, v, plan), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*gpu), expected)
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(tilewise.attend(*(x.float() for x in gpu), plan), expected)


def test_graph_with_new_data():
    host, gpu = on_gpu(seqlen_q=1024, seqlen_k=1024)
    plan = random_plan(*host[:2], tile=128).to("cuda")
    attend(*gpu, plan)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = tilewise.attend(*gpu, plan)
    for i in range(3):
        for x in gpu:
            x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(i)))
        graph.replay()
        assert torch.equal(out, tilewise.attend(*gpu, plan))


def plan_on_gpu(q, k, *args, **kwargs):
    try:
        return tilewise.plan(q, k, *args, **kwargs)
    except NotImplementedError as error:
        assert "plan with q.cpu()" in str(error)
        pytest.skip("this build has no kernels for a GPU")


def test_plan_on_gpu():
    """mean_pool's plan as the CPU makes it, from a call that a graph can hold."""
    host, gpu = on_gpu(seqlen_q=1024, seqlen_k=1024, batch=1)
    options = dict(density=0.4, tile=128)
    made = plan_on_gpu(*gpu[:2], "mean_pool", **options)
    assert made.device.type == "cuda" and made.layout.device.type == "cpu"
    made.validate(tilewise.Mask.causal())
    assert made.density == pytest.approx(tilewise.plan(*host[:2], "mean_pool", **options).density, abs=0.02)
    exact, _ = reference(*host, made.to_bits())
    assert (attend(*gpu, made).cpu().double() - exact).abs().max() < 3e-2
    graph, out = torch.cuda.CUDAGraph(), None
    tilewise.attention(*gpu, "mean_pool", True, **options)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        out = tilewise.attention(*gpu, "mean_pool", True, **options)
    for x in gpu:
        x.copy_(x.flip(2))
    graph.replay()
    assert torch.equal(out, tilewise.attention(*gpu, "mean_pool", True, **options))


@pytest.mark.parametrize("method", [one.name for one in tilewise.methods() if one.name != "random"])
def test_attention(method):
    """Whatever the method, planned there or on the CPU: what is attended and its gradient are those of its plan."""
    host, gpu = on_gpu(seqlen_q=512, seqlen_k=512, batch=1)
    attend(*gpu, tilewise.plan(*host[:2], "dense", tile=128).to("cuda"))
    leaves = [x.clone().requires_grad_() for x in gpu]
    out = tilewise.attention(*leaves, method, True)
    exact_leaves = [x.double().requires_grad_() for x in host]
    plan = tilewise.plan(*host[:2], method, v=host[2])
    exact, _ = reference(*exact_leaves, plan.to_bits())
    close = (out.detach().cpu().double() - exact.detach()).abs().amax(-1) < 3e-2
    assert close.float().mean() > 0.9  # a tile more or less where two scores nearly meet
    dout = torch.randn(out.shape, dtype=torch.float64)
    out.backward(dout.to(out))
    exact.backward(dout)
    for got, expected in zip(leaves, exact_leaves):
        assert got.grad is not None and ((got.grad.cpu().double() - expected.grad).abs().amax(-1) < 6e-2).float().mean() > 0.8


def test_refusals():
    host, gpu = on_gpu(dim=512)
    plan = random_plan(*host[:2])
    with pytest.raises(NotImplementedError, match="no backend takes this problem"):
        tilewise.attend(*gpu, plan.to("cuda"))
    with pytest.raises(NotImplementedError, match="plan with q.cpu"):
        tilewise.plan(*gpu[:2], "random")
    with pytest.raises(ValueError, match="the context runs on|is on"):
        tilewise.attend(*gpu, plan)
    with pytest.raises(ValueError, match="takes the CPU"):
        tilewise.attend(*gpu, tilewise.Plan(plan.memory.cuda(), plan.layout.cuda()))
