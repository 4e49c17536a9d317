# SPDX-License-Identifier: Apache-2.0
"""Sustained TFLOP/s of the forward for any GPU (attend/cuda) beside attend/sm90 and cuDNN: dense, and lists of 128x128 tiles at .25 and .10.

Protocol and rows: bench/attend/sm90/forward_bench.py, whose inputs, lists and turns these are. Output is checked against cuDNN or sm90 before timing.
usage: forward_bench.py LIBRARY [--lengths 8192] [--rounds 7] [--out FILE.json] [--commit ID]
"""
import argparse, ctypes, pathlib, sys
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "sm90"))
import forward_bench as sm90


def ours(bench, q, k, v, whole):
    library = bench.libraries[0]
    library.tilewise_attend_cuda_forward.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    out = torch.full_like(q, float("nan"))
    f = sm90.ForwardInput(sm90.Tensor16(q), sm90.Tensor16(k), sm90.Tensor16(v), sm90.Tensor16(out))
    f.softmax_scale, f.tile, f.whole = q.shape[3] ** -0.5, 128, whole.view

    def run(keep=(q, k, v, out, whole)):
        if library.tilewise_attend_cuda_forward(ctypes.byref(f), torch.cuda.current_stream().cuda_stream): raise RuntimeError("attend_cuda_forward")

    run.out = out
    return run


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("--rows", default="dense,sparse")
    parser.add_argument("--lengths", default="8192")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--commit", default="")
    parser.add_argument("--out")
    options = parser.parse_args()
    bench = sm90.Bench(options.library, options.rounds)
    heads_q, heads_kv, head_dim = 32, 8, 128
    for n in map(int, options.lengths.split(",")):
        q, k, v = sm90.inputs(n, heads_q, heads_kv, head_dim)
        whole = sm90.full_list(n, n // 128)
        kernels, shares = {"cuda": ours(bench, q, k, v, whole), "sm90": bench.ours(q, k, v, whole), "cudnn": bench.cudnn(q, k, v)}, {}
        for run in kernels.values(): run()
        sm90.check("dense", kernels["cuda"].out, kernels["cudnn"].out)
        generator = torch.Generator("cuda").manual_seed(7)
        for density in (.25, .10) if "sparse" in options.rows else ():
            count = max(1, round(density * (n // 128)))
            lists, _ = sm90.random_tiles(n, heads_q, n // 128, count, 128, generator)
            pair = {f"cuda density {density:.2f}": ours(bench, q, k, v, lists), f"sm90 density {density:.2f}": bench.ours(q, k, v, lists)}
            for run in pair.values(): run()
            sm90.check(f"density {density}", *(run.out for run in pair.values()))
            kernels |= pair
            shares |= {name: count * 128 / n for name in pair}
        start = len(bench.rows)
        bench.turns(f"cuda D={head_dim} {n // 1024}K", 4.0 * n * n * head_dim * heads_q, kernels,
                    dict(seqlen=n, head_dim=head_dim, heads_q=heads_q, heads_kv=heads_kv, mask="full"))
        bench.count_computed(start, shares)  # share_of_dense: of attend/cuda's own
    if options.out: bench.write(options.out, options.commit)


if __name__ == "__main__":
    main()
