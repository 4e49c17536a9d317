# SPDX-License-Identifier: Apache-2.0
"""A user's project sees the types of the installed package, and mypy finds what is wrong in it."""

import os
import pathlib
import subprocess
import sys

import pytest
from conftest import ROOT

import tilewise

pytest.importorskip("mypy")

RIGHT = """
import torch
import transformers
from typing_extensions import assert_type

import tilewise
from tilewise import Mask, Plan

q = torch.randn(1, 4, 256, 64)
plan = tilewise.plan(q, q, "mean_pool", Mask.band(left=64, right=0), density=0.3)
assert_type(plan, Plan)
assert_type(plan.density, float)
assert_type(plan | plan, Plan)
assert_type(tilewise.attend(q, q, q, plan), torch.Tensor)
assert_type(tilewise.attend(q, q, q, plan, return_lse=True), tuple[torch.Tensor, torch.Tensor])
assert_type(tilewise.attention(q, q, q, "xattention", threshold=0.9), torch.Tensor)
assert_type([method.name for method in tilewise.methods()], list[str])


def compared(model: transformers.PreTrainedModel, tokens: torch.Tensor) -> tilewise.Comparison:
    return tilewise.compare(model, tokens, ["a_shape", ("xattention", {"threshold": 0.9})])
"""
WRONG = """
import tilewise

plan: int = tilewise.load_plan("plan.safetensors")
tilewise.attend(1, 2, 3, plan)
tilewise.no_such_function()
tilewise.Mask.band(right="all")
"""
MISTAKES = [
    'wrong.py:4: error: Incompatible types in assignment (expression has type "Plan", variable has type "int")',
    'wrong.py:5: error: No overload variant of "attend" matches argument types "int", "int", "int", "int"',
    'wrong.py:6: error: Module has no attribute "no_such_function"',
    'wrong.py:7: error: Argument "right" to "band" of "Mask" has incompatible type "str"; expected "int | None"',
    "Found 4 errors in 1 file",
]


def test_the_marker_is_installed():
    assert (pathlib.Path(tilewise.__file__).parent / "py.typed").exists()


def test_a_user_sees_types(tmp_path):
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    # With the settings and the cache of the package's own check: to read torch and transformers anew takes minutes.
    cache = ROOT / "python" / ".mypy_cache"
    cache = cache if os.access(cache, os.W_OK) else tmp_path / "cache"
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "--cache-dir", cache, "right.py", "wrong.py"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert "right.py" not in said, said
    for text in MISTAKES:
        assert text in said, said
