# SPDX-License-Identifier: Apache-2.0
"""Loads the operators into torch; where that cannot be, says what is wrong and what helps. The first thing that the package imports."""

from __future__ import annotations

import pathlib
import re
import sys

LIBRARY = pathlib.Path(__file__).parent / "_ops.so"
_OLDEST = (2, 11)  # the first torch with every function of the stable ABI that the operators call


def _way_on(why: str) -> str:
    """What helps where the loader says this."""
    if re.search(r"version `(GLIBC|GLIBCXX|CXXABI)_", why):
        return "this system's C or C++ library is older than the one that the package was built with; build it here: pip install --no-binary tilewise tilewise"
    if "undefined symbol" in why:
        return "this torch lacks a function that torch 2.11 and newer have; install torch anew, or build the package against this one: pip install --no-build-isolation ."
    return "the file is damaged, or made for another machine; install the package anew: pip install --force-reinstall --no-deps tilewise"


def load() -> None:
    """Registers `torch.ops.tilewise`. Errors: ImportError (no torch, one before 2.11, a library that is missing or that the loader refuses)."""
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise  # torch is there, and lacks a package of its own
        raise ModuleNotFoundError(f"tilewise needs torch 2.11 or newer, and {sys.executable} has none; pip install 'torch>=2.11'", name="torch") from None
    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if version is not None and (int(version[1]), int(version[2])) < _OLDEST:
        raise ImportError(f"tilewise needs torch 2.11 or newer, and {sys.executable} has torch {torch.__version__}; pip install --upgrade torch")
    if not LIBRARY.exists():
        raise ImportError(f"tilewise: {LIBRARY} is missing: this is a folder of sources, which has no operators; pip install . in the checkout, and start Python elsewhere")
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        raise ImportError(f"tilewise: torch {torch.__version__} cannot load the operators: {error}; {_way_on(str(error))}") from None
