"""No test is timed: a busy machine must not fail one. Processes that share the tests take a thread each."""

import os
from collections.abc import Iterator

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch and its threads are there
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For small matrices, where several threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
