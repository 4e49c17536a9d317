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


# What torch itself says of an argument that does not fit an operator's schema, and of tensors that no kernel is registered for.
_SCHEMA = re.compile(r"tilewise::(\w+)\(\) Expected a value of type '(.+?)' for argument '(\w+)' but instead found type '(.+?)'")
_BACKEND = re.compile(r"Could not run 'tilewise::(\w+)' with arguments from the '(\w+)' backend")


def natural(error: RuntimeError) -> Exception:
    """The exception to raise in place of what an operator raised; one that is neither ours nor about our arguments comes back as it is."""
    text = str(error)
    if match := _PREFIX.search(text):
        return _CLASSES.get(match[1], RuntimeError)(text[match.end() :])
    if match := _SCHEMA.search(text):
        name, wanted, argument, got = match.groups()
        wanted = re.sub(r"^Optional\[(.+)\]$", r"\1 or None", wanted)
        return TypeError(f"{name}: {argument} is of type {got}, takes {wanted}")
    if match := _BACKEND.search(text):
        return NotImplementedError(f"{match[1]}: there is no kernel for tensors of {match[2]}; takes strided tensors on a CPU, or on CUDA where the package is built with it")
    return error


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__.split('.')[0]}.{kind.__qualname__}"


def expect(name: str, kind: type, **values: object) -> None:
    """Raises TypeError for the first argument of the function `name` that is not of this class."""
    for argument, value in values.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name}: {argument} is of type {_name(type(value))}, takes {_name(kind)}")


def call(op: Any, *args: Any) -> Any:
    """Calls an operator; its errors become natural classes."""
    try:
        return op(*args)
    except RuntimeError as error:
        raise natural(error) from None
