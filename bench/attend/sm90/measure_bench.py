# SPDX-License-Identifier: Apache-2.0
"""Sustained TFLOP/s of the largest logit of every 128x128 tile on Hopper (one product counted) beside the own dense forward (two), taking turns in one
process. Protocol: forward_bench.py. Cells are checked once against f64.
usage: measure_bench.py LIBRARY [--rows dense,sparse] [--lengths 8192,32768] [--rounds 7] [--out FILE.json] [--commit ID]
"""
import argparse, ctypes, pathlib, sys
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from forward_bench import Bench, RunList, Tensor16, causal_lists, full_list, inputs, random_tiles

TILE = 128


class MeasureOutput(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("batch", ctypes.c_int), ("heads", ctypes.c_int), ("tiles_q", ctypes.c_int), ("tiles_k", ctypes.c_int),
                ("stride", ctypes.c_int64 * 4)]


class MeasureInput(ctypes.Structure):
    _fields_ = [("q", Tensor16), ("k", Tensor16), ("max", MeasureOutput), ("masked", RunList), ("whole", RunList), ("band", ctypes.c_int64 * 3),
                ("tile", ctypes.c_int), ("tile_q", ctypes.c_int), ("tile_k", ctypes.c_int), ("softmax_scale", ctypes.c_float), ("softcap", ctypes.c_float)]


class MeasureBench(Bench):
    def __init__(self, library, rounds):
        super().__init__(library, rounds)
        for each in self.libraries:
            each.tilewise_attend_sm90_measure.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
            each.tilewise_attend_sm90_measure_input_bytes.restype = ctypes.c_int64
            if each.tilewise_attend_sm90_measure_input_bytes() != ctypes.sizeof(MeasureInput): sys.exit(f"{library}: MeasureInput is laid out otherwise")

    def maxima(self, q, k, whole=None, masked=None):
        library, tiles = self.libraries[0], q.shape[2] // TILE
        out = torch.full((1, q.shape[1], tiles, tiles), float("nan"), device="cuda")
        f = MeasureInput(q=Tensor16(q), k=Tensor16(k), max=MeasureOutput(out.data_ptr(), *out.shape), tile=TILE, tile_q=TILE, tile_k=TILE,
                         softmax_scale=q.shape[3] ** -0.5)
        for axis in range(4): f.max.stride[axis] = out.stride(axis)
        if whole: f.whole = whole.view
        if masked:
            f.masked = masked.view
            f.band[0] = 1 << 40

        def run(keep=(q, k, out, whole, masked)):
            error = library.tilewise_attend_sm90_measure(ctypes.byref(f), torch.cuda.current_stream().cuda_stream)
            if error: raise RuntimeError(f"measure: cuda error {error}")

        run.out = out
        return run

    def check_row(self, title, run, q, k, head, row, is_causal=False, tiles=None):
        """One row of tiles against f64; tiles: those that it reads, None: all."""
        scores = q[0, head, row * TILE : (row + 1) * TILE].double() @ k[0, head * k.shape[1] // q.shape[1]].double().T * q.shape[3] ** -0.5
        if is_causal: scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(row * TILE + 1), -torch.inf)
        want = scores.unflatten(1, (-1, TILE)).amax(dim=(0, 2))
        if tiles is not None:
            kept = torch.full_like(want, -torch.inf)
            kept[tiles] = want[tiles]
            want = kept
        got = run.out[0, head, row].double()
        if not torch.equal(got.isinf(), want.isinf()) or not torch.allclose(got, want, atol=1e-3, rtol=1e-4): sys.exit(f"FAIL {title}: {got} instead of {want}")

    def rated(self, title, flop, kernels, info):
        start = len(self.rows)
        self.turns(title, flop, kernels, info)
        for row in self.rows[start:]:
            if not row["kernel"].startswith("max of tiles"): continue
            for rate in ("tflops", "burst_tflops"): row[rate] /= 2  # one product of the two that `flop` counts
            print(f"   {row['kernel']:20s} {row['tflops']:6.1f} TFLOP/s of one product, {row['tflops'] / self.rows[start]['tflops']:.3f} of {next(iter(kernels))}")

    def dense(self, n, head_dim=128, heads=(32, 8)):
        q, k, v = inputs(n, *heads, head_dim)
        info = dict(seqlen=n, head_dim=head_dim, heads_q=heads[0], heads_kv=heads[1], tile_q=TILE, tile_k=TILE)
        for mask in ("full", "causal"):
            whole, masked = (full_list(n, n // TILE), None) if mask == "full" else causal_lists(n, n // TILE)
            run = self.maxima(q, k, whole, masked)
            run()
            for head, row in ((0, 0), (heads[0] - 1, n // TILE - 1), (5, 3)): self.check_row(f"measure {mask}", run, q, k, head, row, mask == "causal")
            self.rated(f"measure D={head_dim} {n // 1024}K" + (" causal" if mask == "causal" else ""), (4.0 if mask == "full" else 2.0) * n * n * head_dim * heads[0],
                       {"dense": self.ours(q, k, v, whole, masked), "max of tiles": run}, dict(info, mask=mask))

    def sparse(self, n, head_dim=128, heads=(32, 8)):
        q, k, v = inputs(n, *heads, head_dim)
        generator = torch.Generator("cuda").manual_seed(7)
        for density in (.25, .05):
            count = max(1, round(density * (n // TILE)))
            whole, chosen = random_tiles(n, heads[0], n // TILE, count, TILE, generator)
            run = self.maxima(q, k, whole)
            run()
            self.check_row("measure sparse", run, q, k, 7, 2, tiles=chosen[7, 2])
            self.rated(f"measure D={head_dim} {n // 1024}K at {density}", 4.0 * n * count * TILE * head_dim * heads[0],
                       {"attention": self.ours(q, k, v, whole), "max of tiles": run},
                       dict(seqlen=n, head_dim=head_dim, heads_q=heads[0], heads_kv=heads[1], tile_q=TILE, tile_k=TILE, mask="full", density=density))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("--rows", default="dense,sparse")
    parser.add_argument("--lengths", default="8192,32768")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--commit", default="")
    parser.add_argument("--out")
    options = parser.parse_args()
    bench = MeasureBench(options.library, options.rounds)
    for n in map(int, options.lengths.split(",")):
        if "dense" in options.rows: bench.dense(n)
        if "sparse" in options.rows: bench.sparse(n)
    if options.out: bench.write(options.out, options.commit)


if __name__ == "__main__":
    main()
