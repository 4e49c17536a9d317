# SPDX-License-Identifier: Apache-2.0
"""The command `tilewise`: the C++ program that lies in this package; `compare` on a checkpoint with a tokenizer runs here, since the program reads bytes."""

from __future__ import annotations

import argparse
import os
import pathlib
import shlex
import sys
from collections.abc import Callable
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
        self.exit(2, f"tilewise: {message}; see tilewise compare --help\n")


# Options of the program that do not go with a tokenizer, and the way on.
_ELSEWHERE = {
    "--qkv": "it reads tensors and no model: give one kind; tilewise.capture saves the tensors of a model's layers",
    "--mask": "it is for --qkv; a model has its own mask",
    "--max-error": "it is for --qkv; of a model --max-bits bounds the bits per byte",
    "--save-plans": "plans of a model that runs in torch come from Python: tilewise.huggingface.observe, and Plan.save",
}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tilewise compare", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="run a Hugging Face checkpoint with a tokenizer over your text, with dense attention and with each method, and tell what each cost",
        epilog="A checkpoint whose tokens are bytes (256 of them, no tokenizer.json) and --qkv go to the C++ program, which has options of its own.",
    )  # fmt: skip
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of a Hugging Face checkpoint with config.json, weights and tokenizer.json")
    parser.add_argument("--text", required=True, nargs="+", action="extend", metavar="FILE", help="files to read, UTF-8; the bound must hold on every one")
    parser.add_argument("--length", type=_number(int, 2, 1 << 24), default=4096, help="tokens to read of each text (4096)")
    parser.add_argument("--methods", nargs="+", action="extend", default=[], help="all, or a list: name,name:option=value,option=value,... (by default the rows of the demo)")
    parser.add_argument("--density", type=_number(float, 0, 1), help="sets the budget of every method that has the option density")
    parser.add_argument("--needle", type=_number(int, 64, 1 << 24), nargs="+", action="extend", default=[], help="also ask for notes hidden in so many tokens of the first text")
    parser.add_argument("--tune", action="store_true", help="run each method with the fastest of its settings that holds the bound on the first text")
    parser.add_argument("--max-bits", type=_number(float, 0, 1000), default=0.005, help="bits per byte that the recommended method may add to dense (0.005)")
    parser.add_argument("--recipe", metavar="FILE", help="a recipe file, run as one more row")
    parser.add_argument("--seed", type=_number(int, 0, (1 << 63) - 1), default=0, help="of methods that draw by chance, and of needles (0)")
    parser.add_argument("--device", default="cpu", help="cpu")
    parser.add_argument("--report", metavar="FILE", help="write one HTML file that needs no network")
    parser.add_argument("--json", metavar="FILE", help="write the figures (docs/formats/compare.md)")
    parser.add_argument("--threads", type=_number(int, 0, 1024), default=0, help="of torch; 0: its default")
    for option in _ELSEWHERE:
        parser.add_argument(option, nargs="*", help=argparse.SUPPRESS)
    return parser


def _number(kind: Callable[[str], float], low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:  # nan, too
            raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' if kind is int else ''}number from {low} to {high}")
        return value

    return parse


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """All that is quick to find out, before the model is read."""
    for option, way_on in _ELSEWHERE.items():
        if getattr(options, option[2:].replace("-", "_")) is not None:
            parser.error(f"{option} does not go with a checkpoint that has a tokenizer: {way_on}")
    if options.device != "cpu":
        parser.error(f"--device {options.device} is not there for compare; it runs on cpu")
    if options.tune and options.density is not None:
        parser.error("--tune looks for the density, and --density gives it; take one")
    inputs = [pathlib.Path(path).resolve() for path in [*options.text, *([options.recipe] if options.recipe else [])]]
    outputs = [(name, path) for name, path in (("--report", options.report), ("--json", options.json)) if path]
    for name, path in outputs:
        if pathlib.Path(path).resolve() in inputs:
            parser.error(f"{name} {path} would write over a file that is read; name another")
    if len(outputs) == 2 and pathlib.Path(options.report).resolve() == pathlib.Path(options.json).resolve():
        parser.error(f"--report and --json name the same file, {options.report}")
    for name, path in outputs:
        if pathlib.Path(path).is_dir():
            raise IsADirectoryError(f"{name} {path} is a folder; name a file")
        if not os.access(pathlib.Path(path).parent, os.W_OK):
            raise OSError(f"{name} {path}: its folder is not there, or cannot be written to")


def _compare(arguments: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        _check(parser, options)
        from ._errors import call
        from ._operators import ops

        try:
            for method in options.methods if hasattr(ops, "study_check") else ():  # else compare() says what is missing
                call(ops.study_check.default, method)
        except ValueError as error:
            parser.error(str(error))
        texts = [pathlib.Path(path).read_bytes() for path in options.text]
        from tokenizers import Tokenizer

        path = str(pathlib.Path(options.model) / "tokenizer.json")
        try:
            tokenizer = Tokenizer.from_file(path)
        except Exception as error:  # tokenizers raises no other class
            raise ValueError(f"{path} cannot be read: {error}") from None

        import torch
        import transformers

        from ._compare import compare, write_whole

        if options.threads:
            torch.set_num_threads(options.threads)
        if sys.stderr.isatty():
            print(f"reading {options.model}", end="\r", file=sys.stderr)
        else:
            transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(options.model, local_files_only=True)
        found = compare(
            model, texts, options.methods or None, tokenizer=tokenizer, length=options.length, density=options.density, tune=options.tune, max_bits=options.max_bits,
            recipe=options.recipe, needles=options.needle, maps=bool(options.report), seed=options.seed, progress=True, names=options.text,
            command=shlex.join(["tilewise", "compare", *arguments]),
        )  # fmt: skip
        print(found._table.rstrip("\n") if sys.stdout.isatty() else found)
        for path, text in ((options.json, found.to_json), (options.report, found.to_html)):
            if path:
                write_whole(path, text())
        if options.report:
            print(f"report: {pathlib.Path(options.report).absolute()}")
        if options.json:
            print(f"json:   {pathlib.Path(options.json).absolute()}")
    except KeyboardInterrupt:
        print("tilewise: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, NotImplementedError, ImportError, TypeError, MemoryError) as error:
        print("tilewise: " + " ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0
