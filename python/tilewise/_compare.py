# SPDX-License-Identifier: Apache-2.0
"""What a model's attention costs and loses under each method: capture and compare."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional, Union

import torch
from torch import Tensor
from transformers import PreTrainedModel

from . import huggingface
from ._attention import attend
from ._mask import Mask
from ._plan import OptionValue
from ._plan import plan as make_plan

Choice = Union[str, tuple[str, Mapping[str, OptionValue]]]


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
        with _configured(model, "dense", {}), huggingface.observe(model, save):
            _run(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return paths


class _configured:
    """A model configured for a while: what it ran before comes back."""

    def __init__(self, model: PreTrainedModel, method: str, options: Mapping[str, Any]) -> None:
        self.model, self.call = model, lambda: huggingface.configure(model, method, **options)

    def __enter__(self) -> None:
        self.implementation = self.model.config._attn_implementation
        self.layers = [(module, getattr(module, huggingface._ATTRIBUTE, None)) for _, module in huggingface.attention_layers(self.model)]
        self.call()

    def __exit__(self, *_: Any) -> None:
        for module, layer in self.layers:
            if layer is None:
                delattr(module, huggingface._ATTRIBUTE)
            else:
                setattr(module, huggingface._ATTRIBUTE, layer)
        self.model.set_attn_implementation(self.implementation)


@dataclasses.dataclass
class Row:
    """One method over all layers. Error and recall are taken in the method's own run, on the q, k and v of each layer."""

    method: str
    options: dict[str, OptionValue]
    density: Optional[float] = None  # pairs read / pairs that dense attention reads
    recall: Optional[float] = None  # mean over rows of the probability that dense attention puts on what was read
    output_error: Optional[float] = None  # ||sparse - dense|| / ||dense|| of the attention outputs
    loss: Optional[float] = None  # mean negative log-likelihood of the next token, in nats; where the inputs are token ids
    plan_ms: Optional[float] = None
    attend_ms: Optional[float] = None
    dense_ms: Optional[float] = None  # dense attention on the same tensors, one after the other
    refused: Optional[str] = None  # why the method does not take this model or input

    @property
    def speedup(self) -> Optional[float]:
        """Dense attention / (plan + attend)."""
        if self.plan_ms is None or self.attend_ms is None or self.dense_ms is None:
            return None
        return self.dense_ms / (self.plan_ms + self.attend_ms)

    @property
    def label(self) -> str:
        return " ".join([self.method, *(f"{name}={value}" for name, value in self.options.items())])


@dataclasses.dataclass
class Comparison:
    """What :func:`compare` found: a table in a terminal, a table with bars in a notebook, figures in `rows`."""

    rows: list[Row]
    tokens: int
    model: str

    def best(self, max_error: float = 0.05) -> Optional[Row]:
        """The fastest row whose output error is at most `max_error`, if one is faster than dense."""
        fit = [row for row in self.rows[1:] if row.output_error is not None and row.output_error <= max_error and row.speedup is not None and row.speedup > 1]
        return max(fit, key=lambda row: row.speedup or 0, default=None)

    def to_json(self) -> str:
        rows = [dataclasses.asdict(row) | {"speedup": row.speedup} for row in self.rows]
        return json.dumps({"schema": 1, "model": self.model, "tokens": self.tokens, "methods": rows}, indent=1)

    _COLUMNS = (
        ("density", "density", "{:.3f}"), ("recall", "recall", "{:.4f}"), ("output_error", "error", "{:.4f}"), ("loss", "loss", "{:.4f}"),
        ("plan_ms", "plan ms", "{:.1f}"), ("attend_ms", "attend ms", "{:.1f}"), ("speedup", "speedup", "{:.2f}x"),
    )  # fmt: skip

    def _cells(self, row: Row) -> list[str]:
        return ["" if getattr(row, name) is None else form.format(getattr(row, name)) for name, _, form in self._COLUMNS]

    def __str__(self) -> str:
        table = [["method", *(title for _, title, _ in self._COLUMNS)]]
        table += [[row.label, *self._cells(row)] if row.refused is None else [row.label, "refused: " + row.refused.splitlines()[0]] for row in self.rows]
        widths = [max(len(line[i]) for line in table if len(line) > 2) for i in range(len(table[0]))]
        return "\n".join("  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]).rstrip() for line in table)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{title}</th>" for _, title, _ in self._COLUMNS)
        body = []
        for row in self.rows:
            name = f"<td style='text-align:left'><code>{html.escape(row.label)}</code></td>"
            if row.refused is not None:
                body.append(f"<tr>{name}<td colspan='{len(self._COLUMNS)}' style='text-align:left'>refused: {html.escape(row.refused)}</td></tr>")
                continue
            share = 100 * min(1.0, row.density or 0)
            bar = f"background:linear-gradient(90deg,#9ecae1 {share:.0f}%,transparent {share:.0f}%)"
            cells = [f"<td style='{bar if i == 0 else ''}'>{cell}</td>" for i, cell in enumerate(self._cells(row))]
            body.append(f"<tr>{name}{''.join(cells)}</tr>")
        best = self.best()
        verdict = f"<code>{html.escape(best.label)}</code> is {best.speedup:.2f}x as fast as dense attention, with an output error of {best.output_error:.4f}." if best else (
            "No method is both faster than dense attention and within an output error of 0.05 here."
        )
        title = f"<caption>{html.escape(self.model)}, {self.tokens} tokens. {verdict}</caption>"
        return f"<table>{title}<thead><tr><th>method</th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _loss(logits: Optional[Tensor], inputs: Any) -> Optional[float]:
    ids = inputs if isinstance(inputs, Tensor) else inputs.get("input_ids")
    if logits is None or ids is None or ids.shape[1] < 2:
        return None
    mask = None if isinstance(inputs, Tensor) else inputs.get("attention_mask")
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")
    if mask is None or mask.dim() != 2:
        return losses.mean().item()
    real = (mask[:, 1:] * mask[:, :-1]).bool()
    return losses[real].mean().item()


def _choices(methods: Iterable[Choice]) -> Iterator[tuple[str, dict[str, OptionValue]]]:
    for choice in methods:
        yield (choice, {}) if isinstance(choice, str) else (choice[0], dict(choice[1]))


@torch.no_grad()
def compare(model: PreTrainedModel, inputs: Union[Tensor, Mapping[str, Any]], methods: Sequence[Choice] = ("a_shape", "xattention", "minference", "flexprefill", "mean_pool")) -> Comparison:
    """Runs a model once with dense attention and once with each method, in all its layers, and says what each read, missed and took.

    inputs   token ids [B, S], or the model's keyword arguments, on the CPU.
    methods  names, or (name, options): ("xattention", {"threshold": 0.95}).
    A method that does not take the model becomes a row that says why. The model is left as it was.
    """
    modes = model.training
    model.eval()
    rows, tokens = [], 0
    try:
        for method, options in [("dense", {}), *_choices(methods)]:
            row = Row(method, options)
            reads = dense_reads = 0.0
            squares, errors, recalls, plan_ms, attend_ms, dense_ms = 0.0, 0.0, [], 0.0, 0.0, 0.0

            def look(call: huggingface.Call) -> None:
                nonlocal reads, dense_reads, squares, errors, plan_ms, attend_ms, dense_ms, tokens
                if call.plan is None or call.mask is None:
                    return
                tokens = max(tokens, call.q.shape[2])
                dense = make_plan(call.q, call.k, "dense", call.mask)
                results = {}
                # One after the other, and which goes first alternates, so that a slow moment hits both alike.
                for plan in (call.plan, dense) if call.layer % 2 else (dense, call.plan):
                    start = time.perf_counter()
                    results[id(plan)] = attend(call.q, call.k, call.v, plan, call.scale, call.softcap, call.sink_logit, return_lse=True)
                    took = 1e3 * (time.perf_counter() - start)
                    if plan is dense:
                        dense_ms += took
                    else:
                        attend_ms += took
                (out, lse), (exact, exact_lse) = results[id(call.plan)], results[id(dense)]
                plan_ms += call.plan_ms
                reads += call.plan.reads()
                dense_reads += call.plan.dense_reads
                squares += exact.double().square().sum().item()
                errors += (out.double() - exact.double()).square().sum().item()
                recalls.append(torch.exp(lse - exact_lse)[torch.isfinite(exact_lse)].mean().item())

            try:
                with _configured(model, method, options), huggingface.observe(model, look):
                    output = _run(model, inputs)
                row.loss = _loss(getattr(output, "logits", None), inputs)
                row.density = reads / dense_reads if dense_reads else None
                row.recall = sum(recalls) / len(recalls) if recalls else None
                row.output_error = (errors / squares) ** 0.5 if squares else None
                row.plan_ms, row.attend_ms, row.dense_ms = plan_ms, attend_ms, dense_ms
            except NotImplementedError as error:
                row.refused = str(error)
            rows.append(row)
    finally:
        model.train(modes)
    return Comparison(rows, tokens, type(model).__name__)
