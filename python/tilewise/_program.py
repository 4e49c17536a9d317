# SPDX-License-Identifier: Apache-2.0
"""The command `tilewise`: the C++ program that lies in this package; `compare` on a checkpoint with a tokenizer runs here, since the program reads bytes."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from typing import NoReturn, Optional

PROGRAM = pathlib.Path(__file__).parent / "bin" / "tilewise"


def main() -> None:
    arguments = sys.argv[1:]
    model = _model_with_tokenizer(arguments)
    if model is not None:
        sys.exit(_compare(arguments[1:]))
    if not PROGRAM.exists():
        sys.exit(
            "tilewise: this package was built without its program, which needs oneDNN, nlohmann-json and CLI11 (Debian: apt-get install libdnnl-dev "
            "nlohmann-json3-dev libcli11-dev ocl-icd-opencl-dev); install them and build the package again"
        )
    os.execv(PROGRAM, ["tilewise", *arguments])


def _model_with_tokenizer(arguments: list[str]) -> Optional[str]:
    """The --model of `compare` where that folder has a tokenizer.json."""
    if not arguments or arguments[0] != "compare":
        return None
    for i, argument in enumerate(arguments):
        folder = argument.partition("=")[2] if argument.startswith("--model=") else arguments[i + 1] if argument == "--model" and i + 1 < len(arguments) else ""
        if folder and (pathlib.Path(folder) / "tokenizer.json").exists():
            return folder
    return None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"tilewise compare: {message}; on a model with a tokenizer it takes {self.format_usage().split(None, 1)[1]}")


def parse_choice(text: str) -> tuple[str, dict[str, object]]:
    """A method as the program's --methods has it: xattention:threshold=0.95,stride=8."""
    name, _, rest = text.partition(":")
    options: dict[str, object] = {}
    for part in rest.split(",") if rest else []:
        key, _, value = part.partition("=")
        options[key] = value
    return name, options


def _compare(arguments: list[str]) -> int:
    parser = _Parser(prog="tilewise compare", description="dense attention and methods on a Hugging Face checkpoint and a text")
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--length", type=int, default=4096, help="tokens to read (4096)")
    parser.add_argument("--methods", nargs="+", default=["a_shape", "xattention", "minference", "flexprefill", "mean_pool"], help="name or name:option=value,...")
    parser.add_argument("--json", help="write the figures")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args(arguments)

    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    from ._compare import compare

    try:
        if options.threads:
            torch.set_num_threads(options.threads)
        text = pathlib.Path(options.text).read_text(encoding="utf-8")
        tokens = Tokenizer.from_file(str(pathlib.Path(options.model) / "tokenizer.json")).encode(text).ids
        if len(tokens) < options.length:
            raise ValueError(f"{options.text} has {len(tokens)} tokens, which is less than --length {options.length}; give a longer text or --length {len(tokens)}")
        model = AutoModelForCausalLM.from_pretrained(options.model, local_files_only=True)
        comparison = compare(model, torch.tensor([tokens[: options.length]]), [parse_choice(choice) for choice in options.methods])  # type: ignore[misc]
        if options.json:
            temporary = pathlib.Path(options.json + ".tmp")
            temporary.write_text(comparison.to_json() + "\n")
            temporary.replace(options.json)
    except (ValueError, OSError, NotImplementedError) as error:
        print(f"tilewise compare: {error}", file=sys.stderr)
        return 1
    print(comparison)
    best = comparison.best()
    print(f"{best.label} is {best.speedup:.2f}x as fast as dense attention here" if best else "no method is both faster than dense attention and within an output error of 0.05 here")
    return 0
