# SPDX-License-Identifier: Apache-2.0
"""Hugging Face transformers: importing this module registers `attn_implementation="tilewise"`; :func:`configure` says what each layer runs.

    import tilewise.huggingface
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="tilewise")         # dense, exact
    tilewise.huggingface.configure(model, "xattention", threshold=0.95)                          # every layer's prompts by a method
    tilewise.huggingface.configure(model, "recipe.json")                                         # a method per layer and head
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Optional, Union

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from ._attention import attend, attention, decode
from ._call import Call as Call
from ._errors import expect
from ._hf_mask import VisibleKeys, tilewise_mask
from ._mask import Mask, allowed_of
from ._plan import OptionValue, Plan, check_method, combine_heads, plan_of_bits
from ._plan import plan as make_plan
from ._sequences import Tokens, attend_each

NAME = "tilewise"
_ATTRIBUTE = "tilewise_layer"
_MOST_NEW_TOKENS = 8  # that tilewise.decode takes
_FROM_LENGTHS_ALONE = ("dense", "a_shape")  # methods that look at no tensor: one plan serves all layers of a forward pass


@dataclasses.dataclass(frozen=True)
class Use:
    """A method with its options."""

    method: str = "dense"
    options: tuple[tuple[str, OptionValue], ...] = ()


@dataclasses.dataclass(frozen=True)
class Layer:
    """What one attention layer runs."""

    layer: int = 0
    default: Use = Use()
    heads: tuple[tuple[tuple[int, ...], Use], ...] = ()  # query heads with a method of their own
    decode: Literal["dense", "same"] = "dense"
    observer: Optional[Callable[[Call], None]] = None
    runner: Optional[Runner] = None  # plans and attends in place of this module: a comparison, which measures as it does

    @property
    def has_method(self) -> bool:
        """Whether anything but dense attention is asked for."""
        return self.default.method != "dense" or bool(self.heads) or self.runner is not None


Runner = Callable[[Tensor, Tensor, Tensor, Mask, float, float, Optional[Tensor]], Tensor]  # q, k, v, mask, scale, softcap, sink_logit -> out


_DENSE = Layer()  # made here, once: torch.compile does not make dataclasses


def _use(method: str, options: Mapping[str, OptionValue]) -> Use:
    check_method(method, dict(options))
    return Use(method, tuple(sorted(options.items())))


def _named_layers(model: torch.nn.Module) -> list[tuple[str, int, torch.nn.Module]]:
    found = []
    for name, module in model.named_modules():
        layer = getattr(module, "layer_idx", None)
        if isinstance(layer, int) and (hasattr(module, "num_key_value_groups") or hasattr(module, "is_causal")):
            found.append((name, layer, module))
    return found


def attention_layers(model: torch.nn.Module) -> list[tuple[int, torch.nn.Module]]:
    """The modules of a model that run attention, with their layer numbers."""
    return [(layer, module) for _, layer, module in _named_layers(model)]


def _is_cross(name: str, module: torch.nn.Module) -> bool:
    """Whether a layer's queries read keys of other tokens. Models say so in their own ways."""
    says = getattr(module, "is_cross_attention", None)
    if isinstance(says, bool):
        return says
    if getattr(module, "is_decoder", False) and getattr(module, "is_causal", None) is False:
        return True
    names = f"{type(module).__name__} {name}".lower()
    return any(word in names for word in ("cross", "encoder_attn", "encdec"))


def configure(
    model: PreTrainedModel,
    method: Union[str, os.PathLike[str], Mapping[str, Any]] = "dense",
    *,
    layers: Optional[Mapping[int, Union[str, tuple[str, Mapping[str, OptionValue]]]]] = None,
    sliding: Union[str, tuple[str, Mapping[str, OptionValue]]] = "dense",
    decode: Literal["dense", "same"] = "dense",
    **options: OptionValue,
) -> PreTrainedModel:
    """Makes a model run its attention by Tilewise, and says how.

    method   a method with its `options`, or a recipe: the path of a recipe.json (docs/formats/recipe.md) or what is in one.
    layers   layers with a method of their own, by number: "dense", or ("a_shape", {"local": 512}).
    sliding  what layers with a sliding window run: most methods take causal masks alone, so these layers read their window densely unless told otherwise.
    decode   how new tokens (up to 8 at a time) read the cache: "dense", every key that the mask allows; "same", by the method.
    Cross-attention reads every key, whatever the rest does. Encoder and decoder of one model have layers of the same numbers: to tell them apart, configure model.get_encoder()
    and model.get_decoder() one by one.
    Nothing is ever run densely in place of what a method refuses: that is a NotImplementedError.
    Errors   ValueError (unknown method or option, a recipe for another model), OSError (no such recipe).
    """
    named = _named_layers(model)
    found = [(layer, module) for _, layer, module in named]
    if not found:
        raise ValueError("configure: this model has no attention layer that names its layer_idx")
    count = 1 + max(layer for layer, _ in found)
    if decode not in ("dense", "same"):
        raise ValueError(f"configure: decode is {decode!r}, takes 'dense' or 'same'")
    uses = {layer: Layer(layer, decode=decode) for layer in range(count)}
    if isinstance(method, str) and not method.endswith(".json"):
        use = _use(method, options)
        uses = {layer: dataclasses.replace(one, default=use) for layer, one in uses.items()}
    else:
        if options:
            raise ValueError("configure: a recipe names its options itself; got " + ", ".join(options))
        recipe, name = (method, "the recipe") if isinstance(method, Mapping) else (_read_json(os.fspath(method)), os.fspath(method))
        try:
            uses = _uses_of_recipe(recipe, uses, model)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"configure: {name} is not a recipe ({type(error).__name__}: {error}); docs/formats/recipe.md says what is in one") from None
    window = _choice(sliding)
    for layer, module in found:
        if _window_of(module) is not None:
            uses[layer] = dataclasses.replace(uses[layer], default=window, heads=())
    numbers = [layer for name, layer, module in named if not _is_cross(name, module)]
    if len(set(numbers)) < len(numbers) and (layers or any(use.heads for use in uses.values())):
        raise ValueError("configure: this model's encoder and decoder have layers of the same numbers; configure model.get_encoder() and model.get_decoder() one by one")
    expect("configure", Mapping, layers={} if layers is None else layers)
    for layer, choice in (layers or {}).items():
        if layer not in uses:
            raise ValueError(f"configure: layers names layer {layer}, the model has 0 to {count - 1}")
        uses[layer] = dataclasses.replace(uses[layer], default=_choice(choice), heads=())
    for name, layer, module in named:
        setattr(module, _ATTRIBUTE, Layer(layer, decode=decode) if _is_cross(name, module) else uses[layer])
    model.set_attn_implementation(NAME)
    return model


def _choice(choice: Union[str, tuple[str, Mapping[str, OptionValue]]]) -> Use:
    return _use(choice, {}) if isinstance(choice, str) else _use(*choice)


def _window_of(module: torch.nn.Module) -> Optional[int]:
    """Tokens of a layer's sliding window. Models keep it in the layer, or in the config for all layers at once."""
    if hasattr(module, "sliding_window"):
        return module.sliding_window  # type: ignore[return-value]
    config = getattr(module, "config", None)
    types = getattr(config, "layer_types", None)
    if types is not None and types[module.layer_idx] != "sliding_attention":  # type: ignore[index]
        return None
    return getattr(config, "sliding_window", None)


def _read_json(path: str) -> Any:
    with open(path, encoding="utf-8") as file:
        try:
            return json.load(file)
        except ValueError as error:  # JSON's, or of bytes that are not UTF-8
            raise ValueError(f"configure: {path} is not JSON: {error}") from None


def _uses_of_recipe(recipe: Mapping[str, Any], uses: dict[int, Layer], model: PreTrainedModel) -> dict[int, Layer]:
    if recipe.get("schema") != 1:
        raise ValueError(f"configure: the recipe has schema {recipe.get('schema')!r}, this version reads 1")
    config = model.config.get_text_config()
    sizes = recipe.get("model", {})
    heads_q = config.num_attention_heads
    has = {
        "layers": config.num_hidden_layers,
        "heads_q": heads_q,
        "heads_kv": getattr(config, "num_key_value_heads", None) or heads_q,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads_q,
    }
    for name, value in has.items():
        if sizes.get(name) != value:
            raise ValueError(f"configure: the recipe was made for a model with {name} {sizes.get(name)}, this one has {value}")

    def use_of(entry: Mapping[str, Any]) -> Use:
        return _use(entry["method"], entry.get("options", {}))

    made = {layer: dataclasses.replace(one, default=use_of(recipe["default"])) for layer, one in uses.items()}
    for entry in recipe.get("layers", []):
        layer, groups = entry["layer"], []
        named: set[int] = set()
        if layer not in made:
            raise ValueError(f"configure: the recipe names layer {layer}, the model has 0 to {len(made) - 1}")
        for group in entry["heads"]:
            heads = tuple(group["heads"])
            if named & set(heads) or any(not 0 <= head < heads_q for head in heads):
                raise ValueError(f"configure: the recipe's heads {list(heads)} of layer {layer} are out of range or named twice")
            named |= set(heads)
            groups.append((heads, use_of(group)))
        made[layer] = dataclasses.replace(made[layer], heads=tuple(groups))
    return made


@contextlib.contextmanager
def observe(model: torch.nn.Module, observer: Callable[[Call], None]) -> Iterator[None]:
    """Calls `observer` with what every attention layer did, in the order in which they ran.

    plans = {}
    with tilewise.huggingface.observe(model, lambda call: plans.__setitem__(call.layer, call.plan)):
        model(**inputs)
    """
    found = [(module, getattr(module, _ATTRIBUTE, Layer(layer))) for layer, module in attention_layers(model)]
    for module, layer in found:
        setattr(module, _ATTRIBUTE, dataclasses.replace(layer, observer=observer))
    try:
        yield
    finally:
        for module, layer in found:
            setattr(module, _ATTRIBUTE, layer)


def _plan_of(layer: Layer, number: int, mask: Mask, plans_of_lengths: dict[Any, Plan], q: Tensor, k: Tensor, v: Tensor, scale: Optional[float], softcap: float) -> Plan:
    def of(use: Use) -> Plan:
        key = (use, mask, tuple(q.shape), tuple(k.shape), q.device)
        if use.method in _FROM_LENGTHS_ALONE and key in plans_of_lengths:
            return plans_of_lengths[key]
        made = make_plan(q.cpu(), k.cpu(), use.method, mask, v=v.cpu(), scale=scale, softcap=softcap, layer=number, **dict(use.options)).to(q.device)  # type: ignore[arg-type]
        if use.method in _FROM_LENGTHS_ALONE:
            plans_of_lengths[key] = made
        return made

    if not layer.heads:
        return of(layer.default)
    plans, plan_of_head = [of(layer.default)], [0] * q.shape[1]
    for heads, use in layer.heads:
        for head in heads:
            plan_of_head[head] = len(plans)
        plans.append(of(use))
    return combine_heads(plans, plan_of_head).to(q.device)


def _refuse(what: str, way_on: str) -> None:
    raise NotImplementedError(f'attn_implementation="tilewise": {what}; {way_on}')


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: Optional[float] = None,
    dropout: float = 0.0,
    is_causal: Optional[bool] = None,
    softcap: Optional[float] = None,
    s_aux: Optional[Tensor] = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: query [B, Hq, S, D], key and value [B, Hkv, Sk, D]; the result is [B, S, Hq, D]."""
    if dropout:
        _refuse("attention dropout is not computed", "set attention_dropout to 0 in the model's config")
    if kwargs.get("position_bias") is not None:
        _refuse("a position bias is not computed", 'use attn_implementation="sdpa" for this model')
    if kwargs.get("output_attentions"):
        _refuse("attention weights are never made", 'use attn_implementation="eager" to look at them, or tilewise.measure')
    if kwargs.get("cache") is not None:
        _refuse("continuous batching keeps its keys in pages that it does not hand over", 'use attn_implementation="sdpa"')
    layer: Layer = getattr(module, _ATTRIBUTE, _DENSE)
    number: int = getattr(module, "layer_idx", None) or 0
    if attention_mask is None:
        is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        attention_mask = VisibleKeys(Mask.causal() if is_causal else Mask.full(), key.shape[2], is_band=True, left=None)
    s_aux = None if s_aux is None else s_aux.float()
    scale = 1 / query.shape[-1] ** 0.5 if scaling is None else float(scaling)
    cap = float(softcap) if softcap else 0.0

    def seen(q: Tensor, k: Tensor, v: Tensor, out: Tensor, plan: Optional[Plan], mask: Optional[Mask], plan_ms: float, sequences: tuple[Tokens, ...] = ()) -> None:
        if layer.observer is not None:
            layer.observer(Call(number, q, k, v, out, plan, mask, plan_ms, scale, cap, s_aux, sequences))

    if isinstance(attention_mask, Tensor):
        keys = key.shape[2]
        if attention_mask.shape[-1] != keys:  # a static cache is longer than a mask that was made without it
            keys = attention_mask.shape[-1]
            key, value = key[:, :, :keys], value[:, :, :keys]
        allowed = allowed_of(attention_mask, 'attn_implementation="tilewise"')
        if layer.has_method:
            _refuse("a ready-made 4-D mask goes with dense attention alone", "give the 2-D padding mask, or configure this layer as dense")
        plan = plan_of_bits(allowed, batch=query.shape[0], heads_q=query.shape[1]).to(query.device)
        out = attend(query, key, value, plan, scale, cap, s_aux)
        seen(query, key, value, out, plan, None, 0.0)
        return out.transpose(1, 2), None

    visible: VisibleKeys = attention_mask
    if visible.num_keys < key.shape[2]:  # what a static cache has not written yet
        key, value = key[:, :, : visible.num_keys], value[:, :, : visible.num_keys]
    if visible.is_traced and layer.has_method:
        what = "torch.compile cannot tell the sequences of a padded or packed batch apart, nor look into a window"
        _refuse(what, "compile such a model as dense, or run its methods without torch.compile")
    needs_grad = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    is_new = query.shape[2] <= _MOST_NEW_TOKENS and query.shape[2] < key.shape[2]
    chosen = _DENSE if is_new and layer.decode == "dense" else layer
    if chosen is not layer and visible.is_band and not needs_grad:  # a band alone needs no plan
        out = decode(query, key, value, mask=visible.mask, scale=scale, softcap=cap, sink_logit=s_aux)  # type: ignore[assignment]
        seen(query, key, value, out, None, visible.mask, 0.0)
        return out.transpose(1, 2), None

    def run(mask: Mask, q: Tensor, k: Tensor, v: Tensor, sequences: tuple[Tokens, ...] = ()) -> Tensor:
        if torch.compiler.is_compiling() and not (chosen.heads or sequences or layer.observer):
            options: dict[str, Any] = dict(chosen.default.options)
            return attention(q, k, v, chosen.default.method, mask=mask, scale=scale, softcap=cap, sink_logit=s_aux, layer=number, **options)
        is_padding = bool(sequences) and sequences[0].is_padding
        if chosen.runner is not None and not is_padding:
            return chosen.runner(q, k, v, mask, scale, cap, s_aux)
        start = time.perf_counter() if layer.observer is not None else 0.0
        plan = _plan_of(_DENSE if is_padding else chosen, number, mask, visible.plans, q, k, v, scale, cap)
        plan_ms = 1e3 * (time.perf_counter() - start) if layer.observer is not None else 0.0
        out = attend(q, k, v, plan, scale, cap, s_aux)
        if not is_padding:
            seen(q, k, v, out, plan, mask, plan_ms, sequences)
        return out

    if visible.band is not None and (chosen.has_method or visible.mask is None) and visible.sequences:
        out = attend_each(query, key, value, visible.sequences, functools.partial(run, visible.band))
    else:
        assert visible.mask is not None
        out = run(visible.mask, query, key, value)
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, tilewise_mask)
