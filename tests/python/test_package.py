# SPDX-License-Identifier: Apache-2.0
"""The installed package: what a wheel carries, and what users see who have no torch, an old one, or a broken library."""

import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import tilewise
from tilewise import _program

PACKAGE = pathlib.Path(tilewise.__file__).parent
BUNDLED = PACKAGE.parent / "tilewise.libs"  # made by tools/repair_wheel.py; a package that pip built from source has none


def licence_files():
    files = importlib.metadata.files("tilewise")
    return {file.as_posix().partition(".dist-info/licenses/")[2]: file.read_text() for file in files if ".dist-info/licenses/" in file.as_posix()}


def test_licence_files_are_there_and_named():
    found = licence_files()
    assert "Apache License" in found["LICENSE"] and "Tilewise maintainers" in found["NOTICE"]
    assert set(importlib.metadata.metadata("tilewise").get_all("License-File")) == set(found)


@pytest.mark.skipif(not BUNDLED.is_dir(), reason="this package bundles no libraries")
def test_what_is_bundled_has_its_licence():
    found = licence_files()
    expression = importlib.metadata.metadata("tilewise")["License-Expression"]
    words = {"libdnnl": "oneDNN", "libgomp": "GCC RUNTIME LIBRARY EXCEPTION", "libOpenCL": "ocl-icd"}
    spdx = {"libdnnl": "Apache-2.0", "libgomp": "GPL-3.0-or-later WITH GCC-exception-3.1", "libOpenCL": "BSD-2-Clause"}
    for library in BUNDLED.iterdir():
        name = library.name.partition("-")[0]
        assert any(words[name] in text for text in found.values()), library
        assert spdx[name] in expression
    assert any("GNU GENERAL PUBLIC LICENSE" in text for name, text in found.items() if name.endswith("/GPL-3"))
    assert any("Niels Lohmann" in text for text in found.values()) and any("CLI11" in text for text in found.values())
    assert "From PyTorch" in found["torch/LICENSE"]


@pytest.mark.skipif(not BUNDLED.is_dir() or shutil.which("ldd") is None, reason="this package bundles no libraries, or there is no ldd")
def test_the_program_takes_what_is_bundled():
    """Its libraries come from the package; of the system it takes libc and the C++ runtime alone."""
    shown = subprocess.run(["ldd", _program.PROGRAM], check=True, capture_output=True, text=True).stdout
    paths = dict(re.findall(r"(\S+) => (\S+)", shown))
    assert "not found" not in shown
    ours = {name for name, path in paths.items() if pathlib.Path(path).resolve().parent == BUNDLED.resolve()}
    assert {name.partition("-")[0] for name in ours} >= {"libdnnl"}
    assert {name.partition(".so")[0] for name in set(paths) - ours} <= {"libc", "libm", "libdl", "libpthread", "librt", "libstdc++", "libgcc_s", "linux-vdso"}


def test_tags_are_true():
    """No module of CPython's: any Python 3 takes it. The platform is the one whose symbols it needs."""
    tags = [line.partition(": ")[2] for line in importlib.metadata.distribution("tilewise").read_text("WHEEL").splitlines() if line.startswith("Tag: ")]
    assert tags and all(re.fullmatch(r"py3-none-(linux|manylinux_2_\d+)_\w+", tag) for tag in tags)
    assert not [file for file in importlib.metadata.files("tilewise") if ".cpython-" in file.name and file.suffix == ".so"]
    if BUNDLED.is_dir():
        assert all("-manylinux_2_" in tag for tag in tags)


def imported(before, path=None):
    """What `import tilewise` says in a Python of its own, after these lines."""
    code = f"import sys, types\n{before}\ntry:\n  import tilewise\nexcept ImportError as error:\n  print(type(error).__name__, error)\nelse:\n  print('imported')"
    environment = {"PYTHONPATH": str(path)} if path else {}
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", **environment}, cwd="/").stdout


def test_without_torch():
    said = imported("sys.modules['torch'] = None")
    assert said.startswith("ModuleNotFoundError tilewise needs torch 2.11 or newer, and /") and said.endswith("has none; pip install 'torch>=2.11'\n")


def test_with_an_old_torch():
    said = imported("sys.modules['torch'] = types.ModuleType('torch'); sys.modules['torch'].__version__ = '2.10.1+cpu'")
    assert said.startswith("ImportError tilewise needs torch 2.11 or newer") and "has torch 2.10.1+cpu; pip install --upgrade torch" in said


def test_with_a_torch_that_lacks_a_package_of_its_own():
    """Torch's own error says more than ours could."""
    said = imported("class No:\n  def find_spec(self, name, *_):\n    if name == 'torch': raise ModuleNotFoundError('sympy is missing', name='sympy')\nsys.meta_path.insert(0, No())")
    assert said == "ModuleNotFoundError sympy is missing\n"


@pytest.fixture
def copy(tmp_path):
    """The package without its program, to be broken."""
    shutil.copytree(PACKAGE, tmp_path / "tilewise", ignore=shutil.ignore_patterns("bin", "__pycache__", "_ops.so"))
    return tmp_path


def test_without_its_library(copy):
    assert "_ops.so is missing: this is a folder of sources" in imported("", copy)


def test_with_a_damaged_library(copy):
    (copy / "tilewise" / "_ops.so").write_bytes(b"<html>not found</html>")  # as a download may leave it
    said = imported("", copy)
    assert said.startswith("ImportError tilewise: torch") and "_ops.so" in said and "pip install --force-reinstall" in said


@pytest.mark.parametrize(
    "why, way_on",
    [
        ("libstdc++.so.6: version `GLIBCXX_3.4.29' not found (required by _ops.so)", "older than the one that the package was built with"),
        ("libc.so.6: version `GLIBC_2.34' not found (required by _ops.so)", "pip install --no-binary tilewise tilewise"),
        ("_ops.so: undefined symbol: torch_from_blob", "install torch anew"),
    ],
)
def test_way_on_for_what_the_loader_says(copy, why, way_on):
    shutil.copy(PACKAGE / "_ops.so", copy / "tilewise")
    said = imported(f"import torch\ndef refuse(path): raise OSError({why!r})\ntorch.ops.load_library = refuse", copy)
    assert said.startswith("ImportError tilewise: torch") and why in said and way_on in said
