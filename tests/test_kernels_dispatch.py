"""Which code runs: instruction sets, the environment's wishes, and life without the extension."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from kernel_levels import LEVELS, using_level

from compress import kernels
from compress.kernels import extension
from compress.lookup import LookupFFN
from compress.lookup.geometry import Geometry

needs_extension = pytest.mark.skipif(not LEVELS, reason="the native extension is not installed")

# The extension cannot be found in this process: what a machine without a compiler would see.
WITHOUT_EXTENSION = "import sys; sys.modules['compress._kernels'] = None\n"
GATHER = """
import torch
from compress import kernels
from compress.kernels import extension
tables, codes, weights = torch.ones(2, 4, 3), torch.zeros(5, 2, 1, dtype=torch.int32), torch.ones(5, 2, 1)
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    unset = {name: value for name, value in os.environ.items() if not name.startswith("COMPRESS_")}
    return subprocess.run(
        [sys.executable, "-c", code], env=unset | {"PYTHONSAFEPATH": "1"} | environment, capture_output=True, text=True
    )


@needs_extension
def test_levels_end_in_scalar_and_the_best_is_taken():
    assert LEVELS[-1] == "scalar"
    done = python("from compress import kernels; print(kernels.isa())")
    assert done.stdout.strip() == LEVELS[0], done.stderr


@needs_extension
def test_environment_forces_a_level():
    done = python("from compress import kernels; print(kernels.isa(), kernels.available())", COMPRESS_ISA="scalar")
    assert done.stdout.split() == ["scalar", "True"], done.stderr


@needs_extension
@pytest.mark.parametrize("wish", ["sse9", "neon" if "neon" not in LEVELS else "avx2"])
def test_a_level_that_is_not_here_is_refused(wish):
    done = python("from compress import kernels; kernels.isa()", COMPRESS_ISA=wish)
    assert done.returncode == 1
    assert f"KernelError: instruction set '{wish}'" in done.stderr
    assert "scalar" in done.stderr  # what could be chosen


@needs_extension
def test_levels_agree_on_a_forward():
    from test_kernels_inference import make_params

    g = Geometry(96, 80, 40, 8, "lowrank", 64, 24, 24, False, "gelu", "top2")
    prepared = kernels.prepare(make_params(g, torch.int8, torch.bfloat16, 0), g)
    x = torch.randn(40, 96, generator=torch.Generator().manual_seed(0))
    results = []
    for level in LEVELS:
        with using_level(level):
            results.append(kernels.lookup_ffn(x, *prepared))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-4 * results[0].abs().max().item())


def test_without_the_extension_pytorch_works_and_one_warning_says_so():
    code = (
        WITHOUT_EXTENSION
        + GATHER
        + (
            "assert not kernels.available() and kernels.isa() == 'torch'\n"
            "for _ in range(3): assert torch.equal(kernels.gather(tables, codes, weights), torch.full((5, 3), 2.0))\n"
        )
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the native kernel is missing: PyTorch does its work") == 1
    assert "reinstall" in done.stderr


@needs_extension
@pytest.mark.parametrize("read", ["top1", "top2"])
def test_without_the_extension_a_student_has_the_same_gradients(monkeypatch, read):
    torch.manual_seed(0)
    ffn, x = LookupFFN(16, 12, tables=5, bits=3, projection="hadamard", rank=8, read=read), torch.randn(40, 16)
    found = []
    for missing in (False, True):
        if missing:
            for name in ("find", "_find_or_warn"):
                monkeypatch.setattr(extension, name, lambda: None)
        ffn.zero_grad()
        ffn(x).square().sum().backward()
        found.append([parameter.grad for parameter in ffn.parameters()])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_an_extension_that_is_required_must_be_there():
    done = python(WITHOUT_EXTENSION + GATHER + "kernels.gather(tables, codes, weights)", COMPRESS_REQUIRE_KERNEL="1")
    assert done.returncode == 1
    assert "KernelError: the native kernel is missing, and COMPRESS_REQUIRE_KERNEL=1 requires it" in done.stderr


def test_packing_needs_the_extension():
    code = WITHOUT_EXTENSION + (
        "from compress import kernels; from compress.lookup.geometry import Geometry\n"
        "import torch; kernels.prepare({'bias': torch.zeros(1)}, Geometry(1, 1, 0, rank=1))"
    )
    done = python(code)
    assert "KernelError: the native kernel is missing" in done.stderr


@needs_extension
def test_two_python_threads_do_not_disturb_each_other():
    from concurrent.futures import ThreadPoolExecutor

    from test_kernels_inference import make_params

    g = Geometry(96, 80, 40, 8, "bh4", 32, 0, 24, False, "gelu")
    prepared = kernels.prepare(make_params(g, torch.int8, torch.bfloat16, 0), g)
    inputs = [torch.randn(n, 96, generator=torch.Generator().manual_seed(n)) for n in (1, 3, 70, 200)]
    expected = [kernels.lookup_ffn(x, *prepared) for x in inputs]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(5):
            results = pool.map(lambda x: kernels.lookup_ffn(x, *prepared), inputs)
            assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
