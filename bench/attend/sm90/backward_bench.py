# SPDX-License-Identifier: Apache-2.0
"""Sustained TFLOP/s of the Hopper backward (5 products counted; the order of work apart, in rows of its own; delta and dq's last pass included) beside
cuDNN's, all kernels of a row taking turns in one process. Protocol: forward_bench.py. Gradients are checked once against cuDNN's, or against f64 rows.
usage: backward_bench.py LIBRARY [--rows dense,causal,d64,sparse] [--lengths 8192,32768] [--rounds 7] [--out FILE.json] [--commit ID]
"""
import argparse, ctypes, datetime, json, pathlib, subprocess, sys, time
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from forward_bench import Bench, Tensor16, causal_lists, error, full_list, random_tiles


class DeviceList(ctypes.Structure):
    _fields_ = [("begin", ctypes.c_void_p), ("count", ctypes.c_void_p), ("start", ctypes.c_void_p), ("stop", ctypes.c_void_p),
                ("groups", ctypes.c_int64), ("rows", ctypes.c_int64), ("capacity", ctypes.c_int64)]


class StepsInput(ctypes.Structure):
    _fields_ = [("seqlen_q", ctypes.c_int64), ("seqlen_k", ctypes.c_int64), ("heads_q", ctypes.c_int), ("heads_kv", ctypes.c_int),
                ("tile", ctypes.c_int), ("tile_q", ctypes.c_int), ("thread_blocks", ctypes.c_int), ("is_causal", ctypes.c_int),
                ("patterns", ctypes.c_int64), ("whole", DeviceList), ("masked", DeviceList)]


class StepsMade(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("items", "first_item", "steps", "patterns", "status")]


class BackwardInput(ctypes.Structure):
    _fields_ = [(name, Tensor16) for name in ("q", "k", "v", "out", "dout", "dq", "dk", "dv")] + [
        ("lse", ctypes.c_void_p), ("dlse", ctypes.c_void_p), ("lse_strides", ctypes.c_int64 * 3), ("dlse_strides", ctypes.c_int64 * 3),
        ("sink_logit", ctypes.c_void_p), ("dsink_logit", ctypes.c_void_p), ("softmax_scale", ctypes.c_float), ("softcap", ctypes.c_float),
        ("items", ctypes.c_void_p), ("first_item", ctypes.c_void_p), ("steps", ctypes.c_void_p), ("patterns", ctypes.c_void_p),
        ("thread_blocks", ctypes.c_int), ("status", ctypes.c_void_p)]


class BackwardBench(Bench):
    def __init__(self, library, rounds):
        super().__init__(library, rounds)
        for each in self.libraries:
            each.tilewise_sm90_backward_order.restype = ctypes.c_int64
            each.tilewise_sm90_backward_order.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
            each.tilewise_sm90_backward_workspace.restype = ctypes.c_int64
            each.tilewise_sm90_backward_workspace.argtypes = [ctypes.c_int64, ctypes.c_int, ctypes.c_int64, ctypes.c_int]
            each.tilewise_attend_sm90_backward.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]

    def device_list(self, lists):
        if lists is None: return DeviceList()
        begin, count, start, stop = lists.keep
        groups = lists.view.begin_heads
        return DeviceList(*(x.data_ptr() for x in lists.keep), groups, begin.numel() // groups, start.numel())

    def backward(self, q, k, v, dout, whole=None, masked=None, number=0, tile=128):
        """The forward's run, and the backward of its output."""
        library = self.libraries[number]
        run_forward = self.ours(q, k, v, whole, masked, tile=tile)
        run_forward()
        out, lse = run_forward.out, run_forward.lse
        gradients = [torch.full_like(x, float("nan")) for x in (q, k, v)]
        heads_q, n, head_dim = q.shape[1:]
        s = StepsInput(n, k.shape[2], heads_q, k.shape[1], tile, 128 if head_dim == 64 else 64, torch.cuda.get_device_properties(0).multi_processor_count,
                       masked is not None, 4096, self.device_list(whole), self.device_list(masked))
        made = StepsMade()
        order = torch.empty(library.tilewise_sm90_backward_order(ctypes.byref(s), None, None, None), dtype=torch.uint8, device="cuda")

        def make_order(keep=(whole, masked, order)):
            code = library.tilewise_sm90_backward_order(ctypes.byref(s), order.data_ptr(), ctypes.byref(made), torch.cuda.current_stream().cuda_stream)
            if code < 0: raise RuntimeError(f"order of work: cuda error {-code}")

        make_order()
        f = BackwardInput(*(Tensor16(x) for x in (q, k, v, out, dout, *gradients)), lse.data_ptr(), None)
        for axis in range(3): f.lse_strides[axis] = lse.stride(axis)
        f.softmax_scale = head_dim ** -0.5
        f.items, f.first_item, f.steps, f.patterns = made.items, made.first_item, made.steps, made.patterns
        f.thread_blocks = s.thread_blocks
        workspace = torch.empty(library.tilewise_sm90_backward_workspace(1, heads_q, n, head_dim), dtype=torch.uint8, device="cuda")

        def run(keep=(q, k, v, dout, out, lse, order, gradients, workspace)):
            code = library.tilewise_attend_sm90_backward(ctypes.byref(f), workspace.data_ptr(), torch.cuda.current_stream().cuda_stream)
            if code: raise RuntimeError(f"backward: cuda error {code}")

        run.gradients, run.out, run.lse, run.make_order = gradients, out, lse, make_order
        return run

    def cudnn_backward(self, q, k, v, dout, is_causal=False):
        q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=True)

        def run():
            run.gradients = torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)

        return run


def inputs(n, heads, head_dim):
    generator = torch.Generator("cuda").manual_seed(0)
    make = lambda h: torch.randn(1, h, n, head_dim, device="cuda", generator=generator).bfloat16()
    return make(heads[0]), make(heads[1]), make(heads[1]), make(heads[0])


def check(name, got, want, bound=2e-2):
    for gradient, a, b in zip(("dq", "dk", "dv"), got, want):
        e = error(a, b)
        if not e < bound: sys.exit(f"FAIL {name} {gradient}: error {e:.2e}")


def dense(bench, n, is_causal=False, head_dim=128, heads=(32, 8)):
    q, k, v, dout = inputs(n, heads, head_dim)
    lists = causal_lists(n, n // 128) if is_causal else (full_list(n, n // 128), None)
    kernels = {"plan" if i == 0 else f"plan {i}": bench.backward(q, k, v, dout, *lists, number=i) for i in range(len(bench.libraries))}
    kernels["cudnn"] = bench.cudnn_backward(q, k, v, dout, is_causal)
    for run in kernels.values(): run()
    for name in kernels: check(name, kernels[name].gradients, kernels["cudnn"].gradients)
    first = [x.clone() for x in kernels["plan"].gradients]
    kernels["plan"]()
    if not all(torch.equal(a, b) for a, b in zip(first, kernels["plan"].gradients)): sys.exit("FAIL two runs differ")
    title = f"backward {'causal' if is_causal else 'dense'} D={head_dim} {n // 1024}K"
    bench.turns(title, 10.0 * n * n * head_dim * heads[0] * (.5 if is_causal else 1), kernels,
                dict(seqlen=n, head_dim=head_dim, heads_q=heads[0], heads_kv=heads[1], density=1, mask="causal" if is_causal else "full"))


def rows_in_f64(q, k, v, dout, chosen, head, group, tile):
    """dq of one query head, and its share of the group's dk and dv, in f64 over the kept tiles."""
    n, head_dim = q.shape[2:]
    kv = head // group
    keep = torch.zeros(n // tile, n // tile, dtype=torch.bool, device="cuda")
    keep.scatter_(1, chosen[head], True)
    mask = keep.repeat_interleave(tile, 0).repeat_interleave(tile, 1)
    x, y, z, g = (t.double() for t in (q[0, head], k[0, kv], v[0, kv], dout[0, head]))
    p = (x @ y.T * head_dim ** -0.5).masked_fill(~mask, -torch.inf).softmax(1)
    dp = g @ z.T
    ds = p * (dp - (p * dp).sum(1, keepdim=True)) * head_dim ** -0.5
    return ds @ y, ds.T @ x, p.T @ g


def sparse(bench, n, densities, tile=128, head_dim=128, heads=(32, 8)):
    q, k, v, dout = inputs(n, heads, head_dim)
    generator = torch.Generator("cuda").manual_seed(7)
    group = heads[0] // heads[1]
    kernels, flops = {}, {}
    for i in range(len(bench.libraries)):
        kernels["dense" if i == 0 else f"dense {i}"] = bench.backward(q, k, v, dout, full_list(n, n // 128), number=i)
    for density in densities:
        count = max(1, round(density * (n // tile)))
        whole, chosen = random_tiles(n, heads[0], n // tile, count, tile, generator)
        for i in range(len(bench.libraries)):
            run = bench.backward(q, k, v, dout, whole, number=i)
            run()
            if n <= 8192:  # one group of heads against f64
                parts = [rows_in_f64(q, k, v, dout, chosen, h, group, tile) for h in range(group)]
                check(f"sparse {density}", [run.gradients[0][0, 0], run.gradients[1][0, 0], run.gradients[2][0, 0]],
                      [parts[0][0], sum(p[1] for p in parts), sum(p[2] for p in parts)])
            name = f"density {count * tile / n:.3f}" + ("" if i == 0 else f" {i}")
            kernels[name], flops[name] = run, count * tile / n
    kernels["cudnn"] = bench.cudnn_backward(q, k, v, dout)
    start = len(bench.rows)
    bench.turns(f"backward sparse {tile}x{tile} D={head_dim} {n // 1024}K", 10.0 * n * n * head_dim * heads[0], kernels,
                dict(seqlen=n, head_dim=head_dim, heads_q=heads[0], heads_kv=heads[1], tile_q=tile, tile_k=tile, mask="full"))
    bench.count_computed(start, flops)
    # What the order of work costs, which a call without a schedule makes first; one flop, so that only times count.
    bench.turns(f"backward order {tile}x{tile} D={head_dim} {n // 1024}K", 1, {name: run.make_order for name, run in kernels.items() if name != "cudnn"},
                dict(seqlen=n, head_dim=head_dim))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("--rows", default="dense,causal,d64,sparse")
    parser.add_argument("--lengths", default="8192,32768")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--commit", default="")
    parser.add_argument("--out")
    options = parser.parse_args()
    bench = BackwardBench(options.library, options.rounds)
    wanted = options.rows.split(",")
    for n in map(int, options.lengths.split(",")):
        if "dense" in wanted: dense(bench, n)
        if "causal" in wanted: dense(bench, n, is_causal=True)
        if "d64" in wanted: dense(bench, n, head_dim=64)
        if "d64causal" in wanted: dense(bench, n, is_causal=True, head_dim=64)
        if "sparse" in wanted: sparse(bench, n, (.25, .10))
    if options.out: bench.write(options.out, options.commit)


if __name__ == "__main__":
    main()
