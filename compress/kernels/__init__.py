"""The Python face of the native kernel: table look-ups and their hashes, for training and for inference.

Every function checks its tensors, runs natively where they are on the CPU and the extension is there, and in PyTorch
(`fallback`) otherwise, so that callers never branch. `COMPRESS_ISA` forces a lower instruction set;
`COMPRESS_REQUIRE_KERNEL=1` makes a missing extension an error.
"""

from .extension import available, isa
from .inference import Bound, bind, bind_linear, is_observed, lookup_ffn, prepare, prepare_linear
from .memory import huge_buffer, stream_read
from .training import gather, gather_backward, margin_scores, margin_scores_backward

__all__ = [
    "Bound", "available", "bind", "bind_linear", "gather", "gather_backward", "huge_buffer", "is_observed", "isa",
    "lookup_ffn", "margin_scores", "margin_scores_backward", "prepare", "prepare_linear", "stream_read",
]  # fmt: skip
