# SPDX-License-Identifier: Apache-2.0
"""Diffusion models of diffusers: their self-attention by a method, whatever the family (Flux, Wan, SD3, CogVideoX, HunyuanVideo, Qwen-Image, LTX, DiT, U-Nets).

    import tilewise.diffusers
    tilewise.diffusers.configure(transformer, "xattention", threshold=0.95)
    tilewise.diffusers.restore(transformer)

Every family of diffusers has an attention *processor* of its own: projections, norms, rotary positions, and then one call of `dispatch_attention_fn` or of torch's
scaled_dot_product_attention. :func:`configure` gives each self-attention a processor of a subclass of the one that it had, which runs that one's own code and answers this one
call. Nothing of diffusers is copied or changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Optional, Union

import torch
import torch.nn.functional
from diffusers.models import attention_dispatch
from torch import Tensor

from ._attention import attend
from ._call import Call as Call
from ._errors import expect
from ._mask import Mask, allowed_of
from ._plan import OptionValue, Plan, check_method, plan_of_bits
from ._plan import plan as make_plan
from ._sequences import Tokens, attend_each
from .exchange import plan_of_blocks

Choice = Union[str, tuple[str, Mapping[str, OptionValue]]]
_DISPATCH, _SDPA = "dispatch_attention_fn", "scaled_dot_product_attention"


@dataclasses.dataclass(frozen=True)
class Layer:
    """What one self-attention runs."""

    layer: int
    name: str
    method: str
    options: Mapping[str, OptionValue]
    keep_first: int = 0
    keep_last: int = 0
    plan: Optional[Plan] = None
    observer: Optional[Callable[[Call], None]] = None

    def refuse(self, what: str) -> NotImplementedError:
        way_on = f"layers={{{self.name!r}: None}} leaves this layer to its own processor"
        return NotImplementedError(f"tilewise.diffusers: {self.name}: {what}; {way_on}")


class TilewiseProcessor:
    """What :func:`configure` gives a self-attention, beside the class of the processor that it had. `tilewise` says what it runs.

    Where a model hands its kwargs to the processors (cross_attention_kwargs, joint_attention_kwargs, attention_kwargs), a call may bring its own `method` with `options`,
    or a ready `plan`. That is not for several threads on one model.
    """

    tilewise: Layer
    tilewise_own: Any  # the processor that the layer had
    tilewise_code: Callable[..., Any]  # that one's __call__, which finds our attention

    def __reduce__(self) -> Any:  # the class is made at run time, the code is bound to this very object
        state = {name: value for name, value in self.__dict__.items() if name != "tilewise_code"}
        return _blank, (type(self.tilewise_own),), state


class _Functional:
    """torch.nn.functional with an attention of ours."""

    def __init__(self, attention: Callable[..., Tensor]) -> None:
        self.scaled_dot_product_attention = attention

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.nn.functional, name)


def _names(code: types.CodeType) -> set[str]:
    """The names that code and the functions in it look up."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found


def _call_of(own: type) -> types.FunctionType:
    return own.__call__  # type: ignore[operator,return-value]


def _why_not(own: Any) -> Optional[str]:
    """Why the attention of a processor cannot be answered in its place; None: it can."""
    function = _call_of(type(own))
    if not isinstance(function, types.FunctionType) or hasattr(function, "__wrapped__"):
        return "its __call__ is wrapped by a decorator"
    names, known = _names(function.__code__), function.__globals__
    if {"functional", _SDPA} <= names:
        return f"it calls torch.nn.functional.{_SDPA} by its whole name"
    for name in names - {_DISPATCH}:
        for helper in (known.get(name), getattr(type(own), name, None)):
            if isinstance(helper, types.FunctionType) and helper is not function and {_DISPATCH, _SDPA} & _names(helper.__code__):
                return f"its attention is called in {name}, not in its own __call__"
    dispatches = _DISPATCH in names and known.get(_DISPATCH) is attention_dispatch.dispatch_attention_fn
    if not dispatches and not (_SDPA in names and known.get("F") is torch.nn.functional):
        return f"it calls neither {_DISPATCH} nor F.{_SDPA}"
    return None


def _code_with(function: types.FunctionType, processor: TilewiseProcessor) -> Callable[..., Any]:
    """The same code. Of the names that it looks up, only those by which it calls attention mean something else: ours, for this processor."""
    known = dict(function.__globals__)
    if _DISPATCH in known:
        known[_DISPATCH] = functools.partial(_dispatch, processor)
    if known.get("F") is torch.nn.functional:
        known["F"] = _Functional(functools.partial(_sdpa, processor))
    made = types.FunctionType(function.__code__.replace(), known, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    # torch.compile looks names up in the module that __name__ says, where they mean what they always did, and keeps what it compiled with the code, which is why it is a copy.
    return torch.compiler.disable(made, reason="tilewise answers the attention in it, which torch.compile would not see")


@functools.cache
def _class_of(own: type) -> type:
    """A subclass of a processor's class, so that diffusers sees the parameters, attributes and type that it knows."""

    def call(
        self: TilewiseProcessor, *args: Any, method: Optional[str] = None, options: Optional[Mapping[str, OptionValue]] = None, plan: Optional[Plan] = None, **kwargs: Any
    ) -> Any:  # fmt: skip
        if method is None and options is None and plan is None:
            return self.tilewise_code(self, *args, **kwargs)
        before = self.tilewise
        if options is not None and method is None:
            raise ValueError(f"tilewise.diffusers: {before.name}: options go with a method; give both")
        chosen = dataclasses.replace(before, plan=plan)
        if method is not None:
            check_method(method, dict(options or {}))
            chosen = dataclasses.replace(chosen, method=method, options=dict(options or {}))
        self.tilewise = chosen
        try:
            return self.tilewise_code(self, *args, **kwargs)
        finally:
            self.tilewise = before

    taken = list(inspect.signature(_call_of(own)).parameters.values())
    ours = [parameter for parameter in inspect.signature(call).parameters.values() if parameter.kind is parameter.KEYWORD_ONLY]
    last = [parameter for parameter in taken if parameter.kind is parameter.VAR_KEYWORD]
    call.__signature__ = inspect.Signature([*(parameter for parameter in taken if parameter not in last), *ours, *last])  # type: ignore[attr-defined]  # models ask for it
    return type(f"Tilewise{own.__name__}", (TilewiseProcessor, own), {"__call__": call, "__doc__": own.__doc__})


def _blank(own: type) -> TilewiseProcessor:
    made: TilewiseProcessor = object.__new__(_class_of(own))
    made.__dict__["tilewise_code"] = _code_with(_call_of(own), made)
    return made


def _processor_of(own: Any, layer: Layer) -> TilewiseProcessor:
    made = _blank(type(own))
    made.__dict__.update(own.__dict__, tilewise=layer, tilewise_own=own)  # past torch's Module, which would count the weights of `own` twice
    return made


# What the processors call.


def _dispatch(
    processor: TilewiseProcessor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Optional[float] = None,
    enable_gqa: bool = False,
    attention_kwargs: Optional[Mapping[str, Any]] = None,
    *,
    backend: Any = None,
    parallel_config: Any = None,
) -> Tensor:
    """diffusers' dispatch_attention_fn: [B, S, H, D]."""
    layer = processor.tilewise
    if backend is not None:
        raise layer.refuse(f"set_attention_backend chose {getattr(backend, 'value', backend)!r} for a layer that runs tilewise (reset_attention_backend takes it back)")
    if parallel_config is not None:
        raise layer.refuse("context parallelism splits a sequence over devices, which no plan does")
    if attention_kwargs:
        raise layer.refuse(f"attention_kwargs for a backend of diffusers ({', '.join(attention_kwargs)}) mean nothing here")
    if isinstance(attn_mask, Tensor) and attn_mask.dim() == 2 and attn_mask.shape == (query.shape[0], key.shape[1]):
        attn_mask = attn_mask[:, None, None]
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return _attend(layer, q, k, v, attn_mask, dropout_p, is_causal, scale).transpose(1, 2)


def _sdpa(
    processor: TilewiseProcessor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Optional[float] = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's scaled_dot_product_attention: [B, H, S, D]."""
    return _attend(processor.tilewise, query, key, value, attn_mask, dropout_p, is_causal, scale)


def _attend(layer: Layer, q: Tensor, k: Tensor, v: Tensor, attn_mask: Any, dropout_p: float, is_causal: bool, scale: Optional[float]) -> Tensor:
    if dropout_p:
        raise layer.refuse("attention dropout is not computed")
    is_sparse = layer.method != "dense" or layer.plan is not None
    if is_sparse and q.shape[2] != k.shape[2]:
        raise layer.refuse(f"{q.shape[2]} queries read {k.shape[2]} keys, which is not self-attention, and methods are for that")
    if attn_mask is None:
        return _run(layer, Mask.causal() if is_causal else Mask.full(), scale, q.shape[2], q, k, v)
    if not isinstance(attn_mask, Tensor) or is_causal:
        raise layer.refuse("the attention mask is " + ("given beside is_causal" if is_causal else f"a {type(attn_mask).__name__}"))
    allowed = allowed_of(attn_mask, f"tilewise.diffusers: {layer.name}")
    allowed = allowed[(None,) * (4 - allowed.dim())]
    keys = allowed[:, :1, :1]
    if not torch.equal(keys.expand_as(allowed), allowed):
        if is_sparse:
            raise layer.refuse("its mask differs from query to query, which goes with dense attention alone")
        plan = plan_of_bits(allowed.expand(-1, -1, q.shape[2], k.shape[2]), batch=q.shape[0], heads_q=q.shape[1]).to(q.device)
        return _seen(layer, None, 0.0, plan, scale, q, k, v)
    real = keys[:, 0, 0].expand(q.shape[0], k.shape[2])
    if real.all():
        return _run(layer, Mask.full(), scale, q.shape[2], q, k, v)
    return attend_each(q, k, v, _sequences(real.cpu(), q.shape[2]), functools.partial(_run, layer, Mask.full(), scale, q.shape[2]))


def _sequences(real: Tensor, seqlen_q: int) -> list[Tokens]:
    """The tokens of each entry that padding leaves. What hidden tokens compute is read by nobody that counts; they see every key, as in the model."""
    if seqlen_q != real.shape[1]:  # keys of other tokens than the queries
        return [Tokens(entry, torch.arange(seqlen_q), keys.nonzero()[:, 0]) for entry, keys in enumerate(real)]
    visible = [Tokens(entry, keys.nonzero()[:, 0], keys.nonzero()[:, 0]) for entry, keys in enumerate(real)]
    return visible + [Tokens(entry, (~keys).nonzero()[:, 0], keys.nonzero()[:, 0], is_padding=True) for entry, keys in enumerate(real)]


def _run(layer: Layer, mask: Mask, scale: Optional[float], tokens: int, q: Tensor, k: Tensor, v: Tensor, sequences: tuple[Tokens, ...] = ()) -> Tensor:
    if sequences and sequences[0].is_padding:
        return attend(q, k, v, make_plan(q.cpu(), k.cpu(), "dense", mask).to(q.device), scale)
    start = time.perf_counter()
    plan = layer.plan
    if plan is None:
        options: dict[str, Any] = dict(layer.options)
        plan = make_plan(q.cpu(), k.cpu(), layer.method, mask, v=v.cpu(), scale=scale, layer=layer.layer, **options)
        first, last = layer.keep_first, layer.keep_last
        if sequences:  # as many as padding has left of them
            first = max(int((one.queries < first).sum()) for one in sequences)
            last = max(int((one.queries >= tokens - last).sum()) for one in sequences)
        if (first or last) and layer.method != "dense":
            plan = plan | _kept(q.shape[0], q.shape[1], q.shape[2], first, last, plan.tile, mask)
        plan = plan.to(q.device)
    return _seen(layer, mask, 1e3 * (time.perf_counter() - start), plan, scale, q, k, v, sequences)


def _kept(batch: int, heads: int, tokens: int, first: int, last: int, tile: int, mask: Mask) -> Plan:
    """Tiles that hold one of the first or last tokens read all, and all read them."""
    kept = torch.zeros(-(-tokens // tile), dtype=torch.bool)
    kept[: -(-first // tile)] = True
    if last:
        kept[max(0, tokens - last) // tile :] = True
    return plan_of_blocks((kept[:, None] | kept)[None, None], tokens, tokens, tile, tile, mask=mask, batch=batch, heads_q=heads)


def _seen(
    layer: Layer, mask: Optional[Mask], plan_ms: float, plan: Plan, scale: Optional[float], q: Tensor, k: Tensor, v: Tensor, sequences: tuple[Tokens, ...] = ()
) -> Tensor:  # fmt: skip
    out = attend(q, k, v, plan, scale)
    if layer.observer is not None:
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        layer.observer(Call(layer.layer, q, k, v, out, plan, mask, plan_ms, scale, sequences=sequences, name=layer.name))
    return out


# Models.


def _is_cross(name: str, module: torch.nn.Module) -> bool:
    says = getattr(module, "is_cross_attention", None)
    if isinstance(says, bool):
        return says
    last = name.rsplit(".", 1)[-1]
    return last.endswith("attn2") or "cross" in last or "_to_" in last or any("Cross" in type(one).__name__ for one in (module, getattr(module, "processor")))


def self_attentions(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """The modules of a model that hold an attention processor and are no cross-attention, with their names, in the model's order. Their places are the numbers of `layers`."""
    found = []
    for name, module in model.named_modules():
        processor = getattr(module, "processor", None)
        if processor is not None and ("Processor" in type(processor).__name__ or hasattr(module, "set_processor")) and not _is_cross(name, module):
            found.append((name, module))
    return found


def _set(module: Any, processor: Any) -> None:
    if hasattr(module, "set_processor"):
        module.set_processor(processor)
    else:
        module.processor = processor


def configure(
    model: torch.nn.Module,
    method: str = "dense",
    *,
    layers: Optional[Mapping[Union[int, str], Optional[Choice]]] = None,
    keep_first: int = 0,
    keep_last: int = 0,
    **options: OptionValue,
) -> list[TilewiseProcessor]:
    """Makes the self-attention of a model of diffusers run by a method; answers the processors that do so now. Cross-attention keeps what it has.

    layers      others for some: by number (:func:`self_attentions`) or by name, which counts for all layers under it; later ones win. "dense", ("mean_pool", {"density": 0.2}),
                or None: the layer keeps its own processor.
    keep_first  tokens at the beginning (keep_last: end) of each sequence that read everything and that everything reads, in whole tiles of the plan. For text that shares
                the image's sequence: it stands first in Flux, Qwen-Image and CogVideoX, last in SD3 and HunyuanVideo.
    Sees        a method gets q and k as the model's attention has them, [B, H, tokens, D], text and image in one sequence where the model joins them. Tokens that a mask hides
                from all queries are planned around; a mask that differs from query to query goes with "dense" alone.
    Errors      NotImplementedError (no self-attention, or a processor whose attention cannot be answered: it is named), ValueError (unknown method, option or layer).
    """
    found = self_attentions(model)
    if not found:
        raise NotImplementedError(f"tilewise.diffusers.configure: {type(model).__name__} has no self-attention with a processor of diffusers")
    check_method(method, options)
    choices: dict[str, Optional[Choice]] = {name: (method, options) for name, _ in found}
    expect("tilewise.diffusers.configure", Mapping, layers={} if layers is None else layers)
    for key, choice in (layers or {}).items():
        names = [name for place, (name, _) in enumerate(found) if (place == key if isinstance(key, int) else name == key or name.startswith(f"{key}."))]
        if not names:
            raise ValueError(f"tilewise.diffusers.configure: layers names {key!r}; the model has 0 to {len(found) - 1}, {found[0][0]} to {found[-1][0]}")
        choices.update(dict.fromkeys(names, choice))
    new: list[tuple[torch.nn.Module, Any]] = []
    for place, (name, module) in enumerate(found):
        processor: Any = module.processor
        own = processor.tilewise_own if isinstance(processor, TilewiseProcessor) else processor
        choice = choices[name]
        if choice is None:
            new.append((module, own))
            continue
        chosen, its_options = (choice, {}) if isinstance(choice, str) else choice
        check_method(chosen, dict(its_options))
        layer = Layer(place, name, chosen, dict(its_options), keep_first, keep_last)
        reason = _why_not(own)
        if reason is not None:
            raise layer.refuse(f"{type(own).__name__} keeps its attention to itself: {reason}")
        new.append((module, _processor_of(own, layer)))
    for module, processor in new:
        _set(module, processor)
    return [processor for _, processor in new if isinstance(processor, TilewiseProcessor)]


def restore(model: torch.nn.Module) -> None:
    """Gives every layer back the processor that it had before :func:`configure`."""
    for _, module in self_attentions(model):
        if isinstance(module.processor, TilewiseProcessor):
            _set(module, module.processor.tilewise_own)


@contextlib.contextmanager
def configured(model: torch.nn.Module, method: str = "dense", **kwargs: Any) -> Iterator[list[TilewiseProcessor]]:
    """:func:`configure` for a while; then every layer has what it had."""
    before = [(module, module.processor) for _, module in self_attentions(model)]
    try:
        yield configure(model, method, **kwargs)
    finally:
        for module, processor in before:
            _set(module, processor)


@contextlib.contextmanager
def observe(model: torch.nn.Module, observer: Callable[[Call], None]) -> Iterator[None]:
    """Calls `observer` with what every configured self-attention did, in the order in which they ran.

    densities = {}
    with tilewise.diffusers.observe(model, lambda call: densities.__setitem__(call.name, call.plan.density)):
        model(...)
    """
    found = [module.processor for _, module in self_attentions(model) if isinstance(module.processor, TilewiseProcessor)]
    before = [processor.tilewise for processor in found]
    for processor in found:
        processor.tilewise = dataclasses.replace(processor.tilewise, observer=observer)
    try:
        yield
    finally:
        for processor, layer in zip(found, before):
            processor.tilewise = layer
