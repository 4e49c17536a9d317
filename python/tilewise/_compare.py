# SPDX-License-Identifier: Apache-2.0
"""What a model's attention costs and loses under each method: the comparison of the program `tilewise`, of any model of transformers.

What is run, measured, tuned and recommended is decided in C++ (tilewise/study), for the program and for Python alike. Here a model reads a text when it is
asked to, and hands each layer's attention over.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import html
import inspect
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional, Union

import torch
from torch import Tensor
from transformers import PreTrainedModel

from . import huggingface
from ._capture import configured
from ._errors import call
from ._mask import Mask
from ._needles import Needle, make_needles
from ._operators import ops
from ._plan import OptionValue, options_text
from ._text import Encoded, encode

Choice = Union[str, tuple[str, Mapping[str, OptionValue]]]
Input = Union[Tensor, Mapping[str, Any], str, bytes]


@dataclasses.dataclass(frozen=True)
class Row:
    """One method over all layers, in its own run. What was not taken, or has no meaning, is None. `heads`: the same figures of each head, by layer."""

    name: str
    label: str  # with the options that are not at their default
    options: dict[str, OptionValue]
    density: Optional[float]  # pairs read / pairs that dense attention reads
    allowed_density: Optional[float]  # the same of the pairs that the mask allows
    recall: Optional[float]  # mean over rows of the probability that dense attention puts on what was read
    output_error: Optional[float]  # ||sparse - dense|| / ||dense|| of the attention outputs, mean of the layers
    bits_per_byte: Optional[float]
    bits_per_token: Optional[float]
    extra_bits: Optional[float]  # above dense, per byte where bytes are known, else per token; the largest of the texts
    plan_ms: Optional[float]
    attend_ms: Optional[float]
    dense_ms: Optional[float]  # dense attention beside it, layer by layer
    model_ms: Optional[float]
    speedup: Optional[float]  # dense_ms / (plan_ms + attend_ms)
    needles: Optional[tuple[int, int]]  # right answers, of how many
    refused: Optional[str]  # why the method does not take this model or input
    heads: list[dict[str, Any]] = dataclasses.field(default_factory=list, repr=False)

    @property
    def perplexity(self) -> Optional[float]:
        return None if self.bits_per_token is None else 2**self.bits_per_token

    @property
    def loss(self) -> Optional[float]:
        """Nats per token, as transformers has it."""
        return None if self.bits_per_token is None else self.bits_per_token * math.log(2)


def _row(method: Mapping[str, Any]) -> Row:
    needle = method["needle"]
    renamed = {"extra_bits": method["max_extra_bits"], "dense_ms": method["dense_attend_ms"], "needles": None if needle is None else (needle["correct"], needle["of"])}
    return Row(**{field.name: renamed[field.name] if field.name in renamed else method[field.name] for field in dataclasses.fields(Row)})


class Comparison:
    """What :func:`compare` found: the document of docs/formats/compare.md, a table in a terminal, the report in a notebook, figures in `rows`."""

    def __init__(self, document: str, where: str = "Comparison") -> None:
        """Of a document as `to_json` and `tilewise compare --json` write it. Errors: ValueError, OSError (what is missing or wrong, by name)."""
        self._table = _study("study_table", document, where)  # which checks it
        self._json = document
        self.document: dict[str, Any] = json.loads(document)

    @classmethod
    def load(cls, path: Union[str, os.PathLike[str]]) -> Comparison:
        """Of a file that :meth:`save` or `tilewise compare --json` wrote."""
        return cls(pathlib.Path(path).read_text(encoding="utf-8"), os.fspath(path))

    @property
    def verdict(self) -> str:
        """The recommendation, in one line."""
        return str(self.document["verdict"]["text"])

    @property
    def dense(self) -> Row:
        """Dense attention in a run of its own."""
        figures = self.document["dense"]
        same = {"density": 1.0, "allowed_density": 1.0, "recall": 1.0, "output_error": 0.0, "plan_ms": 0.0, "speedup": 1.0, "dense_attend_ms": figures["attend_ms"]}
        return _row({"name": "dense", "label": "dense", "options": {}, "max_extra_bits": None, "refused": None, "heads": [], **same, **figures})

    @property
    def rows(self) -> list[Row]:
        """One for each method, in the order asked."""
        return [_row(method) for method in self.document["methods"]]

    @property
    def best(self) -> Optional[Row]:
        """What the verdict recommends, if anything."""
        best = self.document["verdict"]["best"]
        return None if best is None else self.rows[best]

    def to_json(self) -> str:
        return self._json

    def to_html(self) -> str:
        """The report of `tilewise compare --report`: one page that needs no network."""
        return _study("study_report", self._json, "Comparison")

    def save(self, path: Union[str, os.PathLike[str]]) -> None:
        """Writes the report (a path that ends in .html) or the document (.json), beside its target and then renamed."""
        path = pathlib.Path(path)
        if path.suffix.lower() not in (".html", ".htm", ".json"):
            raise ValueError(f"save: {path} ends in neither .html (the report) nor .json (the figures)")
        write_whole(path, self.to_json() if path.suffix.lower() == ".json" else self.to_html())

    def __str__(self) -> str:
        return re.sub("\033\\[[0-9;]*m", "", self._table).rstrip("\n")

    def __repr__(self) -> str:
        return f"<tilewise.Comparison: {self.verdict}>"

    def _repr_html_(self) -> str:
        # A frame of its own: the page's style and script neither touch the notebook nor are touched by it. Attributes in ' leave the JSON's " as they are.
        page = self.to_html().replace("&", "&amp;").replace("'", "&#39;")
        title = html.escape(f"Tilewise: {self.verdict}", quote=True).replace("'", "&#39;")
        return f"<iframe title='{title}' srcdoc='{page}' sandbox='allow-scripts allow-downloads' style='width:100%;height:900px;border:1px solid #ccc'></iframe>"


def write_whole(path: Union[str, os.PathLike[str]], text: str) -> None:
    """Writes a whole file beside its target and renames it."""
    path = pathlib.Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _study(name: str, *args: Any) -> Any:
    if not hasattr(ops, name):
        raise NotImplementedError(
            "tilewise.compare: this package was built without the program, which has the comparison; install oneDNN, nlohmann-json and CLI11 "
            "(Debian: apt-get install libdnnl-dev nlohmann-json3-dev libcli11-dev ocl-icd-opencl-dev) and build the package again"
        )
    return call(getattr(ops, name).default, *args)


def compare(
    model: PreTrainedModel,
    inputs: Union[Input, Sequence[Input]],
    methods: Optional[Iterable[Choice]] = None,
    *,
    tokenizer: Any = None,
    length: Optional[int] = None,
    density: Optional[float] = None,
    tune: bool = False,
    max_bits: float = 0.005,
    max_error: float = 0.05,
    recipe: Union[str, os.PathLike[str], Mapping[str, Any], None] = None,
    needles: Union[int, Sequence[int]] = (),
    maps: bool = True,
    seed: int = 0,
    progress: bool = False,
    names: Sequence[str] = (),
    command: Optional[str] = None,
) -> Comparison:
    """Runs a model with dense attention and with each method, in all its layers, and says what each read, missed and took.

    inputs     one or several (the bound must hold on every one), of one length: token ids [B, S]; the model's keyword arguments; or text, which `tokenizer` (of
               tokenizers or transformers) encodes, cut to `length` tokens. A model of 256 tokens without a tokenizer reads bytes. On the CPU.
    methods    names, or (name, options): ("xattention", {"threshold": 0.95}); "all". By default the rows of the demo, and all methods where `tune` is set.
    density    sets the budget of every method that has the option `density`.
    tune       run each method with the cheapest of its settings that holds the bound on the first input.
    max_bits   what a recommended method may add to dense attention's bits: per byte of text, where the text is known, else per token.
    max_error  the same of the attention output, for models that do not predict tokens.
    recipe     one more row: a recipe.json (docs/formats/recipe.md), or what is in one.
    needles    also ask for notes hidden in so many tokens of the first text.
    maps       attention maps of every head, for the report; takes about one more dense pass a row.
    names      what the inputs are called; `command` stands in the report.
    A method that does not take the model becomes a row that says why; nothing runs densely in its place. Layers with a sliding window read it densely. Within a
    row every layer computes dense and sparse attention of its own q, k and v, and the sparse one goes on. The model is left as it was.
    Errors     ValueError (inputs of several lengths, too short, an unknown method or option), NotImplementedError (a model whose attention is not computed).
    """
    run = _Run(model, _encoded(model, inputs, tokenizer, length, names))
    lengths = [needles] if isinstance(needles, int) else list(needles)
    if lengths:
        first = run.inputs[0]
        if first.text is None or first.tokenizer is None:
            raise ValueError("compare: needles are hidden in text, and the inputs are token ids; give text, and a tokenizer where tokens are not bytes")
        for tokens in lengths:
            run.needles += make_needles(first.text, first.tokenizer, tokens, seed)
    name, recipe_text = _recipe(recipe)
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    first = run.inputs[0]
    choices = [choice if isinstance(choice, str) else choice[0] + ":" * bool(choice[1]) + options_text(dict(choice[1])) for choice in methods or ()]
    told = {"methods": choices, "length": length, "density": density, "tune": tune, "max_bits": max_bits if tune else None, "needles": lengths, "seed": seed}
    asked = [f"{key}={value!r}" for key, value in told.items() if value]
    request = {
        "model": model.config._name_or_path or type(model).__name__,
        "num_layers": 1 + max(layer for layer, _ in huggingface.attention_layers(model)),
        "heads_q": heads,
        "heads_kv": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "batch": first.batch,
        "length": first.length,
        "reads": first.reads,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "texts": [{"name": one.name, "bytes": one.file_bytes} for one in run.inputs],
        "methods": choices,
        "recipe": recipe_text,
        "recipe_name": name,
        "density": density,
        "has_tune": tune,
        "max_bits": max_bits,
        "max_error": max_error,
        "has_maps": maps,
        "seed": seed,
        "needles": [{"length": one.length, "depth": one.depth} for one in run.needles],
        "has_progress": progress,
        "command": command if command is not None else f"tilewise.compare({', '.join([type(model).__name__, *(one.name for one in run.inputs), *asked])})",
    }
    return Comparison(run(json.dumps(request)))


def _recipe(recipe: Union[str, os.PathLike[str], Mapping[str, Any], None]) -> tuple[str, Optional[str]]:
    if recipe is None:
        return "", None
    if isinstance(recipe, Mapping):
        return "", json.dumps(recipe)
    return os.fspath(recipe), pathlib.Path(recipe).read_text(encoding="utf-8")


def _encoded(model: PreTrainedModel, inputs: Union[Input, Sequence[Input]], tokenizer: Any, length: Optional[int], names: Sequence[str]) -> list[Encoded]:
    several = list(inputs) if isinstance(inputs, Sequence) and not isinstance(inputs, (str, bytes)) else [inputs]
    if not several:
        raise ValueError("compare: there is no input; give at least one")
    if names and len(names) != len(several):
        raise ValueError(f"compare: {len(names)} names are given for {len(several)} inputs")
    found = [encode(model, one, tokenizer, names[i] if names else f"input {i + 1}") for i, one in enumerate(several)]
    most = min(one.length for one in found)
    if length is not None:
        for one in found:
            if one.length < length:
                raise ValueError(f"compare: {one.name} has {one.length} tokens, which is less than the length of {length}; give a longer text or a length of {one.length}")
        most = length
    if any(one.length != most for one in found):
        if any(one.text is None for one in found):
            raise ValueError(f"compare: the inputs differ in length, {[one.length for one in found]} tokens; give them one length")
        found = [one.cut(most) for one in found]
    if most < 2 and found[0].reads != "other":
        raise ValueError(f"compare: {found[0].name} has {most} token; a prediction needs two")
    if len({one.batch for one in found}) > 1 or len({one.reads for one in found}) > 1:
        raise ValueError("compare: the inputs are of several kinds or batch sizes; give them alike")
    return found


class _Run:
    """A model that reads and answers when C++ asks it to (tilewise_torch/ops/study_ops.cpp)."""

    def __init__(self, model: PreTrainedModel, inputs: list[Encoded]) -> None:
        self.model, self.inputs = model, inputs
        self.needles: list[Needle] = []
        self.raised: Optional[BaseException] = None

    def __call__(self, request: str) -> str:
        answer = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64, ctypes.c_int64, ctypes.POINTER(ctypes.c_double))(self._answer)
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), _attending(self.model):
                return str(_study("study_compare", request, ctypes.cast(answer, ctypes.c_void_p).value))
        except BaseException:
            if self.raised is not None:
                raise self.raised from None
            raise
        finally:
            self.model.train(training)

    def _answer(self, what: int, index: int, numbers: Any) -> int:
        try:
            if what == 0:
                numbers[0], numbers[1], numbers[2] = self._read(self.inputs[index])
            else:
                numbers[0] = float(self._finds(self.needles[index]))
            return 0
        except BaseException as error:  # must not pass through C++
            self.raised = error
            return 1

    def _read(self, one: Encoded) -> tuple[float, float, float]:
        """Bits, predictions, and the bytes that these stand for."""
        predicts = one.reads != "other"
        output = self.model(**one.kwargs, **({"use_cache": False} if predicts and "use_cache" not in one.kwargs else {}))
        if not predicts:
            return 0.0, 0.0, 0.0
        ids, real = one.kwargs["input_ids"], one.kwargs.get("attention_mask")
        bits = predictions = 0.0
        for row in range(ids.shape[0]):
            for first in range(0, ids.shape[1] - 1, 1024):  # logits are large: a copy in f32 of a piece at a time
                last = min(first + 1024, ids.shape[1] - 1)
                lost = torch.nn.functional.cross_entropy(output.logits[row, first:last].float(), ids[row, first + 1 : last + 1], reduction="none").double()
                if real is not None and real.dim() == 2:
                    lost = lost[(real[row, first + 1 : last + 1] * real[row, first:last]).bool()]
                bits += lost.sum().item() / math.log(2)
                predictions += lost.numel()
        return bits, predictions, predictions if one.reads == "bytes" else float(one.predicted_bytes)

    def _finds(self, needle: Needle) -> bool:
        """The prompt by the row's method, then the answer's tokens over the kept keys and values, which are read densely, a few at a time."""
        takes = inspect.signature(self.model.forward).parameters
        last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        cache = "cache" if "cache" in takes else "past_key_values"  # its name since transformers 5.24, and before
        output = self.model(torch.tensor([needle.prompt]), use_cache=True, **last)
        if output.logits[0, -1].argmax().item() != needle.answer[0]:
            return False
        for first in range(0, len(needle.answer) - 1, huggingface._MOST_NEW_TOKENS):
            given = needle.answer[first : min(first + huggingface._MOST_NEW_TOKENS, len(needle.answer) - 1)]
            kept = output[cache] if cache in output else output.past_key_values
            output = self.model(torch.tensor([given]), **{cache: kept}, use_cache=True)
            if output.logits[0].argmax(-1).tolist() != needle.answer[first + 1 : first + 1 + len(given)]:
                return False
        return True


@contextlib.contextmanager
def _attending(model: PreTrainedModel) -> Iterator[None]:
    """The model's layers hand their attention to the comparison that runs; what they ran before comes back."""

    def run(layer: int, is_dense: bool, q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, softcap: float, sink_logit: Optional[Tensor]) -> Tensor:
        return call(ops.study_attend.default, q, k, v, layer, mask.numbers, mask.spans_tensor, scale, softcap, sink_logit, is_dense)

    with configured(model):
        for layer, module in huggingface.attention_layers(model):
            runner = functools.partial(run, layer, huggingface._window_of(module) is not None)
            setattr(module, huggingface._ATTRIBUTE, huggingface.Layer(layer, runner=runner))
        yield
