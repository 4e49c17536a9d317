#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A diffusion transformer attends by a sparse method: examples/diffusion.py [PIPELINE FOLDER PROMPT]. Without a folder a small random Flux stands in, for the transformer alone."""

import sys

import diffusers
import torch

import tilewise.diffusers

if len(sys.argv) > 2:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])
    tilewise.diffusers.configure(pipeline.transformer, "xattention", threshold=0.95)
    pipeline(sys.argv[2], num_inference_steps=20).images[0].save("sparse.png")
    print("sparse.png")
    sys.exit()

torch.manual_seed(0)
side, words = 32, 20
model = diffusers.FluxTransformer2DModel(
    in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=32, num_attention_heads=4, joint_attention_dim=64, pooled_projection_dim=64, axes_dims_rope=(8, 12, 12)
).eval()
places = torch.zeros(side * side, 3)
places[:, 1], places[:, 2] = torch.arange(side * side) // side, torch.arange(side * side) % side
text, pooled = torch.randn(1, words, 64), torch.randn(1, 64)


@torch.no_grad()
def denoise(steps: int = 4) -> torch.Tensor:
    """Euler's method from noise to an image."""
    image = torch.randn(1, side * side, 4, generator=torch.Generator().manual_seed(1))
    for step in range(steps, 0, -1):
        time = torch.tensor([step / steps])
        inputs = dict(encoder_hidden_states=text, pooled_projections=pooled, timestep=time, img_ids=places, txt_ids=torch.zeros(words, 3))
        image = image - model(hidden_states=image, **inputs).sample / steps
    return image


dense = denoise()
# The text's tokens come first and are kept whole; the first block stays dense.
methods = {"dense": {}, "xattention": {"threshold": 0.9, "tile": 64}, "mean_pool": {"density": 0.3, "tile": 64}}
for method, options in methods.items():
    densities: list[float] = []
    with tilewise.diffusers.configured(model, method, keep_first=words, layers={0: "dense"}, **options):
        with tilewise.diffusers.observe(model, lambda call: densities.append(call.plan.density)):
            error = (denoise() - dense).norm() / dense.norm()
    print(f"{method:12} density {sum(densities) / len(densities):.3f}  error {error:.2e}")
