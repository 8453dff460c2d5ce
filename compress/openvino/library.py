"""The extension library: the kernel's C code as OpenVINO's operation `LookupFFN`, built where it runs.

It is made for the OpenVINO that is installed, whose C++ interface changes with every version, and kept in the user's
cache for that version.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..errors import KernelError

SOURCES = Path(__file__).parent.parent / "native"  # the folder kernels/ of the repository
_C = ("gcc", "-std=gnu11", "-O3", "-ffp-contract=off")
_CXX = ("g++", "-std=c++17", "-O2")
_BOTH = ("-g0", "-fPIC", "-fvisibility=hidden")


def openvino() -> Any:
    """The package `openvino`. Raises KernelError where it is not installed."""
    try:
        import openvino as package
    except ImportError:
        raise KernelError(
            "OpenVINO is not installed", where="openvino", remedy="pip install 'compress-lookup[openvino]'"
        ) from None
    return package


@functools.cache
def extension() -> Path:
    """Path of the library for `openvino.Core.add_extension`; the first call on a machine builds it, in seconds.

    Raises KernelError where OpenVINO or a C++ compiler is missing, or the build fails.
    """
    package = openvino()
    sources = sorted(path for path in SOURCES.iterdir() if path.suffix in (".c", ".h", ".cpp"))
    hasher = hashlib.sha256(repr((package.__version__, platform.machine(), _C, _CXX, _BOTH)).encode())
    for path in sources:
        hasher.update(path.name.encode() + path.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "compress-lookup"
    target = cache / f"openvino-{hasher.hexdigest()[:16]}.so"
    if not target.is_file():
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            os.replace(_build(sources, Path(package.__file__).parent, Path(folder)), target)
    return target


def _build(sources: list[Path], package: Path, folder: Path) -> Path:
    """Compile and link in `folder`."""
    if sys.platform != "linux":
        raise KernelError(
            f"the extension is built on Linux alone, and this is {sys.platform}", where="compress.openvino",
            remedy="run the checkpoint with PyTorch here: compress run, compress.load",
        )  # fmt: skip
    for compiler in (_C[0], _CXX[0]):
        if shutil.which(compiler) is None:
            raise KernelError(
                f"there is no {compiler} to build the extension with", where="compress.openvino",
                remedy="install a compiler (Debian: apt install g++)",
            )  # fmt: skip
    include = ("-isystem", str(package / "include"))

    def compile_one(source: Path) -> str:
        target = str(folder / f"{source.stem}.o")
        command = (*_CXX, *include) if source.suffix == ".cpp" else _C
        _run([*command, *_BOTH, "-I", str(SOURCES), "-c", str(source), "-o", target])
        return target

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compile_one, [path for path in sources if path.suffix != ".h" and path.name[0] != "_"]))
    libraries = [str(next((package / "libs").glob(f"{name}.so.*"))) for name in ("libopenvino", "libtbb")]
    library = folder / "extension.so"
    # Never unloaded: nodes of a model may outlive the core that loaded it.
    _run(
        [
            _CXX[0],
            "-shared",
            *objects,
            *libraries,
            "-Wl,-z,nodelete",
            f"-Wl,-rpath,{package / 'libs'}",
            "-o",
            str(library),
        ]
    )
    return library


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(
            f"the extension cannot be built: {done.stderr.strip()[-2000:]}", where=" ".join(command[:1] + command[-4:]),
            remedy="report this with the versions of OpenVINO and of the compiler",
        )  # fmt: skip
