"""Wheels: installed without a compiler, and for 64-bit Arm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ARM_GCC = shutil.which("aarch64-linux-gnu-gcc")
KERNEL_TESTS = ["test_kernels_dispatch.py", "test_kernels_training.py", "test_int8_rest.py", "test_packed.py"]

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="the sources are not here"),
]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    """What `make wheels` builds, of a copy of the sources: a build leaves files beside them."""
    folder = tmp_path_factory.mktemp("wheels") / "sources"
    kept = shutil.ignore_patterns(".*", "build", "dist", "demo", "*.egg-info", "*.so", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=kept)
    os.makedirs(folder / ".venv")
    os.symlink(Path(sys.executable).parent, folder / ".venv" / "bin")
    run("make", "wheels", "-o", "install", cwd=folder)
    return folder / "dist"


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Run a command in a folder, and give what it printed; on failure that is the error."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert not done.returncode, done.stdout
    return done.stdout


def test_a_wheel_installed_without_a_compiler_passes_the_kernels_tests(wheels, tmp_path):
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    (wheel,) = wheels.glob(f"*-cp311-abi3-{platform}.whl")
    run(sys.executable, "-m", "venv", "--without-pip", "clean", cwd=tmp_path)
    (site,) = tmp_path.glob("clean/lib/*/site-packages")
    # As a line of a .pth file these packages serve as dependencies, and what is installed in place there is not seen.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel), cwd=tmp_path,
        PATH="/nowhere")  # fmt: skip
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))

    python, alone = str(tmp_path / "clean" / "bin" / "python"), {"PATH": "/nowhere", "PYTHONSAFEPATH": "1"}
    where = run(
        python, "-c", "from compress import kernels; print(kernels.__file__, kernels.isa())", cwd=tmp_path, **alone
    )
    assert str(site) in where
    assert "torch" not in where.split()[1]
    passed = run(
        python, "-m", "pytest", "-q", "-o", "pythonpath=tests", "--import-mode=importlib",
        *(f"tests/{name}" for name in KERNEL_TESTS), cwd=tmp_path, COMPRESS_REQUIRE_KERNEL="1", **alone,
    )  # fmt: skip
    assert " passed" in passed
    assert "failed" not in passed


@pytest.mark.skipif(ARM_GCC is None, reason="no cross-compiler for 64-bit Arm (Debian: gcc-aarch64-linux-gnu)")
def test_the_wheel_for_arm_holds_a_kernel_for_arm(wheels):
    (wheel,) = wheels.glob("*-cp311-abi3-linux_aarch64.whl")
    with zipfile.ZipFile(wheel) as archive:
        kernel = archive.read("compress/_kernels.abi3.so")
    assert kernel[:5] == b"\x7fELF\x02"
    assert int.from_bytes(kernel[18:20], "little") == 183
