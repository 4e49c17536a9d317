#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of docs/performance.md and, from a tuning, the one of docs/methods.md. Usage:
tools/performance_tables.py bench/results/FILE.json   the bars, from a result file of `tilewise bench`
tools/performance_tables.py --tune out.json           methods at equal quality, from what `tilewise compare --tune --json` wrote: keeps it, without
                                                      figures of single heads, as bench/results/<date>-tune-<commit>.json"""
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PERFORMANCE, METHODS = ROOT / "docs" / "performance.md", ROOT / "docs" / "methods.md"
FIGURES = {
    "of_peak": "of peak",
    "of_dense_rate": "of the dense rate",
    "of_dense_time": "of dense time",
    "of_reading": "of reading",
    "of_contiguous": "of contiguous",
}


def bars(path: pathlib.Path) -> str:
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    head, rest = lines[0], lines[1:]
    if head.get("schema") != 1:
        raise ValueError(f"{path}: its first line has schema {head.get('schema')}, this tool reads 1")
    out = [
        f"From `{path.as_posix()}`: {head['device']}, {head['threads']} threads, commit `{head['commit']}`, {head['date']}.",
        f"Run again with `{head['command']}`.",
    ]
    for line in rest:
        if "peak" in line:
            sound = "" if line["is_sound"] else " **The machine was busy: these figures are not to be quoted.**"
            out += [
                "",
                f"**{line['target']}**, peak {line['gflops']:.0f} GFLOP/s ({line['peak']}, {line['accumulators']} accumulators; "
                f"{line['flop_per_cycle']:.1f} FLOP per cycle and core of {line['expected_flop_per_cycle']} expected at {line['clock_ghz']:.2f} GHz).{sound}",
                "",
                "| row | shape | dtype | density | median ms | GFLOP/s, GB/s | figure | bar | |",
                "|---|---|---|---|---|---|---|---|---|",
            ]
        else:
            rate = f"{line['effective_gflops']:.0f}" if "effective_gflops" in line else ""
            if "gbytes_per_s" in line:
                rate = f"{line['gbytes_per_s']:.1f} GB/s"
            if line["figure"] == "none":  # what others are held against
                out.append(f"| {line['row']} | {line['shape']} | {line['dtype']} |  | {line['median_ms']:.2f} | {rate} |  |  | |")
                continue
            sign = "&le;" if line["figure"] == "of_dense_time" else "&ge;"
            out.append(
                f"| {line['row']} | {line['shape']} | {line['dtype']} | {line['density']:.3f} | {line['median_ms']:.2f} | {rate} | "
                f"{line['value']:.3f} {FIGURES[line['figure']]} | {sign} {line['bar']:.2f} | {'pass' if line['pass'] else 'short'} |"
            )
    return "\n".join(out) + "\n"


def keep(path: pathlib.Path) -> tuple[dict, str]:
    """The document without figures of single heads, and where it was written below the root."""
    document = json.loads(path.read_text())
    if document.get("schema") != 1 or not document.get("tune"):
        raise ValueError(f"{path}: schema {document.get('schema')}, tune {'there' if document.get('tune') else 'missing'}; this tool reads 1 with --tune")
    document["map"] = None
    for method in document["methods"]:
        method["heads"], method["worst_tiles"] = [], []
    place = f"bench/results/{document['created'][:10]}-tune-{document['commit']}.json"
    (ROOT / place).write_text(json.dumps(document, indent=1) + "\n")
    return document, place


def needles(of: dict | None) -> str:
    return f"{of['correct']}/{of['of']}" if of else ""


def extra_bits(method: dict) -> list[float]:
    return [text["bits_per_byte"] - text["dense_bits_per_byte"] for text in method["texts"]]


def outcome(method: dict, bound: float) -> str:
    if method["refused"]:
        return "refused"
    return "yardstick" if method["is_baseline"] else "holds" if max(extra_bits(method)) <= bound else "over"


def tuned(document: dict, place: str) -> str:
    dense, tune = document["dense"], document["tune"]
    names = [pathlib.PurePath(text["path"]).stem for text in document["input"]["texts"]]
    asked = ", ".join(str(length) for length in document["input"]["needle_lengths"])
    trials = sum(len(curve["points"]) for curve in tune["curves"])
    out = [
        f"From `{place}`: {document['device']}, {document['threads']} threads, commit `{document['commit']}`, {document['created'][:10]}. "
        f"{trials} settings were tried on {pathlib.PurePath(tune['text']).stem}; the bound is {tune['bound']:g} bits per byte on every text"
        + (f"; needles of {asked} bytes are asked of dense attention and of the two fastest that hold it." if asked else "."),
        "",
        f"**{document['verdict']['text']}**",
        "",
        "| method | density | recall | error | " + " | ".join(f"extra bits, {name}" for name in names) + " | plan ms | attend ms | speed-up | needles | |",
        "|---|---|---|---|" + "---|" * len(names) + "---|---|---|---|---|",
        f"| dense | 1 | 1 | 0 | " + " | ".join("" for _ in names) + f" |  | {dense['attend_ms']:.0f} | 1.00 | {needles(dense['needle'])} | |",
    ]
    for method in document["methods"]:
        if method["refused"]:
            out.append(f"| {method['label']} | " + " | " * (7 + len(names)) + "refused |")
            continue
        out.append(
            f"| {method['label']} | {method['density']:.3f} | {method['recall']:.3f} | {method['output_error']:.3f} | "
            + " | ".join(f"{value:+.4f}" for value in extra_bits(method))
            + f" | {method['plan_ms']:.0f} | {method['attend_ms']:.0f} | {method['speedup']:.2f} | {needles(method['needle'])} | {outcome(method, tune['bound'])} |"
        )
    return "\n".join(out) + "\n"


def ranked(document: dict) -> str:
    """What to choose among: the methods that hold the bound, the fastest first, then those that do not."""
    bound = document["tune"]["bound"]
    length = document["input"]["length"]
    methods = [method for method in document["methods"] if not method["refused"] and not method["is_baseline"]]
    methods.sort(key=lambda method: (outcome(method, bound) != "holds", -method["speedup"]))
    out = [
        f"At {length:,} bytes, each method with its fastest setting that holds {bound:g} bits per byte on the text that chose it (or its closest), from [the tuning](performance.md#methods-at-equal-quality):",
        "",
        f"| method | times as fast as dense | keys read | most extra bits per byte | needles | within {bound:g} on every text |",
        "|---|---|---|---|---|---|",
    ]
    for method in methods:
        out.append(
            f"| `{method['label']}` | {method['speedup']:.2f} | {method['density']:.0%} | {max(extra_bits(method)):+.4f} | {needles(method['needle'])} | "
            f"{'yes' if outcome(method, bound) == 'holds' else 'no'} |"
        )
    return "\n".join(out) + "\n"


def put(document: pathlib.Path, mark: str, new: str) -> None:
    text = document.read_text()
    before, begin, rest = text.partition(f"<!-- begin {mark} -->\n")
    _, end, after = rest.partition(f"<!-- end {mark} -->\n")
    if not begin or not end:
        raise ValueError(f"{document} has lost its marks <!-- begin {mark} --> and <!-- end {mark} -->")
    document.write_text(before + begin + new + end + after)


def main(arguments: list[str]) -> int:
    is_tune = arguments[:1] == ["--tune"]
    paths = arguments[1:] if is_tune else arguments
    if len(paths) != 1 or paths[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    path = pathlib.Path(paths[0])
    try:
        if is_tune:
            document, place = keep(path)
            put(PERFORMANCE, "tune", tuned(document, place))
            put(METHODS, "measured", ranked(document))
        else:
            put(PERFORMANCE, "bars", bars(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"performance_tables.py: {path} does not make a table: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
