#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tilewise beside PyTorch on this CPU: SDPA (its flash kernel), FlexAttention compiled, and tilewise.attend, interleaved in one process; the minimum of the rounds counts.

    bench/peers_cpu.py --out bench/results/DATE-peers-cpu-COMMIT.json [--rows forward,flex,backward,decode,overhead,import] [--dtypes f32,bf16] [--head-dims 64,128] [--append]

One JSON line for each cell: what each peer took (min and median, ms), how many times faster tilewise is than the best of them, and the bar. Every output is compared with a peer's
before it is timed. Needs an idle machine. `overhead` wants the C++ call beside it: --small-call names the program tilewise_small_call (cmake -DTILEWISE_WITH_TORCH=ON).
"""

import argparse
import datetime
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

import tilewise
from tilewise import exchange

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
BLOCK = 128
sdpa = torch.nn.functional.scaled_dot_product_attention


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call in each round, one call after another so that a slow moment hits all alike."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def flash(q, k, v):
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return sdpa(q, k, v)


def problem(args, heads_kv, length, dim, dtype, gradient=False):
    generator = torch.Generator().manual_seed(0)
    shape = lambda heads: (1, heads, length, dim)  # noqa: E731
    return [torch.randn(shape(h), generator=generator).to(DTYPES[dtype]).requires_grad_(gradient) for h in (args.heads, heads_kv, heads_kv)]


def block_plan(heads, length, density):
    """A plan that reads a random share of 128 x 128 blocks whole, the same number in every row of blocks."""
    if density == 1:
        return tilewise.plan(torch.zeros(1, heads, length, 8), torch.zeros(1, heads, length, 8), "dense", tilewise.Mask.full(), tile=BLOCK)
    blocks = -(-length // BLOCK)
    order = torch.rand(1, heads, blocks, blocks, generator=torch.Generator().manual_seed(1)).argsort(-1)
    count = max(1, math.ceil(density * blocks))
    index = order[..., :count].sort(-1).values.int()
    lists = exchange.BlockLists(
        torch.zeros(1, heads, blocks, dtype=torch.int32), torch.zeros_like(index), torch.full((1, heads, blocks), count, dtype=torch.int32), index, BLOCK, BLOCK, length, length
    )
    return exchange.plan_of_block_lists(lists, heads_q=heads)


def check(name, got, expected, dtype):
    bound = 1e-4 if dtype == "f32" else 3e-2
    error = (got.float() - expected.float()).abs().max().item()
    if not error <= bound:
        raise SystemExit(f"{name}: differs from its peer by {error:.3g}, more than {bound}; nothing was timed")


def cell(row, times, bar, **where):
    ours = min(times.pop("tilewise"))
    best = min(times, key=lambda name: min(times[name]))
    value = min(times[best]) / ours
    line = {"row": row, **where, "tilewise_ms": round(ours, 4)}
    line |= {f"{name}_ms": round(min(values), 4) for name, values in times.items()}
    line |= {f"{name}_median_ms": round(statistics.median(values), 4) for name, values in times.items()}
    return line | {"best_peer": best, "times_faster": round(value, 3), "bar": bar, "pass": None if bar is None else value >= bar}


def forward_rows(args, emit):
    for target in args.targets:
        with forced_target(target):
            for dtype in args.dtypes:
                if target == "avx2" and dtype != "f32":
                    continue
                for dim in args.head_dims:
                    q, k, v = problem(args, args.heads, args.length, dim, dtype)
                    for density in (1.0,) if target == "avx2" else args.densities:
                        plan = block_plan(args.heads, args.length, density)
                        if density == 1:
                            check("forward", tilewise.attend(q, k, v, plan), flash(q, k, v), dtype)
                        times = interleaved({"tilewise": lambda: tilewise.attend(q, k, v, plan), "sdpa": lambda: flash(q, k, v)}, args.rounds)
                        bar = {("f32", 1.0): 1.15, ("bf16", 1.0): 2.2, ("f32", 0.1): 10.5, ("bf16", 0.1): 20}.get((dtype, density))
                        emit(cell("forward", times, bar, target=target, dtype=dtype, head_dim=dim, length=args.length, heads=args.heads, density=round(plan.density, 4)))


def flex_rows(args, emit):
    compiled = torch.compile(flex_attention)
    for dtype in args.dtypes:
        for dim in args.head_dims:
            q, k, v = problem(args, args.heads, args.length, dim, dtype)
            for density in (d for d in args.densities if d < 1):
                plan = block_plan(args.heads, args.length, density)
                # Whole blocks only, and a mask function that adds nothing: what is fastest for FlexAttention.
                lists, _ = exchange.block_lists(plan, BLOCK, BLOCK)
                mask = torch.nn.attention.flex_attention.BlockMask.from_kv_blocks(
                    lists.partial_count, lists.partial_index, lists.full_count, lists.full_index, BLOCK, seq_lengths=(args.length, args.length)
                )
                check("flex", tilewise.attend(q, k, v, plan), compiled(q, k, v, block_mask=mask), dtype)
                times = interleaved({"tilewise": lambda: tilewise.attend(q, k, v, plan), "flex": lambda: compiled(q, k, v, block_mask=mask)}, args.rounds)
                bar = (1.6 if dtype == "f32" else {64: 3.0, 128: 3.2}.get(dim)) if density in (0.25, 0.1) else None
                emit(cell("flex", times, bar, target=args.targets[0], dtype=dtype, head_dim=dim, length=args.length, heads=args.heads, density=round(plan.density, 4)))


def backward_rows(args, emit):
    for dtype in args.dtypes:
        for dim in args.head_dims:
            q, k, v = problem(args, args.heads, args.length, dim, dtype, gradient=True)
            theirs = flash(q, k, v)
            dout = torch.randn_like(theirs)
            for density in args.densities:
                plan = block_plan(args.heads, args.length, density).complete()
                ours = tilewise.attend(q, k, v, plan)
                back = lambda out: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)  # noqa: E731
                if density == 1:
                    for a, b in zip(back(ours), back(theirs)):
                        check("backward", a, b, dtype)
                times = interleaved({"tilewise": lambda: back(ours), "sdpa": lambda: back(theirs)}, args.rounds)
                bar = {("f32", 1.0): 1.05, ("bf16", 1.0): 1.35}.get((dtype, density))
                emit(cell("backward", times, bar, target=args.targets[0], dtype=dtype, head_dim=dim, length=args.length, heads=args.heads, density=round(plan.density, 4)))


def decode_rows(args, emit):
    heads_kv, keys = 2, 16384
    for dtype in args.dtypes:
        for dim in args.head_dims:
            _, k, v = problem(args, heads_kv, keys, dim, dtype)
            q = torch.randn(1, args.heads, 1, dim).to(DTYPES[dtype])
            group = args.heads // heads_kv

            def packed():  # the query heads of a group as queries of one head
                return sdpa(q.view(1, heads_kv, group, dim), k, v).view(1, args.heads, 1, dim)

            def products():
                scores = (q.view(1, heads_kv, group, dim) @ k.transpose(-1, -2)) / math.sqrt(dim)
                return (scores.softmax(-1) @ v).view(1, args.heads, 1, dim)

            calls = {
                "tilewise": lambda: tilewise.decode(q, k, v),
                "sdpa_gqa": lambda: sdpa(q, k, v, enable_gqa=True),
                "sdpa_packed": packed,
                "products": products,
            }
            check("decode", tilewise.decode(q, k, v), products(), dtype)
            emit(cell("decode", interleaved(calls, 20 * args.rounds), 3.0, target=args.targets[0], dtype=dtype, head_dim=dim, length=keys, heads=args.heads, heads_kv=heads_kv))


def overhead_rows(args, emit):
    cpp = float(subprocess.run([args.small_call, str(torch.get_num_threads())], check=True, capture_output=True, text=True).stdout)
    q, k, v = (torch.randn(1, 1, 64, 64) for _ in range(3))
    plan = tilewise.plan(q, k, "dense")
    for name, gradient, bar in (("overhead", False, 8), ("overhead with gradient", True, 20)):
        q.requires_grad_(gradient)
        best = math.inf
        for _ in range(10 * args.rounds):
            start = time.perf_counter()
            for _ in range(500):
                tilewise.attend(q, k, v, plan)
            best = min(best, (time.perf_counter() - start) / 500 * 1e6)
        emit({"row": name, "call_us": round(best, 2), "cpp_us": round(cpp, 2), "overhead_us": round(best - cpp, 2), "bar": bar, "pass": best - cpp <= bar})


def import_row(args, emit):
    """What `import tilewise` adds to `import torch`, each time in a process of its own."""
    code = "import time, torch; start = time.perf_counter(); import tilewise; print(time.perf_counter() - start)"
    times = [float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout) for _ in range(2 * args.rounds)]
    emit({"row": "import", "min_s": round(min(times), 4), "median_s": round(statistics.median(times), 4), "bar": 0.5, "pass": min(times) <= 0.5})


class forced_target:
    def __init__(self, target):
        self.target = target

    def __enter__(self):
        if self.target == "avx2":
            os.environ["TILEWISE_TARGET"] = "avx2"

    def __exit__(self, *_):
        os.environ.pop("TILEWISE_TARGET", None)


ROWS = {"forward": forward_rows, "flex": flex_rows, "backward": backward_rows, "decode": decode_rows, "overhead": overhead_rows, "import": import_row}


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = lambda kind: lambda text: [kind(word) for word in text.split(",")]  # noqa: E731
    parser.add_argument("--rows", type=words(str), default=["forward", "flex", "backward", "decode"])
    parser.add_argument("--dtypes", type=words(str), default=list(DTYPES))
    parser.add_argument("--head-dims", type=words(int), default=[64, 128])
    parser.add_argument("--densities", type=words(float), default=[1.0, 0.25, 0.1])
    parser.add_argument("--targets", type=words(str), default=["native"], help="native, avx2 (forward alone)")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small-call", default="build/python/tilewise_small_call")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--append", action="store_true", help="add to the file, which another call began")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    commit = tilewise.__commit__
    head = {"schema": 1, "version": tilewise.__version__, "commit": commit, "torch": torch.__version__, "device": processor(), "threads": args.threads}
    head |= {"date": datetime.date.today().isoformat(), "command": "bench/peers_cpu.py"}
    file = args.out.open("a" if args.append else "w") if args.out else None

    def emit(line):
        text = json.dumps(line)
        print(text, flush=True)
        if file:
            file.write(text + "\n")
            file.flush()

    if not args.append:
        emit(head)
    for row in args.rows:
        ROWS[row](args, emit)


if __name__ == "__main__":
    main()
