"""The checkpoint: a Hugging Face folder with students in it, written, read, verified and known to transformers."""

from .format import FORMAT_VERSION, METHOD, CheckpointConfig, Placement, is_compressed, read_config
from .loading import load
from .manifest import Problem, added_files, verify_files
from .probe import verify_outputs
from .rest import Int8Rest, check_rest, open_rest, quantise_rest
from .saving import round_rest, save_checkpoint, write_report
from .side_files import check_side_files
from .verification import verify

__all__ = [
    "FORMAT_VERSION",
    "METHOD",
    "CheckpointConfig",
    "Int8Rest",
    "Placement",
    "Problem",
    "added_files",
    "check_rest",
    "check_side_files",
    "is_compressed",
    "load",
    "open_rest",
    "quantise_rest",
    "read_config",
    "round_rest",
    "save_checkpoint",
    "verify",
    "verify_files",
    "verify_outputs",
    "write_report",
]
