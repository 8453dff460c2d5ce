"""The kernel's C code without Python: under the sanitisers, as ARM64 code, and with its instructions counted."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kernel_levels import LEVELS
from test_kernels_inference import FACTORS, SLICED, TYPICAL, make_params, reference
from torch import Tensor
from torch.nn import functional

from compress import kernels
from compress.int8_linear import Int8Linear
from compress.kernels.layout import HALF_BYTES
from compress.lookup import Geometry
from compress.lookup.packed import rounded

ROOT = Path(__file__).parent.parent
SOURCES = [str(path) for path in sorted((ROOT / "kernels").glob("*.c")) if not path.name.startswith("_")]
FLAGS = ["-O1", "-g1", "-std=gnu11", "-fopenmp", "-ffp-contract=off", "-I", str(ROOT / "kernels")]
NATIVE, FUZZED = ROOT / "tests" / "native", ROOT / "tests" / "fuzz" / "kernel.c"
FORWARD = NATIVE / "forward.c"
SANITISERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

# Inputs, outputs, a bias, tokens: widths that fill no panel, and work enough for a team by tokens and by outputs.
LINEAR = [(48, 32, True, 5), (49, 33, True, 3), (1, 1, False, 7), (130, 1000, True, 3), (515, 77, False, 70)]

pytestmark = [
    pytest.mark.skipif(not LEVELS, reason="the native extension, which lays the cases out, is not installed"),
    pytest.mark.skipif(not SOURCES, reason="the kernel's sources are not here"),
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[str]:
    """Packed students of every kind, odd sizes among them, with inputs and what float64 makes of them."""
    folder, paths = tmp_path_factory.mktemp("cases"), []

    def add(name: str, g: Geometry, dtypes: tuple[torch.dtype, torch.dtype], bits: int, tokens: int) -> None:
        params = make_params(g, *dtypes, len(paths))
        x = torch.randn(tokens, g.d_in, generator=torch.Generator().manual_seed(len(paths)))
        expected, clear, _ = reference(params, g, x, bits)
        tolerance = 1e-4 * expected.abs().max().item()
        expected[clear <= 1e-5] = torch.nan
        paths.append(student_case(folder / f"{name}.case", params, g, bits, x, expected.float(), tolerance))

    for i, g in enumerate(TYPICAL):
        for table_dtype, weight_dtype, bits in ((torch.int8, torch.int8, 8), (torch.int8, torch.int8, 16),
                                                (HALF_BYTES, torch.int8, 8), (HALF_BYTES, torch.bfloat16, 16),
                                                (torch.float32, torch.float32, 16),
                                                (torch.bfloat16, torch.bfloat16, 16)):  # fmt: skip
            add(f"{i}-{table_dtype}-{weight_dtype}-{bits}", g, (table_dtype, weight_dtype), bits, 45)
    for table_dtype, g in SLICED:
        add(f"sliced-{table_dtype}-{g.d_out}", g, (table_dtype, torch.float32), 16, 70)
    add("factors", FACTORS, (HALF_BYTES, torch.int8), 8, 1)
    return paths + [linear_case(folder, *sizes) for sizes in LINEAR]


def student_case(
    path: Path, params: dict[str, Tensor], g: Geometry, bits: int, x: Tensor, expected: Tensor, tolerance: float
) -> str:
    """One packed student, with inputs and what it should answer; NaN where that cannot be told."""
    (weights, tables), numbers = kernels.prepare(params, g, bits)
    with path.open("wb") as file:
        file.write(struct.pack(f"={len(numbers) + 2}qd", 0, *numbers, len(x), tolerance))
        for tensor in (weights, tables, x, expected):
            file.write(tensor.numpy().tobytes())
    return str(path)


def linear_case(folder: Path, d_in: int, d_out: int, bias: bool, tokens: int) -> str:
    """One int8 layer, with inputs and what its rounded product is in float64."""
    draw = torch.Generator().manual_seed(d_in * d_out)
    dense = torch.nn.Linear(d_in, d_out, bias=bias).requires_grad_(False)
    for parameter in dense.parameters():
        parameter.normal_(generator=draw)
    layer = Int8Linear.of(dense)
    x = torch.randn(tokens, d_in, generator=draw)
    expected = functional.linear(rounded(x).double(), layer.values.double() * layer.scale.double()[:, None])
    expected = expected if layer.bias is None else expected + layer.bias.double()
    prepared = kernels.prepare_linear(layer.values, layer.scale, layer.bias)
    path = folder / f"linear-{d_in}-{d_out}.case"
    with path.open("wb") as file:
        file.write(struct.pack("=5qd", 1, d_in, d_out, bias, tokens, 1e-5 * expected.abs().max().item()))
        for tensor in (*prepared, x, expected.float()):
            file.write(tensor.numpy().tobytes())
    return str(path)


def compile_with(compiler: str, *arguments: object) -> None:
    done = subprocess.run([compiler, *FLAGS, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def build(compiler: str, target: Path, *arguments: object) -> str:
    compile_with(compiler, *arguments, "-o", target, "-lm")
    return str(target)


@pytest.fixture(scope="module")
def sanitised(tmp_path_factory) -> list[object]:
    """The kernel's objects with the sanitisers inside: most of what their programs take to build."""
    if not shutil.which("gcc"):
        pytest.skip("no gcc")
    folder = tmp_path_factory.mktemp("sanitised")
    for source in SOURCES:
        compile_with("gcc", *SANITISERS, "-c", source, "-o", folder / f"{Path(source).stem}.o")
    return [*SANITISERS, *folder.glob("*.o")]


@pytest.mark.slow
def test_the_fuzzers_corpus_is_clean_under_the_sanitisers(sanitised, tmp_path):
    program = build("gcc", tmp_path / "replay", "-DREPLAY", FUZZED, *sanitised)
    files = [str(path) for path in (FUZZED.parent / "corpus" / "kernel").iterdir()]
    done = subprocess.run([program, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    given, ran = map(int, done.stdout.split())
    assert given == len(files)
    assert ran > 0.8 * given  # settings that are refused would show nothing of the kernel


@pytest.mark.slow
def test_sanitisers_find_nothing(cases, sanitised, tmp_path):
    program = build("gcc", tmp_path / "forward", FORWARD, *sanitised)
    done = subprocess.run([program, *cases], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == LEVELS


@pytest.mark.slow
def test_the_arena_gives_no_memory_twice(sanitised, tmp_path):
    program = build("gcc", tmp_path / "arena", NATIVE / "arena.c", *sanitised)
    # Without the option the sanitiser ends a program that asks for too much, instead of telling it.
    environment = {**os.environ, "ASAN_OPTIONS": "allocator_may_return_null=1"}
    done = subprocess.run([program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_arm64_code_runs_emulated(cases, tmp_path):
    compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if not compiler or not emulator:
        pytest.skip("no cross-compiler for ARM64, or no emulator (Debian: gcc-aarch64-linux-gnu, qemu-user)")
    program = build(compiler, tmp_path / "forward", "-static", FORWARD, *SOURCES)
    done = subprocess.run([emulator, program, *cases], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["neon", "scalar"]


@pytest.mark.slow
def test_cost_grows_linearly_in_tokens_tables_and_outputs(tmp_path):
    if not shutil.which("gcc") or not shutil.which("valgrind"):
        pytest.skip("no gcc, or no valgrind to count instructions with")
    program = build("gcc", tmp_path / "forward", FORWARD, *SOURCES)

    def instructions(g: Geometry, tokens: int) -> int:
        x, unknown = torch.randn(tokens, g.d_in), torch.full((tokens, g.d_out), torch.nan)
        params = make_params(g, torch.int8, torch.int8, 0)
        case = student_case(tmp_path / "one.case", params, g, 8, x, unknown, 0.0)
        command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", program, case]
        quiet = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}  # a thread that waits counts no instructions
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **quiet})
        assert done.returncode == 0, done.stderr
        return int(re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)[1].replace(",", ""))

    g, tokens = Geometry(64, 128, 32, 8, "hadamard", 64, 64, 16, False, "relu"), 64
    once = instructions(g, tokens)
    for vary in (
        lambda times: instructions(g, tokens * times),
        lambda times: instructions(replace(g, tables=g.tables * times), tokens),
        lambda times: instructions(replace(g, d_out=g.d_out * times), tokens),
    ):
        twice, four_times = vary(2), vary(4)
        assert four_times - twice == pytest.approx(2 * (twice - once), rel=0.1)
