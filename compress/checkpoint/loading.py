"""Load a checkpoint as the model class that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import CheckpointError, CompressError
from ..models import model_class
from ..quiet import transformers_bars_watched
from ..sites import base_model, place
from ..students import PackedStudent
from .format import read_config, read_config_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(
    folder: Path | str,
    trainable: bool = False,
    *,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a compressed checkpoint, in evaluation mode, as the architecture that its config names.

    With `trainable`, every student is opened as a float32 LookupFFN with exactly the stored parameters;
    `save_pretrained` packs them again. Raises CheckpointError where the folder is no compressed checkpoint, is newer
    than this version, lacks tensors, holds more or in another shape: the message names them.
    """
    import transformers.quantizers.auto  # noqa: F401  # whose import tells transformers about the format

    folder = Path(folder)
    checkpoint = read_config(folder)
    try:
        with transformers_bars_watched():
            model, info = _model_class(folder, trust_remote_code).from_pretrained(
                folder,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with all that is wrong at once
            )
    except CompressError:
        raise
    except Exception as error:  # whatever transformers makes of a damaged config
        raise CheckpointError(
            f"the checkpoint cannot be read: {error or type(error).__name__}", where=str(folder),
            remedy="fetch it again; `compress verify` names the damaged files",
        ) from error  # fmt: skip
    problems = [f"{name} is missing" for name in sorted(info["missing_keys"])]
    problems += [f"{name} has no place" for name in sorted(info["unexpected_keys"])]
    problems += [
        f"{name} is {list(stored)}, not {list(wanted)}" for name, stored, wanted in sorted(info["mismatched_keys"])
    ]
    if problems:
        raise CheckpointError(
            f"the checkpoint does not fit its config: {'; '.join(problems)}", where=str(folder),
            remedy="fetch it again; `compress verify` names the damaged files",
        )  # fmt: skip
    if trainable:
        base = base_model(model)
        for placement in checkpoint.sites:
            packed = base.get_submodule(placement.entry)
            assert isinstance(packed, PackedStudent)
            place(base, placement.entry, (), packed.dequantised().eval())
        model.hf_quantizer.opened = True
    return model.to(device)


def _model_class(folder: Path, trust_remote_code: bool) -> Any:
    import transformers

    config = read_config_file(folder)
    architectures, auto_map = config.get("architectures"), config.get("auto_map")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    own = auto_map if isinstance(auto_map, dict) else {}
    if trust_remote_code:
        for auto, reference in own.items():
            if auto.startswith("AutoModel") and isinstance(reference, str) and reference.endswith(f".{architecture}"):
                return getattr(transformers, auto)
    if (known := model_class(architecture)) is None:
        raise CheckpointError(
            f"transformers {transformers.__version__} has no architecture {architecture}", where=str(folder),
            remedy="read the code that the checkpoint brings; if you trust it, pass --trust-remote-code "
            "(trust_remote_code=True)" if own else "upgrade transformers, or convert the model again",
        )  # fmt: skip
    return known
