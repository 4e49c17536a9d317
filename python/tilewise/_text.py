# SPDX-License-Identifier: Apache-2.0
"""What a comparison reads: token ids, keyword arguments of a model, or text that a tokenizer cuts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Optional, Union

import torch
from torch import Tensor
from transformers import PreTrainedModel


class Tokenizer:
    """A tokenizer of tokenizers or transformers; None: a token is a byte, and text has a character for each (latin-1)."""

    def __init__(self, tokenizer: Any) -> None:
        # The one inside of a fast tokenizer of transformers is of the same class as one of tokenizers.
        self._inner = getattr(tokenizer, "backend_tokenizer", tokenizer)

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Tokens, with what the tokenizer puts before a text but not what it puts behind; and the character at which each ends."""
        if self._inner is None:
            return list(text.encode("latin-1")), list(range(1, len(text) + 1))
        encoding = self._inner.encode(text)
        if not hasattr(encoding, "offsets"):
            raise ValueError("compare: this tokenizer does not say where its tokens end; load it as a fast one (transformers), or its tokenizer.json (tokenizers)")
        count = len(encoding.ids)
        while count and encoding.special_tokens_mask[count - 1]:
            count -= 1
        ends, furthest = [], 0
        for _, end in encoding.offsets[:count]:  # of special tokens it is 0
            furthest = max(furthest, end)
            ends.append(furthest)
        return encoding.ids[:count], ends


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One input, as the model takes it."""

    name: str
    kwargs: dict[str, Any]
    batch: int
    length: int
    reads: str  # bytes, text, tokens, other: InputFigures::Reads
    file_bytes: int = 0
    text: Optional[str] = None  # all of it
    tokenizer: Optional[Tokenizer] = None
    ends: tuple[int, ...] = ()  # characters

    @property
    def predicted_bytes(self) -> int:
        """Bytes that all tokens but the first stand for; 0: not known."""
        return 0 if self.text is None or not self.ends else len(self.text[self.ends[0] : self.ends[-1]].encode("utf-8"))

    def cut(self, length: int) -> Encoded:
        """The first tokens of a text."""
        return dataclasses.replace(self, kwargs={"input_ids": self.kwargs["input_ids"][:, :length]}, length=length, ends=self.ends[:length])


def _predicts(model: PreTrainedModel) -> bool:
    return bool(model.can_generate()) and not getattr(model.config, "is_encoder_decoder", False)


def _reads_bytes(model: PreTrainedModel, tokenizer: Any) -> bool:
    """As the program decides it: 256 tokens and no tokenizer."""
    return tokenizer is None and getattr(model.config.get_text_config(), "vocab_size", 0) == 256


def encode(model: PreTrainedModel, one: Union[Tensor, Mapping[str, Any], str, bytes], tokenizer: Any, name: str) -> Encoded:
    if isinstance(one, (str, bytes)):
        return _encode_text(model, one, tokenizer, name)
    kwargs = dict(one) if isinstance(one, Mapping) else {"input_ids": one}
    ids = kwargs.get("input_ids")
    if ids is not None:
        if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.dtype.is_floating_point:
            raise ValueError(f"compare: {name}: token ids are integers [B, S], got {list(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__}")
        reads = "other" if not _predicts(model) else "bytes" if _reads_bytes(model, tokenizer) else "tokens"
        return Encoded(name, kwargs, ids.shape[0], ids.shape[1], reads)
    for value in kwargs.values():
        if isinstance(value, Tensor) and value.dim() >= 2:
            return Encoded(name, kwargs, value.shape[0], value.shape[1], "other")
    raise ValueError(f"compare: {name} has neither input_ids nor another tensor [B, S, ...]; it has {sorted(kwargs)}")


def _encode_text(model: PreTrainedModel, text: Union[str, bytes], tokenizer: Any, name: str) -> Encoded:
    is_bytes = _reads_bytes(model, tokenizer)
    if tokenizer is None and not is_bytes:
        raise ValueError(f"compare: {name} is text, and the model has {model.config.get_text_config().vocab_size} tokens: give the tokenizer that makes them, tokenizer=")
    if not _predicts(model):
        raise ValueError(f"compare: {name} is text, and {type(model).__name__} predicts no tokens; give token ids, or the model's keyword arguments")
    raw = text.encode("utf-8") if isinstance(text, str) else text
    characters = raw.decode("latin-1") if is_bytes else raw.decode("utf-8")
    cutter = Tokenizer(tokenizer)
    ids, ends = cutter.encode(characters)
    if not ids:
        raise ValueError(f"compare: {name} is empty")
    return Encoded(name, {"input_ids": torch.tensor([ids])}, 1, len(ids), "bytes" if is_bytes else "text", len(raw), characters, cutter, tuple(ends))
