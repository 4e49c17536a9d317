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


def attend(*args, **kwargs):
    try:
        return tilewise.attend(*args, **kwargs)
    except NotImplementedError as error:
        assert "no backend takes this problem" in str(error) and "cuda:0" in str(error)
        if "sm90" not in str(error):
            pytest.skip("this build has no kernels for a GPU")
        raise


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
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
    host, gpu = on_gpu(torch.float32)
    plan = random_plan(*host[:2])
    with pytest.raises(NotImplementedError, match="no backend takes this problem"):
        tilewise.attend(*gpu, plan.to("cuda"))
    with pytest.raises(ValueError, match="the context runs on|is on"):
        tilewise.attend(*gpu, plan)
    with pytest.raises(ValueError, match="takes the CPU"):
        tilewise.attend(*gpu, tilewise.Plan(plan.memory.cuda(), plan.layout.cuda()))
