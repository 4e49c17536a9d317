#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of docs/performance.md from a result file. Usage: tools/performance_tables.py bench/results/FILE.json"""
import json
import pathlib
import sys

DOCUMENT = pathlib.Path(__file__).resolve().parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- begin bars -->\n", "<!-- end bars -->\n"
FIGURES = {
    "of_peak": "of peak",
    "of_dense_rate": "of the dense rate",
    "of_dense_time": "of dense time",
    "of_reading": "of reading",
    "of_contiguous": "of contiguous",
}


def tables(path: pathlib.Path) -> str:
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


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    text = DOCUMENT.read_text()
    before, begin, rest = text.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not begin or not end:
        print(f"performance_tables.py: {DOCUMENT} has lost its marks {BEGIN.strip()} and {END.strip()}", file=sys.stderr)
        return 1
    try:
        new = tables(pathlib.Path(sys.argv[1]))
    except (OSError, ValueError, KeyError) as error:
        print(f"performance_tables.py: {sys.argv[1]} is not a result file of tilewise bench: {error}", file=sys.stderr)
        return 1
    DOCUMENT.write_text(before + begin + new + end + after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
