#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the tables and the plot of the peers on a CPU from a file of bench/peers_cpu.py: docs/performance.md, README.md, docs/images/peers.svg.

Usage: tools/peers_table.py bench/results/FILE.json
"""

import json
import math
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEERS = {"sdpa": "SDPA", "flex": "FlexAttention", "sdpa_gqa": "SDPA, enable_gqa", "sdpa_packed": "SDPA, packed heads", "products": "two products"}


def between(path: pathlib.Path, name: str, lines: list[str]) -> None:
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->\n"
    text = path.read_text()
    head, rest = text.split(begin)
    path.write_text(head + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1])


def full_table(head: dict, rows: list[dict], path: str) -> list[str]:
    out = [
        f"From `{path}`: {head['device']}, {head['threads']} threads, torch {head['torch']}, commit `{head['commit']}`, {head['date']}. Run again with `bench/peers_cpu.py`.",
        "",
        "| | target | dtype | D | density | tilewise ms | best peer ms | times as fast | bar | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "times_faster" not in row:
            continue
        verdict = "" if row["bar"] is None else "pass" if row["pass"] else "**short**"
        bar = "" if row["bar"] is None else f"&ge; {row['bar']:g}"
        peer = f"{row[row['best_peer'] + '_ms']:.3g} ({PEERS[row['best_peer']]})"
        density = f"{row['density']:.3f}" if "density" in row else ""
        out.append(
            f"| {row['row']} | {row['target']} | {row['dtype']} | {row['head_dim']} | {density} | {row['tilewise_ms']:.3g} | {peer} | {row['times_faster']:.2f} | {bar} | {verdict} |"
        )
    for row in rows:
        if "overhead_us" in row:
            out += ["", f"A call from Python, {row['row']}: {row['call_us']:.1f} us on 64 tokens, of which the C++ call takes {row['cpp_us']:.1f} (bar: {row['bar']} us more)."]
        if "min_s" in row:
            out += ["", f"`import tilewise` after `import torch`: {row['min_s']:.3f} s (bar: {row['bar']} s)."]
    return out


def short_table(rows: list[dict], path: str) -> list[str]:
    """The cells of D = 128 at density 1 and at the smallest one."""
    cells = [row for row in rows if row.get("head_dim") == 128 and row.get("target") == "native" and row["row"] in ("forward", "backward", "flex")]
    least = min(row["density"] for row in cells)
    out = [f"Times as fast as PyTorch on 2 cores ([all cells](docs/performance.md#beside-pytorch), from `{path}`):", "", "| H=8, N=8,192, D=128 | density | f32 | bf16 |", "|---|---|---|---|"]
    for kind, title in (("forward", "forward, against dense SDPA"), ("backward", "backward, against dense SDPA"), ("flex", "forward, against FlexAttention at the same density")):
        for density in (1.0, least):
            found = {row["dtype"]: row["times_faster"] for row in cells if row["row"] == kind and row["density"] == density}
            if found:
                out.append(f"| {title} | {density:.2f} | " + " | ".join(f"{found[dtype]:.1f}" if dtype in found else "" for dtype in ("f32", "bf16")) + " |")
    return out


def plot(head: dict, rows: list[dict]) -> str:
    """Bars on a logarithmic scale: how many times as fast as the best peer."""
    cells = [row for row in rows if "times_faster" in row]
    height, left, width = 17, 330, 560
    most = max(row["times_faster"] for row in cells) * 1.1
    x = lambda value: left + (width - 60) * math.log(max(value, 0.5) / 0.5) / math.log(most / 0.5)  # noqa: E731
    bottom = 34 + height * len(cells)
    out = [
        "<!-- SPDX-License-Identifier: Apache-2.0 -->",
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width} {bottom + 24}" font-family="sans-serif" font-size="11">',
        f'<rect width="{left + width}" height="{bottom + 24}" fill="white"/>',
        f'<text x="8" y="16" font-size="13">Times as fast as the best call of PyTorch {head["torch"]}, {head["device"]}, {head["threads"]} threads</text>',
    ]
    for tick in (0.5, 1, 2, 5, 10, 20, 50, 100):
        if tick <= most:
            out.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="26" y2="{bottom}" stroke="{"#333" if tick == 1 else "#ddd"}"/>')
            out.append(f'<text x="{x(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{tick:g}</text>')
    colours = {"forward": "#3182bd", "backward": "#31a354", "flex": "#756bb1", "decode": "#e6550d"}
    for i, row in enumerate(cells):
        y = 30 + height * i
        density = f", density {row['density']:.2f}" if "density" in row else ""
        target = ", AVX2" if row["target"] == "avx2" else ""
        label = f"{row['row']} {row['dtype']}, D={row['head_dim']}{density}{target}: {PEERS[row['best_peer']]}"
        out.append(f'<text x="{left - 6}" y="{y + 11}" text-anchor="end">{label}</text>')
        start, stop = sorted((x(1), x(row["times_faster"])))
        out.append(f'<rect x="{start:.1f}" y="{y + 1}" width="{max(1, stop - start):.1f}" height="{height - 4}" fill="{colours[row["row"]]}"/>')
        out.append(f'<text x="{x(row["times_faster"]) + 4:.1f}" y="{y + 11}">{row["times_faster"]:.1f}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> None:
    path = pathlib.Path(sys.argv[1])
    head, *rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    name = path.resolve().relative_to(ROOT).as_posix()
    between(ROOT / "docs" / "performance.md", "peers", full_table(head, rows, name))
    between(ROOT / "README.md", "peers", short_table(rows, name))
    (ROOT / "docs" / "images" / "peers.svg").write_text(plot(head, rows))


if __name__ == "__main__":
    main()
