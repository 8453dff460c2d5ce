"""No test is timed: a busy machine must not fail one. Processes that share the tests take a thread each."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch and its threads are there
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
