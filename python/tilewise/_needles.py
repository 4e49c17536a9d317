# SPDX-License-Identifier: Apache-2.0
"""Notes that are hidden in a text, and asked for at its end: prompts for models that bring none of their own (needles.json)."""

from __future__ import annotations

import dataclasses
import random

from ._text import Tokenizer

_DEPTHS = (0.05, 0.25, 0.5, 0.75, 0.95)
_TRIALS = 2  # at each depth
_KINDS = ("access code", "room number", "serial number", "secret number", "ticket id", "lucky number")
_WORDS = (
    "amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "heron", "indigo", "juniper", "kestrel", "lotus", "maple", "nectar", "onyx", "pearl", "quartz",
    "raven", "sable", "tulip", "umber", "violet", "willow", "xenon", "yarrow", "zephyr", "anchor", "beacon", "canyon", "dune", "falcon", "glacier", "harbor",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Needle:
    """A prompt of `length` tokens whose answer is a number of seven digits."""

    length: int
    depth: float  # of the note, as a share of the text around it
    prompt: list[int]
    answer: list[int]


def make_needles(text: str, tokenizer: Tokenizer, length: int, seed: int) -> list[Needle]:
    """Ten prompts of as many tokens as asked (or a few less, where no cut of the text gives that many): two at each of five depths of the text's beginning."""
    ends = tokenizer.encode(text)[1]
    draw = random.Random(f"{seed}/{length}")
    found = []
    for depth in _DEPTHS:
        for _ in range(_TRIALS):
            what = f"{draw.choice(_KINDS)} of {draw.choice(_WORDS)}-{draw.choice(_WORDS)}"
            number = "".join(draw.choice("0123456789") for _ in range(7))
            found.append(_make(text, ends, tokenizer, length, depth, what, number))
    return found


def _make(text: str, ends: list[int], tokenizer: Tokenizer, length: int, depth: float, what: str, number: str) -> Needle:
    count, best = length, Needle(length, depth, [], [])
    for _ in range(12):  # where the pieces meet, tokens join or part: count again until the prompt is as long as asked
        count = min(count, len(ends))
        if count < 1:
            break
        haystack = text[: ends[count - 1]]
        place = haystack.find("\n", int(depth * len(haystack)))
        place = int(depth * len(haystack)) if place < 0 or place > (depth + 0.04) * len(haystack) else place
        prompt = f"{haystack[:place]}\nNote: the {what} is {number}.\n{haystack[place:]}\nRecall: the {what} is "
        alone, whole = tokenizer.encode(prompt)[0], tokenizer.encode(prompt + number)[0]
        shared = next((i for i, (a, b) in enumerate(zip(alone, whole)) if a != b), min(len(alone), len(whole)))
        needle = Needle(length, depth, whole[:shared], whole[shared:])
        if shared <= length and shared > len(best.prompt):
            best = needle
        if shared == length or (count == len(ends) and shared < length):
            break
        count += length - shared
    if not best.prompt or len(best.prompt) < 0.9 * length:
        raise ValueError(f"compare: needles of {length} tokens are hidden in the first text, of which there are {len(ends)} tokens; give a longer text, or ask for "
                         f"{'more' if len(ends) >= length else 'fewer'} tokens")  # fmt: skip
    return best
