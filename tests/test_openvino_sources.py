"""The extension library's sources: they come with the package, and whoever writes an IR and reads it agree."""

from __future__ import annotations

import re

from compress.openvino.graph import LAYOUT_VERSION
from compress.openvino.library import SOURCES


def test_the_operation_is_shipped_and_reads_the_layout_that_is_written():
    (read,) = re.findall(r"LAYOUT_VERSION = (\d+)", (SOURCES / "openvino.cpp").read_text())
    assert int(read) == LAYOUT_VERSION
