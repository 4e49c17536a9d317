# SPDX-License-Identifier: Apache-2.0
"""Errors of the C++ library as Python's natural classes, with the same message."""

from __future__ import annotations

import re
from typing import Any

# What tilewise_torch/ops/tensors.h puts before a message: torch's boundary carries RuntimeError and text, nothing else.
_PREFIX = re.compile(r"\[tilewise:(\w+)\] ")
_CLASSES: dict[str, type[Exception]] = {
    "shape": ValueError,
    "dtype": TypeError,
    "device": ValueError,
    "value": ValueError,
    "unsupported": NotImplementedError,
    "memory": MemoryError,
    "io": OSError,
}


def natural(error: RuntimeError) -> Exception:
    """The exception to raise in place of what an operator raised; one that is not ours comes back as it is."""
    text = str(error)
    match = _PREFIX.search(text)
    if match is None:
        return error
    return _CLASSES.get(match[1], RuntimeError)(text[match.end() :])


def call(op: Any, *args: Any) -> Any:
    """Calls an operator; its errors become natural classes."""
    try:
        return op(*args)
    except RuntimeError as error:
        raise natural(error) from None
