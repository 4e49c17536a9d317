#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds, tests and times the Hopper kernels on the GPU at hand, in stages under a time budget, and prints a short table last.

  tools/gpu_check.py [--build DIR | --built DIR] [--stages tests,sanitize,dense,...] [--minutes 8] [--cases 1000] [--rounds 7] [--out FILE]
  tools/gpu_check.py --bars [FILE]     each bar with its figure from a results file (the newest of bench/results/ if none is named)

A stage that the budget has no room for is left out and named. The file goes to bench/results/<date>-<device>-<commit>.json. Needs torch; the peer
fa3_fwd is timed where it is installed.
"""
import argparse, datetime, json, os, pathlib, re, subprocess, sys, tarfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results"
# Rows of bench/attend/sm90/forward_bench.py, lengths, and about how many seconds they take.
BENCHES = {"dense": ("dense", "8192,32768", 25), "proof": ("proof", "8192,32768", 25), "sparse8": ("sparse", "8192", 20), "sparse32": ("sparse", "32768", 30),
           "narrow": ("narrow", "8192,32768", 30), "causal": ("causal", "8192,32768", 20), "d64": ("d64", "8192,32768", 20),
           "d256": ("d256", "8192,32768", 20), "general": ("general", "8192", 10), "small": ("small", "256,512,1024,2048", 25)}
# The same of 128K, where a call takes up to .45 s: not among the stages that run unasked.
LONG = {"long": ("dense,causal", "131072", 40), "longsparse": ("sparse", "131072", 40), "longnarrow": ("narrow", "131072", 30)}
# Rows of bench/attend/sm90/decode_bench.py, likewise.
DECODES = {"decode": ("dense,short", 25), "paged": ("paged,listed,quantised", 25)}
# Rows of bench/attend/sm90/backward_bench.py, lengths, seconds.
BACKWARDS = {"backward": ("dense,causal", "8192,32768", 25), "backward64": ("d64,d64causal", "32768", 15), "backsparse": ("sparse", "8192,32768", 25)}
# bench/attend/cuda/forward_bench.py: the path for any GPU; it has no bar.
ANY_GPU = {"cuda": ("8192", 20)}
# bench/attend/sm90/measure_bench.py, lengths, seconds.
MEASURES = {"measure": ("dense,sparse", "8192,32768", 20)}
# tilewise_sm90_plan_bench, and about how many seconds it takes.
PLANS = {"plans": 50}
# tilewise compare --device cuda of a carried program (tools/carry_program.sh): its arguments, and about how many seconds it takes.
TEXT = "models/reference-lm/documents/postgresql-wal.txt"
COMPARES = {"comparelm": (["--model", "models/reference-lm", "--text", TEXT, "--length", "16384"], 30),
            "compare8b": (["--model", "models/llama-3.1-8b-shape", "--random-weights", "1", "--text", TEXT, "--length", "32768", "--methods",
                           "mean_pool:density=0.1", "xattention:stride=16"], 90)}
# Milliseconds of mean pool and top-k.
CHOICE_TIMES = {"8K": .065, "32K": .25, "128K": 1.0}
# Of the time of causal dense attention: xattention's scores and choice, by stride.
XATTENTION_SHARES = {8: .09, 16: .05}
# TFLOP/s of the best deterministic peer and of the best of all over cuDNN's in turns on one H100, 2026-11-24 (FA3, FA4: they do not fit here).
BACKWARD_OVER_CUDNN = {"dense D=128 8K": (543 / 513, 580 / 513), "dense D=128 32K": (587 / 528, 626 / 528), "causal D=128 8K": (456 / 459, 539 / 459),
                       "causal D=128 32K": (527 / 526, 616 / 526), "dense D=64 32K": (547 / 446, 547 / 446), "causal D=64 32K": (526 / 401, 548 / 401)}
# FA4's lists of 128x128 tiles, not deterministic, over dense cuDNN, and the bars, at .25 and .10.
BACKWARD_SPARSE = {"8K": ((453 / 513, 1.05), (322 / 513, 1.20)), "32K": ((541 / 528, 1.00), (489 / 528, 1.00))}
# Of the bandwidth that reading 2 GiB reaches in the same turns, or microseconds in a CUDA graph.
DECODE_SHARES = {"decode B=1 128K": .95, "decode B=16 8K": .97, "decode B=16 128K": .99, "paged B=1 128K": .93, "listed 4096 of 128K B=16": .89,
                 "int8 B=1 128K": .85}
DECODE_TIMES = {"decode B=1 8K": 18, "decode B=1 32K": 50, "listed 4096 of 128K B=1": 11}

# FlashAttention-4 4.0.0b36 and VSA (fastvideo-kernel 0.3.5) do not fit beside the checkout: their TFLOP/s over FA3's in turns on one H100,
# 2026-11-24, at .5 / .25 / .10 / .05 (8K: .094, .047).
OVER_FA3 = {("128x128", "8K"): (604 / 675, 567 / 675, 452 / 675, 348 / 675), ("128x128", "32K"): (650 / 701, 649 / 701, 612 / 701, 574 / 701),
            ("64x64", "8K"): (473 / 675, 480 / 675, 430 / 675, 376 / 675), ("64x64", "32K"): (508 / 701, 506 / 701, 490 / 701, 465 / 701),
            ("128x128", "128K"): (650 / 701, 608 / 701, 615 / 701), ("64x64", "128K"): (418 / 701, 413 / 701, 385 / 701)}
SHARES = {("128x128", "8K"): (.96, .92, .80, .64), ("128x128", "32K"): (.97, .96, .92, .88),
          ("64x64", "8K"): (.75, .74, .68, .58), ("64x64", "32K"): (.78, .78, .75, .71),
          ("128x128", "128K"): (.95, .92, .91), ("64x64", "128K"): (.57,) * 3}  # from .25
OVER_PEER = {("128x128", "8K"): (1.05, 1.08, 1.18, 1.22), ("128x128", "32K"): (1.03, 1.03, 1.05, 1.07), ("64x64", "8K"): (1.08,) * 4,
             ("64x64", "32K"): (1.08,) * 4, ("128x128", "128K"): (1.02, 1.05, 1.03), ("64x64", "128K"): (1.05,) * 3}
# Microseconds in a CUDA graph of the best peer, dense and at .25 (FA4, VSA), and of FA3 and cuDNN, dense, in those turns; host time of a call from Python.
SMALL = {256: (7.1, 3.8, 10.9, 8.5), 512: (10.4, 6.1, 12.6, 12.2), 1024: (29.4, 12.6, 30.4, 30.9), 2048: (102, 43.7, 102.2, 110.5)}
HOST_US = 15
NOT_BUILT = ["pools", "backward D=256", "FP8 forward"]


def bars(result):
    """(bar, figure, bound) for every bar that the file has a row for."""
    rows = {(row["row"], row["kernel"]): row for row in result["rows"]}
    figure = lambda row, kernel: rows[row, kernel].get("tflops") if (row, kernel) in rows else None
    out = []

    def ratio(name, above, below, bound):
        if above and below: out.append((name, above / below, bound))

    def best(row):
        return max((f for f in (figure(row, "fa3"), figure(row, "cudnn")) if f), default=None)

    for n in ("8K", "32K", "128K"):
        ratio(f"dense D=128 {n} over the best of FA3 and cuDNN", figure(f"dense D=128 {n}", "plan"), best(f"dense D=128 {n}"), 1.00)
        ratio(f"dense D=64 {n} over the same", figure(f"dense D=64 {n}", "plan"), best(f"dense D=64 {n}"), 1.03)
        ratio(f"dense D=256 {n} over the same", figure(f"dense D=256 {n}", "plan"), best(f"dense D=256 {n}"), 1.00)
        ratio(f"causal D=128 {n} over the same", figure(f"causal D=128 {n}", "plan"), best(f"causal D=128 {n}"), 1.00)
        ratio(f"plan over counter, one kernel, {n}", figure(f"proof D=128 {n}", "proof"), figure(f"proof D=128 {n}", "counter"), .99)
        for shape in ("128x128", "64x64"):
            row = f"sparse {shape} D=128 {n}"
            own = figure(row, "dense")
            kernels = [k for r, k in rows if r == row and re.fullmatch(r"density 0\.\d+", k)]
            for i, kernel in enumerate(sorted(kernels, reverse=True)[:len(SHARES[shape, n])]):
                share, over = SHARES[shape, n][i], OVER_PEER[shape, n][i]
                ratio(f"{shape} {n} {kernel[8:]} share of own dense", figure(row, kernel), own, share)
                fa3 = figure(row, "fa3")
                ratio(f"{shape} {n} {kernel[8:]} over the best peer (by FA3)", figure(row, kernel), fa3 and fa3 * OVER_FA3[shape, n][i], over)
        row = f"sparse 128x128 D=128 {n}"
        for (r, kernel) in list(rows):
            if r != row: continue
            equal = figure(row, kernel.rsplit(" ", 2)[0] if kernel.endswith("64 keys") else kernel.rsplit(" ", 1)[0])
            if kernel.endswith("64 keys"): ratio(f"64-key runs {n} {kernel[8:13]} of own 128x128", figure(row, kernel), equal, .97)
            if kernel.endswith("unaligned"): ratio(f"unaligned runs {n} of aligned", figure(row, kernel), equal, .93)
            if kernel.endswith("each"):
                ratio(f"order of work {n}: share of time left to attention at .10", figure(row, kernel), equal, .97)
                ratio(f"unequal rows {n} of equal ones", figure(row, "unequal rows"), equal, {"8K": .92, "32K": .98, "128K": .95}[n])
    for n, (dense, sparse, *peers) in SMALL.items():
        for density, best_peer in ((1, dense), (.25, sparse)):
            ours = [row["time_ms"] for (r, kernel), row in rows.items() if r == f"small {n} {density}" and kernel in ("tile 128", "tile 64")]
            known = [(kernel, rows[f"small {n} 1", kernel]["time_ms"] / us) for kernel, us in zip(("fa3", "cudnn"), peers) if (f"small {n} 1", kernel) in rows]
            if ours and known:
                kernel, scale = known[0]
                out.append((f"{n} tokens at {density} in a graph: .95 of the best peer's time (by {kernel}) over time", .95 * best_peer * scale / min(ours), 1.00))
        if (f"host time {n}", "tilewise") in rows:
            out.append((f"{n} tokens from Python: bound of {HOST_US} us of host time over time", HOST_US / 1e3 / rows[f"host time {n}", "tilewise"]["time_ms"], 1.00))
    for row, (deterministic, best_of_all) in BACKWARD_OVER_CUDNN.items():
        row = "backward " + row
        cudnn = figure(row, "cudnn")
        ratio(f"{row} over the best deterministic peer (by cuDNN)", figure(row, "plan"), cudnn and cudnn * deterministic, 1.00)
        ratio(f"{row} over the best of all (by cuDNN)", figure(row, "plan"), cudnn and cudnn * best_of_all, .95)
    for n, peers in BACKWARD_SPARSE.items():
        row = f"backward sparse 128x128 D=128 {n}"
        cudnn = figure(row, "cudnn")
        kernels = sorted((k for r, k in rows if r == row and re.fullmatch(r"density 0\.\d+", k)), reverse=True)
        for kernel, (over, bound) in zip(kernels, peers):
            ratio(f"{row} {kernel[8:]} over FA4, which is not deterministic (by cuDNN)", figure(row, kernel), cudnn and cudnn * over, bound)
        for kernel in kernels[-1:]:
            order = rows.get((f"backward order 128x128 D=128 {n}", kernel))
            if n == "32K" and order: out.append((f"order of the backward {n} {kernel[8:]}: bound of .03 of the backward over share", .03 * rows[row, kernel]["time_ms"] / order["time_ms"], 1.00))
    for n in ("8K", "32K"):
        row = f"measure D=128 {n}"
        ratio(f"{row}, max of tiles, of own dense a FLOP", figure(row, "max of tiles"), figure(row, "dense"), .95)
    for row, bound in DECODE_SHARES.items():
        if (row, "tilewise") in rows: out.append((f"{row}: share of read bandwidth", rows[row, "tilewise"]["share"], bound))
    for row, bound in DECODE_TIMES.items():
        if (row, "tilewise") in rows: out.append((f"{row}: bound of {bound} us over time", bound / rows[row, "tilewise"]["time_ms"] / 1e3, 1.00))
    for n, bound in CHOICE_TIMES.items():
        key = (f"choosing tiles {n}", "mean_pool and top-k")
        if key in rows: out.append((f"{key[0]} by mean pool and top-k: bound of {bound} ms over time", bound / rows[key]["time_ms"], 1.00))
    for stride, bound in XATTENTION_SHARES.items():
        row = f"xattention S={stride} 32K"
        if (row, "xattention") in rows:
            share = rows[row, "xattention"]["time_ms"] / rows[row, "dense attention"]["time_ms"]
            out.append((f"{row}, score and choice: bound of {bound} of causal dense attention over share", bound / share, 1.00))
    row = "plan of 32K at .10"
    if (row, "attention") in rows:
        share = rows[row, "complete and order"]["time_ms"] / rows[row, "attention"]["time_ms"]
        out.append((f"complete and order, {row}: bound of .03 of the attention over share", .03 / share, 1.00))
    return out


def print_bars(result):
    print(f"{result['device']}, {result['commit']}, {result['date']}")
    passed = 0
    every = bars(result)
    for name, figure, bound in every:
        passed += figure >= bound
        print(f"{'pass ' if figure >= bound else 'short'} {figure:6.3f}  bar {bound:5.2f}  {name}")
    for name in NOT_BUILT: print(f"-                     {name}: not built or not timed")
    print(f"{passed} of {len(every)} pass")


def newest():
    files = [f for f in RESULTS.glob("*h100*.json") if "bars" in f.read_text()[:400]]
    # The date of a file in a checkout says nothing: of one day the latest commit counts.
    added = lambda f: subprocess.run(["git", "log", "-1", "--format=%ct", "--", str(f)], cwd=ROOT, capture_output=True, text=True).stdout.strip() or "9" * 10  # noqa: E731
    return max(files, key=lambda f: (json.loads(f.read_text())["date"], added(f))) if files else None


def package(folder, built):
    """A folder for PYTHONPATH: the package as it stands in the checkout, with the operators that were built."""
    inside = folder / "package/tilewise"
    inside.mkdir(parents=True, exist_ok=True)
    for file in [*(ROOT / "python/tilewise").glob("*.py"), built / "python/_ops.so"]:
        (inside / file.name).unlink(missing_ok=True)
        (inside / file.name).symlink_to(file)
    return inside.parent


def run(command, seconds, log, **environment):
    start = time.time()
    try:
        done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds)
        code, text = done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        code, text = 124, (late.stdout or b"").decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
    with open(log, "a") as out: out.write(f"$ {' '.join(map(str, command))}\n{text}\nexit {code}\n")
    return code, text, time.time() - start


def cublaslt():
    """The file of torch's own cuBLASLt, or nothing where the loader finds one."""
    import importlib.util
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations if spec else []):
        for file in pathlib.Path(folder).glob("cu13/lib/libcublasLt.so.13"): return str(file)
    return ""


def compared(stage, file):
    """Rows of what tilewise compare wrote: a model's dense attention, then each method; a refused one keeps its reason."""
    text = json.loads(pathlib.Path(file).read_text())
    name = f"compare {'reference LM' if stage == 'comparelm' else '8B shape'} {text['input']['length'] // 1024}K"
    dense = text["dense"]
    rows = [dict(row=name, kernel="dense", time_ms=dense["attend_ms"], model_ms=dense["model_ms"], bits=dense["bits_per_byte"], backend=dense["backend"])]
    for row in text["methods"]:
        if row["refused"]: rows.append(dict(row=name, kernel=row["label"], refused=row["refused"]))
        else: rows.append(dict(row=name, kernel=row["label"], time_ms=row["total_ms"], **{k: row[k] for k in ("plan_ms", "attend_ms", "dense_attend_ms", "speedup", "model_ms", "density", "recall", "output_error", "backend")}))
    return dict(schema=1, device=text["device"], commit=text["commit"], date=text["created"], rows=rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bars", nargs="?", const="", default=None)
    parser.add_argument("--build", default="build/gpu")
    parser.add_argument("--built", help="folder that holds the tilewise_*_test programs, libtilewise_sm90_bench.so and python/_ops.so")
    parser.add_argument("--stages", default="tests,python,sanitize," + ",".join([*BENCHES, *BACKWARDS, *DECODES, *MEASURES, *PLANS, *ANY_GPU, *COMPARES]))
    parser.add_argument("--program", default="build/carry/tilewise-program/tilewise", help="for the stages comparelm and compare8b, from tools/carry_program.sh")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--commit", default="")
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.bars is not None:
        file = pathlib.Path(options.bars) if options.bars else newest()
        if not file: sys.exit("gpu_check: no results file of a GPU in bench/results; run without --bars on a GPU, or name one")
        return print_bars(json.loads(file.read_text()))
    end = time.time() + 60 * options.minutes
    commit = options.commit or subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"
    scratch = ROOT / options.build
    scratch.mkdir(parents=True, exist_ok=True)
    log = scratch / "gpu_check.log"
    log.write_text("")
    table, result, failed = [], None, False
    built = pathlib.Path(options.built).resolve() if options.built else scratch.resolve()
    if not options.built:
        code, text, took = run(["tools/sm90_harness.sh", options.build, sys.executable], 240, log)
        table.append(("build", "ok" if code == 0 else "FAIL", took, ""))
        if code: sys.exit(text[-3000:])
    tests = {"forward": str(built / "tilewise_sm90_test"), "decode": str(built / "tilewise_sm90_decode_test"),
             "measure": str(built / "tilewise_sm90_measure_test"),
             "backward": str(built / "tilewise_sm90_backward_test"), "cuda": str(built / "tilewise_cuda_test"), "plan": str(built / "tilewise_sm90_plan_test")}
    for stage in options.stages.split(","):
        left = end - time.time()
        if stage == "tests":
            for kind, test in tests.items():
                for name, command, seconds in ((f"test {kind}", [test, "--cases", str(options.cases), "--repeats", "3"], 150),
                                               (f"30x {kind}", [test, "--cases", "40", "--seed", "9000", "--repeats", "30", "--only", "cases"], 60)):
                    code, text, took = run(command, min(end - time.time(), seconds), log)
                    table.append((name, "ok" if code == 0 else "FAIL", took, (text.strip().splitlines() or ["no output"])[-1]))
                    failed |= code != 0
        elif stage == "python":
            if not (built / "python/_ops.so").exists():
                table.append((stage, "left out", 0, f"{built}/python/_ops.so is not there"))
                continue
            code, text, took = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/python/test_cuda.py"], min(left, 120), log,
                                   PYTHONPATH=str(package(scratch.resolve(), built)))
            table.append((stage, "ok" if code == 0 else "FAIL", took, (text.strip().splitlines() or ["no output"])[-1]))
            failed |= code != 0
        elif stage == "sanitize":
            for tool in ("memcheck", "initcheck", "synccheck"):
                for kind, test in tests.items():
                    if (tool, kind) == ("initcheck", "backward"): continue  # it does not see what bulk copies write: the test poisons the workspace itself
                    code, text, took = run(["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", test, "--cases", "100", "--small", "--repeats", "1",
                                            "--only", "cases"], min(end - time.time(), 60), log)
                    table.append((f"{tool} {kind}", "ok" if code == 0 else "FAIL", took, (text.strip().splitlines() or ["no output"])[-1]))
                    failed |= code != 0
        else:
            if stage in COMPARES:
                arguments, seconds = COMPARES[stage]
                packed = (ROOT / options.program).parent.parent / "tilewise.tar.xz"
                if packed.exists() and not (ROOT / options.program).exists():
                    with tarfile.open(packed) as archive: archive.extractall(packed.parent)
                if left < seconds or not (ROOT / options.program).exists():
                    table.append((stage, "left out", 0, f"{left:.0f} s left, takes {seconds}" if left < seconds else f"{options.program} is not there"))
                    continue
                part = scratch / f"{stage}.json"
                library = cublaslt()
                environment = ["env", f"TILEWISE_CUBLASLT={library}"] if library else []
                code, text, took = run([*environment, str(ROOT / options.program), "compare", "--device", "cuda", *arguments, "--json", str(part)],
                                       min(left, 3 * seconds), log)
                table.append((stage, "ok" if code == 0 else "FAIL", took, "" if code == 0 else text[-200:].replace("\n", " ")))
                failed |= code != 0
                if code: continue
                piece = compared(stage, part)
                if result is None: result = dict(piece, bars=True, rows=[])
                result["rows"] += piece["rows"]
                continue
            if stage in PLANS:
                seconds, command = PLANS[stage], [str(built / "tilewise_sm90_plan_bench")]
            elif stage in ANY_GPU:
                lengths, seconds = ANY_GPU[stage]
                command = [sys.executable, "bench/attend/cuda/forward_bench.py", str(built / "libtilewise_sm90_bench.so"), "--lengths", lengths]
            elif stage in DECODES:
                rows, seconds = DECODES[stage]
                command = [sys.executable, "bench/attend/sm90/decode_bench.py", str(built / "libtilewise_sm90_bench.so"), "--rows", rows]
            else:
                rows, lengths, seconds = (BENCHES | LONG | BACKWARDS | MEASURES)[stage]
                kind = "backward" if stage in BACKWARDS else "measure" if stage in MEASURES else "forward"
                command = [sys.executable, f"bench/attend/sm90/{kind}_bench.py", str(built / "libtilewise_sm90_bench.so"), "--rows", rows, "--lengths", lengths]
            if left < seconds:
                table.append((stage, "left out", 0, f"{left:.0f} s left, takes {seconds}"))
                continue
            part = scratch / f"{stage}.json"
            environment = {"PYTHONPATH": str(package(scratch.resolve(), built))} if stage == "small" and (built / "python/_ops.so").exists() else {}
            code, text, took = run([*command, "--rounds", str(options.rounds), "--commit", commit, "--out", str(part)],
                                   min(left, 4 * seconds), log, **environment)
            table.append((stage, "ok" if code == 0 else "FAIL", took, "" if code == 0 else text[-200:].replace("\n", " ")))
            failed |= code != 0
            if code: continue
            piece = json.loads(part.read_text())
            if result is None: result = dict(piece, bars=True, rows=[])
            result["rows"] += piece["rows"]
    if result:
        result = dict(schema=1, bars=True, **{k: v for k, v in result.items() if k not in ("schema", "bars", "rows")},
                      stages=[dict(stage=s, state=state, seconds=round(took, 1), note=note) for s, state, took, note in table], rows=result["rows"])
        device = re.sub(r"[^a-z0-9]+", "-", result["device"].lower().replace("nvidia", "").strip())
        device = "h100" if "h100" in device else device
        out = pathlib.Path(options.out) if options.out else RESULTS / f"{datetime.date.today().isoformat()}-{device}-{commit}.json"
        out.write_text(json.dumps(result, indent=1) + "\n")
        print_bars(result)
        print(f"written to {out}")
    for name, state, took, note in table: print(f"{name:17s} {state:8s} {took:6.1f} s  {note[:140]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
