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


def test_refusals():
    host, gpu = on_gpu(torch.float32)
    plan = random_plan(*host[:2])
    with pytest.raises(NotImplementedError, match="no backend takes this problem"):
        tilewise.attend(*gpu, plan.to("cuda"))
    with pytest.raises(ValueError, match="the context runs on|is on"):
        tilewise.attend(*gpu, plan)
    with pytest.raises(NotImplementedError, match="plan with q.cpu"):
        tilewise.plan(*gpu[:2], "dense")
    with pytest.raises(ValueError, match="takes the CPU"):
        tilewise.attend(*gpu, tilewise.Plan(plan.memory.cuda(), plan.layout.cuda()))
