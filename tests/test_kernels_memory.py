"""The memory that layers' buffers lie in: apart from each other, in huge pages, given back when nobody has them."""

import gc
import itertools
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from compress import kernels

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SMALL, LARGE = 300_001, 100 << 20  # bytes: a part of a chunk, and more than one


def test_buffers_lie_apart_and_keep_what_is_written() -> None:
    sizes = [1, 63, 64, 65, SMALL, 0, 3 << 20, SMALL]
    buffers = [kernels.huge_buffer(size).fill_(number) for number, size in enumerate(sizes)]
    assert [len(buffer) for buffer in buffers] == sizes
    assert all(buffer.data_ptr() % 64 == 0 for buffer in buffers if len(buffer))
    del buffers[::2]
    gc.collect()
    for number, buffer in zip(range(1, len(sizes), 2), buffers, strict=True):
        assert (buffer == number).all()


def test_small_buffers_lie_side_by_side() -> None:
    buffers = [kernels.huge_buffer(SMALL) for _ in range(8)]
    starts = sorted(buffer.data_ptr() for buffer in buffers)
    apart = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert apart.count(-(-SMALL // 64) * 64) >= 5  # a chunk may end between two of them


@pytest.mark.skipif(not THP.exists() or "[never]" in THP.read_text(), reason="the system has no huge pages")
def test_small_layers_ask_for_huge_pages() -> None:
    buffers = [kernels.huge_buffer(SMALL).fill_(1) for _ in range(20)]
    at = buffers[-1].data_ptr()
    for block in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        start, end = (int(number, 16) for number in block.split(" ", 1)[0].split("-"))
        if start <= at < end:
            flags = re.search(r"VmFlags:(.*)", block)
            assert flags
            assert "hg" in flags[1].split()  # asked for; whether it gives them is up to the system
            return
    raise AssertionError("the buffer is not mapped")


def test_memory_is_given_back() -> None:
    buffer = kernels.huge_buffer(LARGE).fill_(1)
    view, at = buffer.view(torch.int8)[5:], buffer.data_ptr()
    del buffer
    gc.collect()
    assert view[-1] == 1
    assert _is_mapped(at)
    del view
    gc.collect()
    assert not _is_mapped(at)


def _is_mapped(address: int) -> bool:
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = ([int(number, 16) for number in line.split(" ", 1)[0].split("-")] for line in lines)
    return any(start <= address < end for start, end in ranges)


def test_threads_take_and_release_at_once() -> None:
    def work(number: int) -> bool:
        kept = [kernels.huge_buffer(1000 * (number + i + 1)).fill_(number) for i in range(50)]
        del kept[::3]
        return all(bool((buffer == number).all()) for buffer in kept)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(32)))


def test_more_than_there_is_is_an_error() -> None:
    with pytest.raises(MemoryError):
        kernels.huge_buffer(1 << 62)
