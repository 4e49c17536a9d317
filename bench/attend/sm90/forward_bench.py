# SPDX-License-Identifier: Apache-2.0
"""Sustained TFLOP/s of the Hopper forward kernel beside cuDNN, all kernels of a row taking turns in one process.

Protocol: each kernel runs for windows of 100 ms in turn, one round to soak and `--rounds` measured, median of the rounds; a burst figure
(median of 11 single calls after a pause) stands beside it. Output is checked once against cuDNN or a masked reference before timing.
usage: forward_bench.py LIBRARY [--rows dense,sparse] [--rounds 7] [--out FILE.json] [--commit ID]
"""
import argparse, ctypes, datetime, importlib.util, json, math, statistics, subprocess, sys, time
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


class Tensor16(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("is_bf16", ctypes.c_bool), ("batch", ctypes.c_int), ("heads", ctypes.c_int), ("seqlen", ctypes.c_int),
                ("head_dim", ctypes.c_int), ("stride_batch", ctypes.c_int64), ("stride_head", ctypes.c_int64), ("stride_token", ctypes.c_int64)]

    def __init__(self, t):
        b, h, s, d = t.shape
        super().__init__(t.data_ptr(), t.dtype == torch.bfloat16, b, h, s, d, t.stride(0), t.stride(1), t.stride(2))


class RunList(ctypes.Structure):
    _fields_ = [("begin", ctypes.c_void_p), ("count", ctypes.c_void_p), ("start", ctypes.c_void_p), ("stop", ctypes.c_void_p), ("rows", ctypes.c_void_p),
                ("begin_batch", ctypes.c_int), ("begin_heads", ctypes.c_int), ("count_batch", ctypes.c_int), ("count_heads", ctypes.c_int),
                ("grain", ctypes.c_int), ("words", ctypes.c_int)]


class ForwardInput(ctypes.Structure):
    _fields_ = [("q", Tensor16), ("k", Tensor16), ("v", Tensor16), ("out", Tensor16), ("lse", ctypes.c_void_p), ("lse_strides", ctypes.c_int64 * 2),
                ("softmax_scale", ctypes.c_float), ("masked", RunList), ("whole", RunList), ("band", ctypes.c_int64 * 3), ("order", ctypes.c_void_p),
                ("counter", ctypes.c_void_p), ("threshold_log2", ctypes.c_float), ("tile", ctypes.c_int), ("split", ctypes.c_void_p * 5)]


VARIANTS = {"plan": 0, "proof": 1, "counter": 2, "row_by_row": 3, "general": 4, "seam": 7, "narrow_seam": 8}  # ForwardVariant


class Lists:
    """Runs on the device; `runs` keeps the tensors alive."""

    def __init__(self, begin, count, start, stop, heads):
        self.keep = (begin, count, start, stop)
        self.view = RunList(begin.data_ptr(), count.data_ptr(), start.data_ptr(), stop.data_ptr(), None, 1, heads, 1, heads, 1, 0)


def i32(x):
    return torch.tensor(x, dtype=torch.int32, device="cuda")


def full_list(n, q_tiles):
    return Lists(torch.zeros(q_tiles, dtype=torch.int64, device="cuda"), torch.ones(q_tiles, dtype=torch.int32, device="cuda"), i32([0]), i32([n]), 1)


def causal_lists(n, q_tiles):
    first = torch.arange(q_tiles, device="cuda") * 128
    index = torch.arange(q_tiles, device="cuda")
    whole = Lists(index.long(), (first > 0).int(), torch.zeros_like(first).int(), first.int(), 1)
    masked = Lists(index.long(), torch.ones_like(first).int(), first.int(), (first + 128).int(), 1)
    return whole, masked


def unequal_tiles(n, heads, q_tiles, density, generator):
    """Tiles of 128 a row log-normal (sigma 1) about the density, uniform places; gives the mean tiles a row and the order, longest first."""
    k_tiles = n // 128
    count = torch.randn(heads * q_tiles, device="cuda", generator=generator).exp()
    count = (count * (density * k_tiles / count.mean())).round().clamp(1, k_tiles).int()
    rank = torch.rand(heads * q_tiles, k_tiles, device="cuda", generator=generator).argsort(dim=1).argsort(dim=1)
    start = ((rank < count[:, None]).nonzero()[:, 1] * 128).int()
    begin = count.long().cumsum(0) - count
    return Lists(begin, count, start, start + 128, heads), count.float().mean().item(), count.argsort(descending=True, stable=True).int()


def random_tiles(n, heads, q_tiles, k, tile, generator, is_aligned=True):
    """k tiles a row, uniform, per query head and row, one run a tile. Unaligned: each row's tiles are shifted by 1 to tile - 1 tokens."""
    k_tiles = n // tile - (not is_aligned)
    chosen = [torch.rand(q_tiles, k_tiles, device="cuda", generator=generator).topk(k, dim=1).indices.sort(dim=1).values for _ in range(heads)]
    chosen = torch.stack(chosen)
    shift = 0 if is_aligned else torch.randint(1, tile, (heads, q_tiles, 1), device="cuda", generator=generator)
    start = (chosen * tile + shift).int().flatten()
    begin = torch.arange(heads * q_tiles, device="cuda") * k
    count = torch.full((heads * q_tiles,), k, dtype=torch.int32, device="cuda")
    return Lists(begin, count, start, start + tile, heads), chosen


class Bench:
    def __init__(self, library, rounds):
        self.libraries = [ctypes.CDLL(path) for path in library.split(",")]
        for each in self.libraries:
            each.tilewise_attend_sm90_forward.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
            each.tilewise_attend_sm90_schedule.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
            each.tilewise_attend_sm90_split.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
            for name in ("split_bytes", "forward_input_bytes"): getattr(each, "tilewise_attend_sm90_" + name).restype = ctypes.c_int64
            if each.tilewise_attend_sm90_forward_input_bytes() != ctypes.sizeof(ForwardInput): sys.exit(f"{library}: ForwardInput is laid out otherwise")
        self.rounds, self.rows, self.is_loud = rounds, [], True
        self.has_fa3 = importlib.util.find_spec("fa3_fwd") is not None

    def ours(self, q, k, v, whole=None, masked=None, variant="plan", order="schedule", threshold=8.0, tile=128, is_split=False):
        """is_split: the last round's rows in parts (docs/notes/sm90.md, "Row splitting"); run.shares says how many thread blocks take them, 0: none is.
        order: "schedule" (the library's, made beforehand), "each" (made in every call), "numbered", "dealt" (no counter), or a tensor."""
        number, _, name = variant.rpartition(":")  # "1:plan": of the second library
        library = self.libraries[int(number or 0)]
        out = torch.full_like(q, float("nan"))
        lse = torch.full(q.shape[:3], float("nan"), device="cuda")
        f = ForwardInput(Tensor16(q), Tensor16(k), Tensor16(v), Tensor16(out), lse.data_ptr())
        f.lse_strides[0], f.lse_strides[1] = lse.stride(0), lse.stride(1)
        f.softmax_scale = q.shape[3] ** -0.5
        f.threshold_log2 = threshold
        f.tile = tile
        if whole: f.whole = whole.view
        if masked:
            f.masked = masked.view
            f.band[0] = 1 << 40
        items = q.shape[1] * (-(-q.shape[2] // min(tile, 128)))
        workspace = torch.zeros(2 * items + 2, dtype=torch.int32, device="cuda")
        multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
        space = torch.zeros(library.tilewise_attend_sm90_split_bytes(ctypes.byref(f), multiprocessors) if is_split else 0, dtype=torch.uint8, device="cuda")
        is_given = isinstance(order, torch.Tensor)
        if is_given: f.order = order.data_ptr()
        if is_given or order == "numbered": f.counter = workspace[2 * items:].data_ptr()

        def schedule():
            stream = torch.cuda.current_stream().cuda_stream
            error = library.tilewise_attend_sm90_schedule(ctypes.byref(f), workspace.data_ptr(), stream)
            if not error and is_split: error = library.tilewise_attend_sm90_split(ctypes.byref(f), workspace.data_ptr(), space.data_ptr(), multiprocessors, stream)
            if error: raise RuntimeError(f"schedule: cuda error {error}")

        if not is_given and order in ("schedule", "each"): schedule()

        def run(keep=(q, k, v, out, lse, whole, masked, order, workspace, space)):
            if not is_given and order == "each": schedule()
            error = library.tilewise_attend_sm90_forward(ctypes.byref(f), VARIANTS[name], torch.cuda.current_stream().cuda_stream)
            if error: raise RuntimeError(f"{variant}: cuda error {error}")

        run.out, run.lse, run.shares = out, lse, 0
        if is_split:
            at = f.split[2] - space.data_ptr()
            rows, positions = space[at : at + 8].view(torch.int32).tolist()
            run.shares = positions - rows
        return run

    def cudnn(self, q, k, v, is_causal=False):
        def run():
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                run.out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=True)

        return run

    def fa3(self, q, k, v, is_causal=False):
        from fa3_fwd_interface import flash_attn_func  # fa3-fwd 0.0.3
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))  # its own layout, [B, S, H, D]

        def run():
            out = flash_attn_func(q, k, v, causal=is_causal)
            run.out = (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

        return run

    def peers(self, *qkv, **options):
        kernels = {"cudnn": self.cudnn(*qkv, **options)}
        if self.has_fa3: kernels["fa3"] = self.fa3(*qkv, **options)
        return kernels

    def turns(self, title, flop, kernels, info):
        """kernels: name -> callable. Prints and keeps one row a kernel."""
        event = lambda: torch.cuda.Event(enable_timing=True)
        burst, calls, windows = {}, {}, {name: [] for name in kernels}
        for name, run in kernels.items():
            for _ in range(2): run()
            torch.cuda.synchronize()
            single = []
            while len(single) < (11 if not single or single[0] < 50 else 3):
                time.sleep(0.01)
                a, b = event(), event()
                a.record(); run(); b.record(); b.synchronize()
                single.append(a.elapsed_time(b))
            burst[name] = statistics.median(single)
            calls[name] = max(1, round(100 / burst[name]))
        for turn in range(self.rounds + 1):
            for name, run in list(kernels.items())[:: 1 if turn % 2 else -1]:  # there and back: the card is hotter after a hot neighbour
                a, b = event(), event()
                a.record()
                for _ in range(calls[name]): run()
                b.record(); b.synchronize()
                if turn: windows[name].append(a.elapsed_time(b) / calls[name])
        for name in kernels:
            if name == "matmul 8192": flop = 2.0 * 8192**3
            times = sorted(windows[name])
            median = statistics.median(times)
            row = dict(info, row=title, kernel=name, time_ms=median, p10_ms=times[len(times) // 10], min_ms=times[0], burst_ms=burst[name],
                       tflops=flop / median / 1e9, burst_tflops=flop / burst[name] / 1e9)
            self.rows.append(row)
            if self.is_loud: print(f"{title:28s} {name:22s} {row['tflops']:7.1f} TFLOP/s  {median:8.4f} ms   burst {row['burst_tflops']:7.1f}", flush=True)

    def count_computed(self, start, shares):
        """Rates of the rows from `start` on become those of the tiles they compute, {kernel: share}; the first of them is the own dense one."""
        base = self.rows[start]["tflops"]
        for row in self.rows[start:]:
            share = shares.get(row["kernel"], 1)
            row["density"] = share
            row["dense_equivalent_tflops"] = row["tflops"]
            row["tflops"] *= share
            row["burst_tflops"] *= share
            row["share_of_dense"] = row["tflops"] / base
            print(f"   {row['kernel']:16s} {row['tflops']:6.1f} TFLOP/s of computed tiles, {row['share_of_dense']:.3f} of own dense")

    def write(self, path, commit):
        driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True).stdout.strip()
        result = {"schema": 1, "device": torch.cuda.get_device_name(), "driver": driver, "cuda": torch.version.cuda, "torch": torch.__version__,
                  "cudnn": torch.backends.cudnn.version(), "commit": commit, "date": datetime.date.today().isoformat(),
                  "protocol": f"sustained: turns of 100 ms, {self.rounds} rounds after one soak round, median; burst: median of 11 single calls after a pause (3 of those that take over 50 ms); B=1, inputs N(0,1)",
                  "rows": self.rows}
        with open(path, "w") as out:
            out.write(json.dumps(result, indent=1) + "\n")


def error(a, b):
    a, b = a.double(), b.double()
    return ((a - b).norm() / b.norm()).item()


def check(name, a, b, bound=6e-3):
    e = error(a, b)
    if not e < bound: sys.exit(f"FAIL {name}: error {e:.2e}")


def inputs(n, heads_q=32, heads_kv=8, head_dim=128, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    make = lambda h: torch.randn(1, h, n, head_dim, device="cuda", generator=generator).bfloat16()
    return make(heads_q), make(heads_kv), make(heads_kv)


def dense(bench, n, variants, head_dim=128, heads=(32, 8), is_alone=False):
    q, k, v = inputs(n, *heads, head_dim)
    whole = full_list(n, n // 128)
    kernels = {name: bench.ours(q, k, v, whole, variant=name) for name in variants}
    kernels |= bench.peers(q, k, v)
    a, b = torch.randn(2, 8192, 8192, device="cuda").bfloat16()
    for run in kernels.values(): run()
    for name in variants: check(name, kernels[name].out[:, :, :1024], kernels["cudnn"].out[:, :, :1024])
    kernels["matmul 8192"] = lambda: a @ b
    if is_alone: kernels = {name: kernels[name] for name in variants}
    bench.turns(f"{'proof' if is_alone else 'dense'} D={head_dim} {n // 1024}K", 4.0 * n * n * head_dim * heads[0], kernels,
                dict(seqlen=n, head_dim=head_dim, heads_q=heads[0], heads_kv=heads[1], density=1, mask="full"))


def causal(bench, n, head_dim=128, heads=(32, 8)):
    q, k, v = inputs(n, *heads, head_dim)
    tiles = n // 128
    whole, masked = causal_lists(n, tiles)
    kernels = {"plan": bench.ours(q, k, v, whole, masked), "plan numbered": bench.ours(q, k, v, whole, masked, order="numbered"),
               **bench.peers(q, k, v, is_causal=True)}
    for run in kernels.values(): run()
    for name in kernels: check(name, kernels[name].out, kernels["cudnn"].out)
    bench.turns(f"causal D={head_dim} {n // 1024}K", 2.0 * n * n * head_dim * heads[0], kernels,
                dict(seqlen=n, head_dim=head_dim, heads_q=heads[0], heads_kv=heads[1], density=1, mask="causal"))


def sparse(bench, n, densities, tile=128, tile_q=128, head_dim=128, heads=(32, 8)):
    """Random lists of `tile` keys for rows of `tile_q` queries."""
    q, k, v = inputs(n, *heads, head_dim)
    generator = torch.Generator("cuda").manual_seed(7)
    rows = n // tile_q
    kernels, flops = {"dense": bench.ours(q, k, v, full_list(n, n // 128))}, {}

    def add(name, whole, share, **options):
        kernels[name] = bench.ours(q, k, v, whole, tile=tile_q, **options)
        flops[name] = share

    for density in densities:
        count = max(1, round(density * (n // tile)))
        whole, chosen = random_tiles(n, heads[0], rows, count, tile, generator)
        run = bench.ours(q, k, v, whole, tile=tile_q)
        run()
        for h, t in ((0, 0), (heads[0] - 1, rows - 1)):  # two rows against f64
            keys = (chosen[h, t][:, None] * tile + torch.arange(tile, device="cuda")).flatten()
            at = slice(t * tile_q, t * tile_q + tile_q)
            kv = h * heads[1] // heads[0]
            p = (q[0, h, at].double() @ k[0, kv, keys].double().T * head_dim ** -0.5).softmax(1)
            check(f"sparse {density}", run.out[0, h, at], p @ v[0, kv, keys].double())
        name, share = f"density {count * tile / n:.3f}", count * tile / n
        kernels[name], flops[name] = run, share
        if tile != 128:
            continue
        if density in (.25, .10):
            halves, _ = random_tiles(n, heads[0], rows, 2 * count, 64, generator)
            add(name + " 64 keys", halves, share)
        if density == .10:
            unaligned, _ = random_tiles(n, heads[0], rows, count, tile, generator, False)
            add(name + " unaligned", unaligned, share)
            add(name + " each", whole, share, order="each")
            unequal, mean, _ = unequal_tiles(n, heads[0], rows, density, generator)
            add("unequal rows", unequal, mean * tile / n)
    full = 4.0 * n * n * head_dim * heads[0]
    kernels |= bench.peers(q, k, v)
    start = len(bench.rows)
    bench.turns(f"sparse {tile_q}x{tile} D={head_dim} {n // 1024}K", full, kernels, dict(seqlen=n, head_dim=head_dim, heads_q=heads[0], heads_kv=heads[1], tile_q=tile_q, tile_k=tile, mask="full"))
    bench.count_computed(start, flops)


GRAPH_CALLS = 20


def in_graph(run):
    """GRAPH_CALLS calls of it in a CUDA graph."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(GRAPH_CALLS): run()
    return graph.replay


def host_time(run):
    """Microseconds that a call keeps the host, median of 50 batches of 100 that are waited for between batches alone."""
    times = []
    for _ in range(51):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(100): run()
        times.append((time.perf_counter() - start) * 1e4)
    return statistics.median(times[1:])


def small(bench, n):
    """A call of 256 to 2,048 tokens in a CUDA graph, dense and at .25, by rows of 128 and of 64; and what one keeps the host from Python."""
    q, k, v = inputs(n)
    generator = torch.Generator("cuda").manual_seed(7)
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    for density in (1, .25):
        kernels, shares = {}, {}
        for tile in (128, 64):
            rows = n // tile
            count = max(1, round(density * rows))
            whole = full_list(n, rows) if density == 1 else random_tiles(n, 32, rows, count, tile, generator)[0]
            # As attend_forward does it, and what it does not: "numbered" needs its counter set to 0, which is not in the figure.
            has_order = 32 * rows > 2 * multiprocessors * (2 if tile == 64 else 1)
            orders = {f"tile {tile}": "each" if has_order else "dealt", f"tile {tile} dealt": "dealt", f"tile {tile} numbered": "numbered"}
            for name, order in orders.items():
                kernels[name], shares[name] = bench.ours(q, k, v, whole, tile=tile, order=order), count / rows
        if density == 1:
            kernels |= bench.peers(q, k, v)
            for run in kernels.values(): run()
            for name in shares: check(f"small {name}", kernels[name].out, kernels["cudnn"].out)
        first = len(bench.rows)
        bench.turns(f"small {n} {density}", 4.0 * n * n * 128 * 32 * GRAPH_CALLS, {name: in_graph(run) for name, run in kernels.items()},
                    dict(seqlen=n, head_dim=128, heads_q=32, heads_kv=8, density=density, mask="full"))
        for row in bench.rows[first:]:
            for key in ("time_ms", "p10_ms", "min_ms", "burst_ms"): row[key] /= GRAPH_CALLS
            row["tflops"] *= shares.get(row["kernel"], 1)
            row["burst_tflops"] *= shares.get(row["kernel"], 1)
    calls = {"C door": bench.ours(q, k, v, full_list(n, n // 128), order="dealt"), "cudnn": bench.cudnn(q, k, v)}
    if importlib.util.find_spec("tilewise") is not None:
        import tilewise
        plan = tilewise.plan(q.cpu(), k.cpu(), "dense", tile=128).to("cuda")
        calls["tilewise"] = lambda: tilewise.attend(q, k, v, plan)
    for name, run in calls.items():
        us = host_time(run)
        bench.rows.append(dict(row=f"host time {n}", kernel=name, time_ms=us / 1e3, seqlen=n))
        print(f"host time {n:19d} {name:22s} {us:7.2f} us a call", flush=True)


def split(bench, n, head_dim=128):
    """Rows of the last round in parts against whole rows, dense and sparse, 32 heads and one."""
    for heads in ((32, 8), (1, 1)):
        q, k, v = inputs(n, *heads, head_dim)
        generator = torch.Generator("cuda").manual_seed(7)
        for density in (1, .5, .25, .10):
            count = max(1, round(density * (n // 128)))
            whole = full_list(n, n // 128) if density == 1 else random_tiles(n, heads[0], n // 128, count, 128, generator)[0]
            kernels = {"plan": bench.ours(q, k, v, whole), "split": bench.ours(q, k, v, whole, is_split=True)}
            for run in kernels.values(): run()
            check(f"split {density}", kernels["split"].out, kernels["plan"].out)
            if not torch.allclose(kernels["split"].lse, kernels["plan"].lse, atol=1e-4): sys.exit(f"FAIL split {density}: lse")
            shares = kernels["split"].shares
            bench.turns(f"split D={head_dim} {n // 1024}K {heads[0]} heads {density}", 4.0 * n * n * head_dim * heads[0] * count / (n // 128), kernels,
                        dict(seqlen=n, head_dim=head_dim, heads_q=heads[0], heads_kv=heads[1], density=density, mask="full", shares=shares))


def seam(bench, n, tile):
    """What stands between two rows in two orders, the same bits: dense, causal, and lists of `tile` keys for rows of `tile` queries."""
    q, k, v = inputs(n)
    generator = torch.Generator("cuda").manual_seed(7)
    other = "seam" if tile == 128 else "narrow_seam"
    lists = {} if tile == 64 else {"dense": ((full_list(n, n // 128), None), 1), "causal": (causal_lists(n, n // 128), .5)}
    for density in (.5, .25, .10, .05):
        count = max(1, round(density * (n // tile)))
        lists[f"density {count * tile / n:.3f}"] = ((random_tiles(n, 32, n // tile, count, tile, generator)[0], None), count * tile / n)
    for name, ((whole, masked), share) in lists.items():
        kernels = {variant: bench.ours(q, k, v, whole, masked, variant=variant, tile=tile) for variant in ("plan", other)}
        for run in kernels.values(): run()
        if not torch.equal(kernels["plan"].out, kernels[other].out): sys.exit(f"FAIL {other}, {name}: other bits")
        bench.turns(f"seam {tile} D=128 {n // 1024}K {name}", 4.0 * n * n * 128 * 32 * share, kernels,
                    dict(seqlen=n, head_dim=128, heads_q=32, heads_kv=8, density=share, tile_q=tile, tile_k=tile, mask="causal" if masked else "full"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("--rows", default="dense,causal,sparse")
    parser.add_argument("--lengths", default="8192,32768")
    parser.add_argument("--variants", default="plan")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--commit", default="")
    parser.add_argument("--out")
    options = parser.parse_args()
    bench = Bench(options.library, options.rounds)
    wanted = options.rows.split(",")
    for n in map(int, options.lengths.split(",")):
        if "small" in wanted: small(bench, n)
        if "dense" in wanted: dense(bench, n, options.variants.split(","))
        if "proof" in wanted: dense(bench, n, ["proof", "counter", "plan", "row_by_row"], is_alone=True)
        if "causal" in wanted: causal(bench, n)
        densities = (.25, .10, .05) if n > 65536 else (.5, .25, .10, .05)
        if "sparse" in wanted: sparse(bench, n, densities)
        if "narrow" in wanted: sparse(bench, n, densities, tile=64, tile_q=64)
        if "d64" in wanted: dense(bench, n, ["plan"], head_dim=64)
        if "d256" in wanted: dense(bench, n, ["plan"], head_dim=256, heads=(16, 4))
        if "split" in wanted: split(bench, n)
        if "seam" in wanted: seam(bench, n, 128)
        if "narrow_seam" in wanted: seam(bench, n, 64)
        if "general" in wanted: dense(bench, n, ["plan", "general"])
    if options.out: bench.write(options.out, options.commit)


if __name__ == "__main__":
    main()
