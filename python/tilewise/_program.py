# SPDX-License-Identifier: Apache-2.0
"""The command `tilewise`: the C++ program that lies in this package."""

from __future__ import annotations

import os
import pathlib
import sys

PROGRAM = pathlib.Path(__file__).parent / "bin" / "tilewise"


def main() -> None:
    if not PROGRAM.exists():
        sys.exit(
            "tilewise: this package was built without its program, which needs oneDNN, nlohmann-json and CLI11 (Debian: apt-get install libdnnl-dev "
            "nlohmann-json3-dev libcli11-dev ocl-icd-opencl-dev); install them and build the package again"
        )
    os.execv(PROGRAM, ["tilewise", *sys.argv[1:]])
