# SPDX-License-Identifier: Apache-2.0
"""What the tests of the Python package share: a definition of attention in float64, and problems of many shapes."""

import math
import pathlib

import pytest
import torch

import tilewise

ROOT = pathlib.Path(__file__).resolve().parents[2]


def reference(q, k, v, allowed, scale=None, softcap=0.0, sink_logit=None):
    """out and lse in float64 from the definition. `allowed` bool [B, Hq, Sq, Sk] or broadcastable; gradients flow."""
    q, k, v = q.double(), k.double(), v.double()
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    s = (1 / math.sqrt(q.shape[-1]) if scale is None else scale) * (q @ k.transpose(-1, -2))
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    s = s.masked_fill(~allowed, -math.inf)
    if sink_logit is not None:
        s = torch.cat([s, sink_logit.double()[None, :, None, None].expand(*s.shape[:3], 1)], -1)
    lse = torch.logsumexp(s, -1)
    p = torch.where(torch.isneginf(s), torch.zeros_like(s), torch.exp(s - torch.where(torch.isneginf(lse), torch.zeros_like(lse), lse)[..., None]))
    return p[..., : k.shape[2]] @ v, lse


def assert_close(got, exact, dense_error, floor):
    """The bound of the C++ tests: twice the error that dense attention of torch has in the same dtype, plus a floor."""
    error = (got.double() - exact).abs().max().item() if exact.numel() else 0.0
    assert error <= 2 * dense_error + floor, f"error {error:.3g}, dense attention of torch has {dense_error:.3g}"


FLOOR = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def dense_error(q, k, v):
    """Error of torch's own dense attention on these tensors."""
    exact, _ = reference(q, k, v, torch.ones(q.shape[2], k.shape[2], dtype=torch.bool))
    got = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    return (got.double() - exact).abs().max().item()


def problem(batch=2, heads=4, heads_kv=2, seqlen_q=130, seqlen_k=130, dim=64, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda h, s: torch.randn(batch, h, s, dim, generator=generator).to(dtype)  # noqa: E731
    return draw(heads, seqlen_q), draw(heads_kv, seqlen_k), draw(heads_kv, seqlen_k)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random_plan(q, k, density=0.4, mask=None, tile=64):
    return tilewise.plan(q, k, "random", mask, density=density, tile=tile)
