#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compiles every CUDA kernel for the machine code that it is meant for and looks over what ptxas says: tools/check_kernels.py DIR

A wgmma that the compiler made synchronous (C75xx) halves the speed without a sound, and so does a spill in a hot kernel. DIR gets a .cubin and a .ptxas (its
registers) for each file. Exits with 1 where a kernel does not hold what is asked of it. Needs nvcc 13, no GPU.
"""
import concurrent.futures, os, pathlib, re, shlex, shutil, subprocess, sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SM90, SM80 = "arch=compute_90a,code=sm_90a", "arch=compute_80,code=sm_80"

# Of each file: architecture; what of a kernel's mangled name tells the kernels apart, as groups; whether that kernel must not spill.
FILES = {
    # The general kernels (variant 4) and those that an idea is measured against (2, 3) may spill.
    "attend/sm90/forward": (SM90, r"ForwardConfigILi(\d+)E(\S+?)Li(\d)E", lambda dim, dtype, variant: variant in "015678"),
    "attend/sm90/decode": (SM90, r"DecodeConfigILi(\d+)E", lambda dim: int(dim) <= 128),
    "attend/sm90/measure": (SM90, r"MeasureConfigILi(\d+)E", lambda dim: True),
    "attend/sm90/backward": (SM90, r"BackwardConfigILi(\d+)E(\S+?)Lb(\d)E", lambda dim, dtype, softcap: softcap == "0"),
    "attend/sm90/backward_slots": (SM90, "", lambda: True),
    "attend/sm90/backward_steps": (SM90, "", lambda: True),
    "plan/cuda/kernels": (SM90, "", lambda: True),
    "select/cuda/kernels": (SM90, "", lambda: True),
    "select/cuda/antidiagonal": (SM90, "", lambda: True),
    "select/cuda/patterns": (SM90, "", lambda: True),
    "infer/cuda/kernels": (SM90, "", lambda: True),
    # On what their PTX is made for.
    "attend/cuda/forward_bf16": (SM80, r"cuda_(\w+?)_kernel\S*?Bf16E(?:Li(\d+)E)?", lambda kernel, dim: dim in ("64", "128")),
    "attend/cuda/backward_bf16": (SM80, r"cuda_(\w+?)_kernel\S*?Bf16E(?:Li(\d+)E)?", lambda kernel, dim: dim in ("64", "128")),
}


def compile_one(file, folder):
    """What ptxas says of tilewise/FILE.cu."""
    stem = folder / file.replace("/", "_")
    done = subprocess.run([*shlex.split(os.environ.get("NVCC", "nvcc")), "-std=c++20", "-O3", "-I.", "--expt-relaxed-constexpr", f"-gencode={FILES[file][0]}", "-Xptxas", "-v",
                           "-cubin", f"tilewise/{file}.cu", "-o", f"{stem}.cubin"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    stem.with_suffix(".ptxas").write_text(done.stdout)
    if done.returncode: raise SystemExit(done.stdout)
    return done.stdout


def faults_of(file, text):
    """Prints a line about a file's kernels and returns what is wrong with them."""
    _, name, must_fit = FILES[file]
    kernels = re.findall(rf"Compiling entry function '\S*{name}\S*' for.*?(\d+) bytes spill stores", text, re.S)
    kernels = [kernel if isinstance(kernel, tuple) else (kernel,) for kernel in kernels]
    faults = re.findall(r".*C75\d\d.*", text)
    faults += [f"{file}: a kernel {' '.join(of)} spills {spill} bytes" for *of, spill in kernels if spill != "0" and must_fit(*of)]
    if not kernels: faults.append(f"{file}: no kernel found")
    spilt = [int(kernel[-1]) for kernel in kernels if kernel[-1] != "0"]
    print(f"{file}: {len(kernels)} kernels" + (f", of them {len(spilt)} spill bytes: {spilt}" if spilt else ""), flush=True)
    return faults


def main():
    if len(sys.argv) != 2: sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(max(1, os.cpu_count() // 2)) as pool:  # the harness builds beside it
        texts = dict(zip(FILES, pool.map(lambda file: compile_one(file, folder), FILES)))
    faults = [fault for file, text in texts.items() for fault in faults_of(file, text)]
    if shutil.which("cuobjdump"):
        sass = subprocess.run(["cuobjdump", "-sass", folder / "attend_sm90_forward.cubin"], capture_output=True, text=True).stdout
        print(f"{sass.count('HGMMA')} HGMMA in attend/sm90/forward")
        if "HGMMA" not in sass: faults.append("attend/sm90/forward: no HGMMA in the kernels")
    sys.exit("\n".join(faults) if faults else 0)


if __name__ == "__main__":
    main()
