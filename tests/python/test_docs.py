# SPDX-License-Identifier: Apache-2.0
"""Every Python block of the documents runs as it stands; the package says what the project says."""

import re
import subprocess
import sys
import types

import pytest
from conftest import ROOT

import tilewise


def blocks():
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text()
        for match in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            yield pytest.param(match[1], id=f"{path.relative_to(ROOT)}:{text[: match.start()].count(chr(10)) + 1}")


@pytest.mark.parametrize("code", list(blocks()))
def test_block(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("block")
    monkeypatch.setitem(sys.modules, "block", module)  # torch 2.11's compiler imports the module of what it compiles
    exec(compile(code, "block", "exec"), module.__dict__)


def test_versions_agree():
    version = re.search(r"project\(tilewise VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text())[1]
    assert tilewise.__version__ == version
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()


def test_import_is_light():
    """Heavy packages come with the module that needs them."""
    code = "import sys, torch; before = set(sys.modules); import tilewise; print(*(set(sys.modules) - before))"
    new = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {name for name in new if not name.startswith("tilewise")} <= {"pathlib", "dataclasses"}, new


def test_public_names_are_documented():
    for name in tilewise.__all__:
        assert getattr(tilewise, name).__doc__ or name == "Operand", name


@pytest.mark.parametrize("example", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_example(example, tmp_path):
    done = subprocess.run([sys.executable, ROOT / "examples" / example], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
