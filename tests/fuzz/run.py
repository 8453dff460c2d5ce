"""Fuzz a way in from strangers, guided by coverage: python tests/fuzz/run.py recipe|checkpoint|kernel [seconds]

recipe, checkpoint: with atheris (pip install atheris). kernel: the C code under the sanitisers of addresses and of
undefined behaviour with libFuzzer (Debian: apt install clang libclang-rt-14-dev); it is built first, which takes
minutes. New inputs go to .fuzz/TARGET; findings are written to the working folder as crash-*.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def python(target: str, arguments: list[str]) -> None:
    """Run a function of targets.py under atheris."""
    import atheris

    sys.path.insert(0, str(HERE.parent))
    sys.path.insert(0, str(HERE))
    with atheris.instrument_imports(include=["compress"]):
        import targets

    for number, seed in enumerate(targets.seeds(target)):
        (Path(arguments[0]) / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *arguments], getattr(targets, target))
    atheris.Fuzz()


def kernel(arguments: list[str]) -> None:
    """Build the kernel with libFuzzer and run it."""
    program = ROOT / ".fuzz" / "kernel_fuzzer"
    sources = [*sorted((ROOT / "kernels").glob("[!_]*.c")), HERE / "kernel.c"]
    newest = max(path.stat().st_mtime for path in [*sources, *(ROOT / "kernels").glob("*.h")])
    if not program.exists() or program.stat().st_mtime < newest:
        flags = ["-O0", "-g", "-std=gnu11", "-ffp-contract=off", "-I", str(ROOT / "kernels")]
        sanitisers = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=undefined"]
        compiler = os.environ.get("CC", "clang-14")
        subprocess.run([compiler, *flags, *sanitisers, *map(str, sources), "-lm", "-o", str(program)], check=True)
    sys.exit(subprocess.run([str(program), *arguments]).returncode)


def main() -> None:
    """Run a target for some seconds."""
    target, seconds = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "600"
    new = ROOT / ".fuzz" / target
    new.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={seconds}", "-rss_limit_mb=4096", "-timeout=20", "-print_final_stats=1"]
    arguments = [str(new), str(HERE / "corpus" / target), *limits]
    if target == "kernel":
        kernel([*arguments, "-max_len=512"])
    else:
        python(target, [*arguments, f"-max_len={4096 if target == 'recipe' else 65536}"])


if __name__ == "__main__":
    main()
