# SPDX-License-Identifier: Apache-2.0
"""Diffusion models of diffusers: an attention processor for those whose self-attention is diffusers' `Attention` (DiT, PixArt, Stable Diffusion's U-Nets and others).

    import tilewise.diffusers
    tilewise.diffusers.configure(transformer, "xattention", threshold=0.95)
    transformer(latents, timestep, cross_attention_kwargs={"method": "dense"})      # for one call
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from ._attention import attend
from ._mask import Mask
from ._plan import OptionValue, Plan, check_method
from ._plan import plan as make_plan


class TilewiseAttnProcessor:
    """Self-attention over a plan. Projections, norms, residual and shapes are those of the `Attention` that it serves; q, k and v are read where the projections left them, [B, S, H, D].

    method, options  what plans, for every call; density and plan of the last call stay in `last_plan`.
    A call may bring its own by cross_attention_kwargs (attention_kwargs): `method` with `options`, or a ready `plan`.
    """

    def __init__(self, method: str = "dense", options: Optional[Mapping[str, OptionValue]] = None, layer: int = 0) -> None:
        self.method, self.options, self.layer = method, dict(options or {}), layer
        check_method(method, self.options)
        self.last_plan: Optional[Plan] = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Optional[Tensor] = None,
        attention_mask: Optional[Tensor] = None,
        temb: Optional[Tensor] = None,
        method: Optional[str] = None,
        options: Optional[Mapping[str, OptionValue]] = None,
        plan: Optional[Plan] = None,
    ) -> Tensor:
        if encoder_hidden_states is not None:
            raise NotImplementedError("TilewiseAttnProcessor: this is cross-attention; tilewise.diffusers.configure leaves it to the processor that it had")
        if attention_mask is not None:
            raise NotImplementedError("TilewiseAttnProcessor: an additive attention mask is not computed; leave this layer to its own processor")
        residual, shape = hidden_states, hidden_states.shape
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if len(shape) == 4:  # an image: its pixels are the tokens
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        q, k, v = (projection(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for projection in (attn.to_q, attn.to_k, attn.to_v))
        if attn.norm_q is not None:
            q = attn.norm_q(q)
        if attn.norm_k is not None:
            k = attn.norm_k(k)
        if plan is None:
            name = self.method if method is None else method
            chosen = dict(options or {}) if method is not None else self.options
            plan = make_plan(q, k, name, Mask.full(), v=v, scale=attn.scale, layer=self.layer, **chosen)  # type: ignore[arg-type]
        self.last_plan = plan
        out = attend(q, k, v, plan, attn.scale).transpose(1, 2).flatten(2)
        for step in attn.to_out:  # the projection, and dropout
            out = step(out)
        if len(shape) == 4:
            out = out.transpose(1, 2).reshape(shape)
        return (out + residual if attn.residual_connection else out) / attn.rescale_output_factor


def configure(model: torch.nn.Module, method: str = "dense", *, layers: Optional[Mapping[int, tuple[str, Mapping[str, OptionValue]]]] = None, **options: OptionValue) -> list[TilewiseAttnProcessor]:
    """Gives every self-attention of the model a processor of its own; cross-attention keeps what it has. `layers` names others, counted in the order of the model.

    Errors  NotImplementedError: the model has no self-attention of the class Attention, or one with added projections (those are of families with processors of their own).
    """
    found = [module for module in model.modules() if isinstance(module, Attention) and not module.is_cross_attention]
    if not found:
        raise NotImplementedError(f"tilewise.diffusers.configure: {type(model).__name__} has no self-attention of diffusers' class Attention")
    for module in found:
        if getattr(module, "add_k_proj", None) is not None or module.to_q is None:
            raise NotImplementedError(f"tilewise.diffusers.configure: {type(model).__name__} projects text beside the image in one attention, which takes a processor of its family")
    processors = []
    for layer, module in enumerate(found):
        name, chosen = (layers or {}).get(layer, (method, options))
        processors.append(TilewiseAttnProcessor(name, chosen, layer))
        module.set_processor(processors[-1])  # type: ignore[arg-type]
    return processors
