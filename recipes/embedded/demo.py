"""The demonstration: convert the embedded model with the `demo` recipe and compare it with the dense one.

`python -m compress.recipes.embedded.demo [FOLDER]`; FOLDER (by default `demo`) takes the text and the checkpoint.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from . import MODEL
from .corpus import write_split


def main() -> None:
    """Write the text, then run the commands that a user would, shown as they run."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    checkpoint = folder / "model-lookup"
    shutil.rmtree(checkpoint, ignore_errors=True)
    train, held_out = write_split(folder)
    print(f"text: {train} to distil on, {held_out} held out (the standard library's source)", flush=True)
    run(
        "convert",
        str(MODEL),
        "demo",
        "--output",
        str(checkpoint),
        "--data",
        str(train),
        "--set",
        f"eval.data={held_out}",
    )
    prompt = "def read_lines(path):\n"
    run("run", str(checkpoint), prompt, "--max-new-tokens", "40")


def run(*arguments: str) -> None:
    """Run one `compress` command; the demonstration ends where it fails."""
    print(f"\n$ compress {shlex.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "compress", *arguments], check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
