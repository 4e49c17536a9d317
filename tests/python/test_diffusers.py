# SPDX-License-Identifier: Apache-2.0
"""Small random models of diffusers: dense equals their own processor, sparse equals the definition."""

import pytest
import torch
from conftest import reference
from diffusers import DiTTransformer2DModel, UNet2DModel

import tilewise
import tilewise.diffusers as processors


def dit():
    torch.manual_seed(0)
    return DiTTransformer2DModel(num_attention_heads=4, attention_head_dim=16, in_channels=4, num_layers=3, sample_size=16, patch_size=1, norm_num_groups=2).eval()


def call(model, **kwargs):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 16, 16, generator=generator)
    return model(latents, timestep=torch.tensor([10, 500]), class_labels=torch.tensor([1, 7]), **kwargs).sample


@torch.no_grad()
def test_dense_dit_equals_its_own_attention():
    model = dit()
    expected = call(model)
    used = processors.configure(model)
    assert len(used) == 3
    assert torch.allclose(call(model), expected, atol=1e-4)
    assert used[0].last_plan.density == 1


@torch.no_grad()
def test_sparse_dit_reads_what_its_plan_says(monkeypatch):
    model = dit()
    used = processors.configure(model, "random", density=0.3, tile=16, layers={1: ("dense", {})})
    seen = []
    attend = tilewise.attend
    monkeypatch.setattr(processors, "attend", lambda *args: seen.append((args, attend(*args))) or seen[-1][1])
    sparse = call(model)
    assert used[1].last_plan.density == 1 and used[0].last_plan.density < 0.6
    for (q, k, v, plan, scale), out in seen:
        assert q.transpose(1, 2).is_contiguous()  # [B, S, H, D] as the projection left it
        assert (out - reference(q, k, v, plan.to_bits(), scale)[0]).abs().max() < 1e-5
    # One call's own choice.
    dense = call(model, cross_attention_kwargs={"method": "dense"})
    assert used[0].last_plan.density == 1 and not torch.allclose(dense, sparse, atol=1e-4)
    again = call(model, cross_attention_kwargs={"plan": used[0].last_plan})
    assert torch.equal(again, dense)


@torch.no_grad()
def test_images_as_tokens():
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    image = torch.randn(1, 3, 16, 16)
    expected = model(image, 10).sample
    assert processors.configure(model)
    assert torch.allclose(model(image, 10).sample, expected, atol=1e-4)


def test_training_goes_through():
    model = dit()
    processors.configure(model, "random", density=0.5, tile=16)
    call(model).square().mean().backward()
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for name, parameter in model.named_parameters() if "to_q" in name)


def test_refusals():
    with pytest.raises(NotImplementedError, match="no self-attention"):
        processors.configure(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="did you mean"):
        processors.configure(dit(), "xatention")
    model = dit()
    processors.configure(model, "minference")  # takes causal masks alone: refused, not run densely
    with pytest.raises(NotImplementedError):
        call(model)
