# SPDX-License-Identifier: Apache-2.0
"""Bytes a second of the Hopper decode kernels beside plain reading and cuDNN, taking turns in one process.

Protocol: each kernel runs for windows of 60 ms in turn, one round to soak and `--rounds` measured, median of the rounds. Rows in microseconds replay a
CUDA graph of calls that go round caches of together 256 MB or more, so that none finds its keys in L2. `share` is of what reading 2 GiB reaches in the same
turns. Output is checked once against cuDNN or f64 before timing.
usage: decode_bench.py LIBRARY [--rows dense,short,paged,listed,quantised] [--rounds 5] [--out FILE.json] [--commit ID] [--variants]
--variants: kernels that are not switched on yet (DecodeVariant of attend/sm90/decode_args.h) take turns with those that are, and a table of all of them
comes last.
"""
import argparse, ctypes, datetime, json, statistics, subprocess, sys
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from forward_bench import RunList, check, i32

P, I, L, F = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
HEADS_Q, HEADS_KV, D, PAGE = 32, 8, 128, 64


class Scale(ctypes.Structure):
    _fields_ = [("data", P), ("stride_entry", L), ("stride_head", L), ("stride_group", L)]


class Store(ctypes.Structure):
    _fields_ = [("data", P), ("storage", I), ("entries", L), ("heads", L), ("rows", L), ("channels", L), ("stride_entry", L), ("stride_head", L),
                ("stride_row", L), ("scale", Scale), ("zero", Scale), ("group_tokens", I), ("table", P), ("table_stride_batch", L),
                ("table_stride_head", L)]


class DecodeInput(ctypes.Structure):
    _fields_ = [("q", P), ("out", P), ("lse", P), ("q_stride", L * 3), ("out_stride", L * 3), ("lse_stride", L * 3), ("is_bf16", I), ("batch", I),
                ("heads_q", I), ("heads_kv", I), ("seqlen_q", I), ("capacity", I), ("page", I), ("k", Store), ("v", Store), ("lengths", P),
                ("masked", RunList), ("whole", RunList), ("picked", RunList), ("is_dense", I), ("edge", P), ("num_rows", I), ("bands", L * 48),
                ("head_class", ctypes.c_uint8 * 256), ("sink_logit", P), ("softmax_scale", F), ("softcap", F), ("workspace", P), ("dependent", I), ("variant", I)]


class Library:
    def __init__(self, path):
        self.c = ctypes.CDLL(path)
        for name in ("tilewise_attend_sm90_decode_workspace", "tilewise_attend_sm90_decode_input_bytes"): getattr(self.c, name).restype = L
        self.c.tilewise_attend_sm90_decode.argtypes = [P, P]
        self.c.tilewise_attend_sm90_decode_workspace.argtypes = [P]
        self.c.tilewise_read.argtypes = [P, L, P, P]
        bytes_there = self.c.tilewise_attend_sm90_decode_input_bytes()
        if bytes_there != ctypes.sizeof(DecodeInput): sys.exit(f"DecodeInput has {bytes_there} bytes, here {ctypes.sizeof(DecodeInput)}")

    def ours(self, q, k, v, table=None, runs=None, scales=None, dependent=3, variant=0):
        """q [B, Hq, Sq, D]; k and v [entries, heads, rows, D or D/2]; table [B, Hkv, pages] i32; runs: RunList holder, else every key; scales: of k and v,
        [entries, 1, groups]."""
        batch, heads_q, seqlen_q, _ = q.shape
        out = torch.full_like(q, float("nan"))
        f = DecodeInput(q=q.data_ptr(), out=out.data_ptr(), is_bf16=1, batch=batch, heads_q=heads_q, heads_kv=HEADS_KV, seqlen_q=seqlen_q)
        for axis in range(3): f.q_stride[axis], f.out_stride[axis] = q.stride(axis), out.stride(axis)
        for name, data, scale in (("k", k, scales and scales[0]), ("v", v, scales and scales[1])):
            store = getattr(f, name)
            size = data.element_size()
            store.data, store.storage = data.data_ptr(), {torch.bfloat16: 0, torch.int8: 1, torch.uint8: 2}[data.dtype]
            store.entries, store.heads, store.rows = data.shape[:3]
            store.channels = data.shape[3] * (2 if data.dtype == torch.uint8 else 1)
            store.stride_entry, store.stride_head, store.stride_row = (data.stride(i) * size for i in range(3))
            store.group_tokens = 1
            if scale is not None:
                store.group_tokens = data.shape[2] // scale.shape[2]
                store.scale.data, store.scale.stride_entry, store.scale.stride_head = scale.data_ptr(), scale.stride(0), scale.stride(1)
                if scale.shape[2] > 1: store.scale.stride_group = scale.stride(2)
            if table is not None: store.table, store.table_stride_batch, store.table_stride_head = table.data_ptr(), table.stride(0), table.stride(1)
        f.capacity, f.page = (k.shape[2], 0) if table is None else (table.shape[2] * k.shape[2], k.shape[2])
        f.bands[0], f.bands[1] = 1 << 40, 1 << 40
        f.num_rows = 1
        if runs is None: f.is_dense = 1
        else: f.whole = runs.view
        f.softmax_scale = D ** -0.5
        f.dependent, f.variant = dependent, variant
        workspace = torch.empty(self.c.tilewise_attend_sm90_decode_workspace(ctypes.byref(f)), dtype=torch.uint8, device="cuda")
        f.workspace = workspace.data_ptr()

        def run(keep=(q, k, v, out, table, runs, scales, workspace)):
            error = self.c.tilewise_attend_sm90_decode(ctypes.byref(f), torch.cuda.current_stream().cuda_stream)
            if error: raise RuntimeError(f"decode: cuda error {error}")

        run.out = out
        return run

    def read(self, x):
        sink = torch.zeros(1, dtype=torch.int32, device="cuda")

        def run(keep=(x, sink)):
            self.c.tilewise_read(x.data_ptr(), x.numel() * x.element_size(), sink.data_ptr(), torch.cuda.current_stream().cuda_stream)

        return run


class Runs:
    """start, stop [B, Hkv, n]: a list per sequence and K/V head."""

    def __init__(self, start, stop, grain):
        batch, heads, n = start.shape
        begin = torch.arange(batch * heads, device="cuda") * n
        count = torch.full((batch * heads,), n, dtype=torch.int32, device="cuda")
        self.keep = (begin, count, start.int().contiguous(), stop.int().contiguous())
        self.view = RunList(begin.data_ptr(), count.data_ptr(), self.keep[2].data_ptr(), self.keep[3].data_ptr(), None, batch, heads, batch, heads, grain, 0)


def cudnn(q, k, v):
    def run():
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            run.out = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    return run


def graph_of(runs):
    """One callable that replays them all."""
    for run in runs: run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs: run()

    def replay(keep=runs): graph.replay()

    replay.calls = len(runs)
    return replay


VARIANTS = {"tilewise": {}, "light": {"variant": 1}, "light, early merge": {"variant": 3}, "light, clusters": {"variant": 5}, "light in order": {"variant": 1, "dependent": 0}}


class Bench:
    def __init__(self, library, rounds, has_variants=False):
        self.library, self.rounds, self.rows, self.dependent = Library(library), rounds, [], []
        self.variants = VARIANTS if has_variants else {"tilewise": {}}
        generator = torch.Generator("cuda").manual_seed(1)
        self.memory = torch.randn(2, 16, HEADS_KV, 1 << 17, D, device="cuda", generator=generator, dtype=torch.bfloat16)  # 8 GiB
        self.probe = self.library.read(self.memory[0, :8].contiguous().view(-1)[: 1 << 30])  # 2 GiB
        self.generator = generator

    def each(self, make):
        """make(**what a variant asks for) of every variant."""
        return {name: make(**asked) for name, asked in self.variants.items()}

    def table(self):
        """Rows by variants: microseconds and the share of the read bandwidth."""
        found = {(row["row"], row["kernel"]): row for row in self.rows}
        print(f"{'':28s}" + "".join(f"{name:>22s}" for name in VARIANTS))
        for title in dict.fromkeys(row["row"] for row in self.rows):
            cells = [found.get((title, name)) for name in VARIANTS]
            print(f"{title:28s}" + "".join(f"{1e3 * c['time_ms']:12.2f} us {c['share']:.3f} " if c else " " * 22 for c in cells))

    def q(self, batch):
        return torch.randn(batch, HEADS_Q, 1, D, device="cuda", generator=self.generator, dtype=torch.bfloat16)

    def turns(self, title, bytes_read, kernels, info):
        kernels = dict(kernels, **{"read 2 GiB": self.probe})
        event = lambda: torch.cuda.Event(enable_timing=True)
        calls, windows = {}, {name: [] for name in kernels}

        def window(name):
            a, b = event(), event()
            a.record()
            for _ in range(calls[name]): kernels[name]()
            b.record(); b.synchronize()
            return a.elapsed_time(b) / calls[name] / getattr(kernels[name], "calls", 1)

        for name in kernels:
            calls[name] = 3
            window(name)
            calls[name] = max(1, min(300, round(60 / (window(name) * getattr(kernels[name], "calls", 1)))))
        for turn in range(self.rounds + 1):
            for name in list(kernels)[:: 1 if turn % 2 else -1]:
                time_ms = window(name)
                if turn: windows[name].append(time_ms)
        peak = (2 << 30) / statistics.median(windows["read 2 GiB"])
        for name in kernels:
            times = sorted(windows[name])
            median = statistics.median(times)
            amount = 2 << 30 if name == "read 2 GiB" else bytes_read
            row = dict(info, row=title, kernel=name, time_ms=median, p10_ms=times[len(times) // 10], min_ms=times[0], bytes=amount,
                       tb_per_s=amount / median / 1e9, share=amount / median / peak)
            self.rows.append(row)
            print(f"{title:28s} {name:22s} {1e3 * median:9.2f} us  {row['tb_per_s']:6.3f} TB/s  share {row['share']:.3f}", flush=True)

    def dense(self, batch, n):
        k, v = self.memory[0, :batch, :, :n], self.memory[1, :batch, :, :n]
        q = self.q(batch)
        kernels = {**self.each(lambda **asked: self.library.ours(q, k, v, **asked)), "tilewise in order": self.library.ours(q, k, v, dependent=0),
                   "cudnn": cudnn(q, k, v)}
        for run in kernels.values(): run()
        for name in list(kernels)[:-1]: check(f"dense {batch} {n}", kernels[name].out, kernels["cudnn"].out)
        self.turns(f"decode B={batch} {n >> 10}K", 4 * batch * HEADS_KV * n * D, kernels, dict(batch=batch, seqlen=n))

    def short(self, n):
        sets = [(self.q(1), self.memory[0, b : b + 1, :, at : at + n], self.memory[1, b : b + 1, :, at : at + n]) for b in range(8) for at in (0, 1 << 16)]
        ours = self.each(lambda **asked: [self.library.ours(*s, **asked) for s in sets])
        in_order = [self.library.ours(*s, dependent=0) for s in sets]
        peers = [cudnn(*s) for s in sets]
        for name, runs in ours.items():
            for a, b in zip(runs, peers): a(); b(); check(f"short {n} {name}", a.out, b.out)
        self.turns(f"decode B=1 {n >> 10}K", 4 * HEADS_KV * n * D, {**{name: graph_of(runs) for name, runs in ours.items()}, "tilewise in order": graph_of(in_order), "cudnn": graph_of(peers),
                    **{f"dependent {d}": graph_of([self.library.ours(*s, dependent=d) for s in sets]) for d in self.dependent}},
                   dict(batch=1, seqlen=n, is_graph=True))

    def pages(self, batch, n):
        """The memory as pages of single heads, and a table that scatters them."""
        pages = n // PAGE
        pool = self.memory.view(2, -1, 1, PAGE, D)
        count = pool.shape[1]
        table = torch.randperm(count, device="cuda", generator=self.generator)[: batch * HEADS_KV * pages].view(batch, HEADS_KV, pages).int()
        return pool[0], pool[1], table

    def check_row(self, title, run, q, k, v, table, tokens, b, h):
        """One K/V head's rows against f64. tokens: what it reads; None: all."""
        keys, values = (x[table[b, h].long(), 0].reshape(-1, D).double() for x in (k, v))
        if tokens is not None: keys, values = keys[tokens], values[tokens]
        group = HEADS_Q // HEADS_KV
        p = (q[b, h * group : (h + 1) * group, 0].double() @ keys.T * D ** -0.5).softmax(1)
        check(title, run.out[b, h * group : (h + 1) * group, 0], p @ values)

    def paged(self, batch, n):
        k, v, table = self.pages(batch, n)
        q = self.q(batch)
        start = (torch.arange(n // PAGE, device="cuda") * PAGE).expand(batch, HEADS_KV, -1)
        lists = Runs(start, start + PAGE, PAGE)
        kernels = {**self.each(lambda **asked: self.library.ours(q, k, v, table, **asked)),
                   **{f"{name}, a run a page": run for name, run in self.each(lambda **asked: self.library.ours(q, k, v, table, lists, **asked)).items()}}
        for name, run in kernels.items():
            run()
            self.check_row(f"paged {name}", run, q, k, v, table, None, batch - 1, 3)
        self.turns(f"paged B={batch} {n >> 10}K", 4 * batch * HEADS_KV * n * D, kernels, dict(batch=batch, seqlen=n, page=PAGE))

    def listed(self, batch, n, kept):
        k, v, table = self.pages(batch, n)

        def make():
            q = self.q(batch)
            chosen = torch.rand(batch, HEADS_KV, n // PAGE, device="cuda", generator=self.generator).topk(kept // PAGE, dim=2).indices.sort(dim=2).values
            lists = Runs(chosen * PAGE, chosen * PAGE + PAGE, PAGE)
            return q, self.each(lambda **asked: self.library.ours(q, k, v, table, lists, **asked)), chosen

        sets = [make() for _ in range(20 if batch == 1 else 2)]  # B=1: 16 MB each
        q, runs, chosen = sets[0]
        tokens = (chosen[batch - 1, 5][:, None] * PAGE + torch.arange(PAGE, device="cuda")).flatten()
        for name, run in runs.items():
            run()
            self.check_row(f"listed {name}", run, q, k, v, table, tokens, batch - 1, 5)
        self.turns(f"listed {kept} of {n >> 10}K B={batch}", 4 * batch * HEADS_KV * kept * D, {name: graph_of([s[1][name] for s in sets]) for name in self.variants},
                   dict(batch=batch, seqlen=n, page=PAGE, kept=kept, is_graph=True))

    def quantised(self, n, bits):
        """Codes and scales (one a page and head) are drawn, so that the answer is known; pages of 64 or none."""
        codes = [torch.randint(-8 if bits == 4 else -127, 8 if bits == 4 else 128, (1, HEADS_KV, n, D), device="cuda", generator=self.generator, dtype=torch.int8)
                 for _ in range(2)]
        scales = [(torch.rand(1, HEADS_KV, n // PAGE, device="cuda", generator=self.generator) + 0.5) * (2 / (7 if bits == 4 else 127)) for _ in range(2)]
        values = [c.double() * s.double().repeat_interleave(PAGE, 2)[..., None] for c, s in zip(codes, scales)]
        stored = codes if bits == 8 else [((c[..., 0::2] + 8) | ((c[..., 1::2] + 8) << 4)).view(torch.uint8) for c in codes]
        q = self.q(1)
        group = HEADS_Q // HEADS_KV
        flat = self.library.ours(q, *stored, scales=scales)
        pages = HEADS_KV * n // PAGE
        place = torch.randperm(pages, device="cuda", generator=self.generator)
        table = place.view(1, HEADS_KV, -1).int()
        scatter = lambda x: torch.empty_like(x).index_copy_(0, place, x)
        pools = [scatter(c.view(pages, 1, PAGE, -1)) for c in stored]
        page_scales = [scatter(s.reshape(pages, 1, 1)) for s in scales]
        kernels = {**self.each(lambda **asked: self.library.ours(q, *pools, table, scales=page_scales, **asked)), "tilewise contiguous": flat}
        for name, run in kernels.items():
            run()
            for h in (0, 7):
                p = (q[0, h * group : (h + 1) * group, 0].double() @ values[0][0, h].T * D ** -0.5).softmax(1)
                check(f"int{bits} {name}", run.out[0, h * group : (h + 1) * group, 0], p @ values[1][0, h])
        del values, codes
        self.turns(f"int{bits} B=1 {n >> 10}K", 2 * HEADS_KV * n * (D * bits // 8) + 8 * pages, kernels, dict(batch=1, seqlen=n, page=PAGE, bits=bits))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("--rows", default="dense,short,paged,listed,quantised")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--commit", default="")
    parser.add_argument("--out")
    parser.add_argument("--variants", action="store_true")
    options = parser.parse_args()
    bench = Bench(options.library, options.rounds, options.variants)
    wanted = options.rows.split(",")
    if "dense" in wanted:
        for batch, n in ((1, 1 << 17), (16, 1 << 13), (16, 1 << 17)): bench.dense(batch, n)
    if "short" in wanted:
        for n in (1 << 13, 1 << 15): bench.short(n)
    if "paged" in wanted:
        for batch in (1, 16): bench.paged(batch, 1 << 17)
    if "listed" in wanted:
        for batch in (1, 16): bench.listed(batch, 1 << 17, 4096)
    if "quantised" in wanted:
        for bits in (8, 4): bench.quantised(1 << 17, bits)
    if options.variants: bench.table()
    if options.out:
        driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True).stdout.strip()
        result = {"schema": 1, "device": torch.cuda.get_device_name(), "driver": driver, "cuda": torch.version.cuda, "torch": torch.__version__,
                  "cudnn": torch.backends.cudnn.version(), "commit": options.commit, "date": datetime.date.today().isoformat(),
                  "protocol": f"decode: turns of 60 ms, {options.rounds} rounds after one soak round, median; 32 query heads on 8, D=128, bf16 queries, N(0,1)",
                  "rows": bench.rows}
        with open(options.out, "w") as out: out.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
