# SPDX-License-Identifier: Apache-2.0
"""q, k and v of a model's layers as files; and the model's attention turned over to this package for a while."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional, Union

import torch
from torch import Tensor
from transformers import PreTrainedModel

from . import huggingface
from ._mask import Mask


@contextlib.contextmanager
def configured(model: PreTrainedModel) -> Iterator[None]:
    """A model whose attention runs here, densely, for a while: what it ran before comes back."""
    implementation = model.config._attn_implementation
    layers = [(module, getattr(module, huggingface._ATTRIBUTE, None)) for _, module in huggingface.attention_layers(model)]
    try:
        huggingface.configure(model, "dense")
        yield
    finally:
        for module, layer in layers:
            if layer is not None:
                setattr(module, huggingface._ATTRIBUTE, layer)
            elif hasattr(module, huggingface._ATTRIBUTE):
                delattr(module, huggingface._ATTRIBUTE)
        model.set_attn_implementation(implementation)


def _run(model: PreTrainedModel, inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs)


def _norm_or_projection(module: torch.nn.Module, which: str) -> Optional[torch.nn.Module]:
    """Where a layer's q or k comes from before rotary positions: its norm of heads, else its projection."""
    for name in (f"{which}_norm", f"{which}_proj"):
        found = getattr(module, name, None)
        if isinstance(found, torch.nn.Module):
            return found
    return None


@torch.no_grad()
def capture(model: PreTrainedModel, inputs: Union[Tensor, Mapping[str, Any]], folder: Union[str, os.PathLike[str]], layers: Optional[Sequence[int]] = None) -> list[pathlib.Path]:
    """Runs a model once, densely, and saves q, k and v of its layers for `tilewise compare --qkv` (docs/formats/qkv.md): folder/layer0.safetensors, ...

    inputs  token ids [B, S], or the model's keyword arguments. layers: their numbers; default all.
    Beside q, k, v (after rotary positions) stand q_pre_rotary and k_pre_rotary, where the layer has a q_proj or q_norm to take them from.
    """
    from safetensors.torch import save_file

    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    modules = dict(huggingface.attention_layers(model))
    wanted = sorted(modules) if layers is None else list(layers)
    for layer in wanted:
        if layer not in modules:
            raise ValueError(f"capture: layers names layer {layer}, the model has {sorted(modules)}")
    before: dict[tuple[int, str], Tensor] = {}
    hooks = []
    for layer in wanted:
        for which in ("q", "k"):
            source = _norm_or_projection(modules[layer], which)
            if source is not None:
                hooks.append(source.register_forward_hook(lambda module, args, out, key=(layer, which): before.__setitem__(key, out)))
    paths: list[pathlib.Path] = []

    def save(call: huggingface.Call) -> None:
        if call.layer not in wanted:
            return
        if call.sequences:
            raise NotImplementedError("capture: a batch whose padding has holes is computed sequence by sequence; give it padding at one end, or none")
        if call.softcap:
            raise NotImplementedError("capture: tilewise compare --qkv has no softcap, which this model uses")
        tensors = {"q": call.q, "k": call.k, "v": call.v}
        metadata = {"softmax_scale": repr(call.scale)}
        mask = Mask.causal() if call.plan is None else call.plan.mask
        if mask.numbers in (Mask.causal().numbers, Mask.full().numbers):
            metadata["is_causal"] = "true" if mask.numbers == Mask.causal().numbers else "false"
        elif call.plan is not None:
            tensors["mask"] = call.plan.to_bits()[:, :1]
        for which, shaped in (("q", call.q), ("k", call.k)):
            raw = before.pop((call.layer, which), None)
            if raw is not None and raw.numel() == shaped.numel():  # [B, S, H * D] of a projection, [B, S, H, D] or [B, H, S, D] of a norm
                batch, heads, tokens, channels = shaped.shape
                tensors[f"{which}_pre_rotary"] = raw if raw.shape == shaped.shape else raw.reshape(batch, tokens, heads, channels).transpose(1, 2)
        path = folder / f"layer{call.layer}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
        paths.append(path)

    try:
        with configured(model), huggingface.observe(model, save):
            _run(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return paths
