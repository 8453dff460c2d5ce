"""Pretrained models: loaded with their own processor, under the head that their config names."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .errors import CompressError, ModelError
from .hub import local_folder
from .quiet import silent_transformers
from .tasks import AUDIO_INPUTS, HEADS, Task, task_named
from .untrusted import read_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model"),
)
_EXTRACTOR_FILES = ("preprocessor_config.json", "processor_config.json")

_OWN_CODE = "brings code of its own, which runs on your machine"
_TRUST = "read that code; if you trust it, pass --trust-remote-code (trust_remote_code=True)"
_PICKLE = (
    "the file holds more than tensors, which would run as a program: ask its authors for *.safetensors, "
    "or choose another model"
)

logger = logging.getLogger(__name__)


class Speech(NamedTuple):
    """How a speech model hears and writes: feature extractor, tokenizer (None where the folder has none)."""

    extractor: Any
    tokenizer: Any


@dataclass
class Pretrained:
    """A model ready to be converted or measured."""

    model: PreTrainedModel  # eval mode
    processor: Any  # tokenizer, image processor or Speech; None where the folder has none
    task: Task
    source: str  # as it was asked for
    revision: str | None  # the hub's commit; None for a folder
    folder: Path  # local snapshot: config, weights and side files


def task_of(config: PretrainedConfig) -> Task:
    """Tell what a model is for by the architecture in its config; without one it is a base model, which embeds.

    Raises ModelError for a head that transformers does not know, since converting the base model alone would lose it.
    """
    architecture = _architecture(config)
    task = task_named(architecture, config)
    if task is not None:
        return task
    raise ModelError(
        f"transformers has no class {architecture}, and its name is none of a head that is known by it",
        where="config.json: architectures",
        remedy="to convert its base model alone, save that: AutoModel.from_pretrained(MODEL).save_pretrained(FOLDER)",
    )


def load_pretrained(
    source: str, *, trust_remote_code: bool = False, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Pretrained:
    """Load a model and its processor from a folder or from the hub (`owner/name@revision`).

    A compressed folder loads too. Raises ModelError where the model cannot be found, is of an unknown architecture,
    needs code that is not trusted, or lacks weights.
    """
    folder, revision = local_folder(source)
    with silent_transformers():
        config = _config(folder, source, trust_remote_code)
        task = task_of(config)
        model = _model(folder, source, config, task, trust_remote_code, dtype)
        processor = _processor(folder, source, model, trust_remote_code)
    model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides the signature
    return Pretrained(model.eval(), processor, task, source, revision, folder)


def model_class(architecture: object) -> type[PreTrainedModel] | None:
    """Find the model class of transformers that a config's architecture names; None where it is none."""
    import transformers

    named = getattr(transformers, architecture, None) if isinstance(architecture, str) else None
    is_model = isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)
    return named if is_model and named is not transformers.PreTrainedModel else None


def _architecture(config: PretrainedConfig) -> str | None:
    architectures = getattr(config, "architectures", None)
    return str(architectures[0]) if isinstance(architectures, list) and architectures else None


def _config(folder: Path, source: str, trust_remote_code: bool) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        settings = read_json(folder / "config.json")
        if not isinstance(settings, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"config.json of {source} is not valid JSON: {error}",
            where=str(folder / "config.json"),
            remedy="fetch the model again",
        ) from error
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        kind = settings.get("model_type")
        if "auto_map" in settings and not trust_remote_code:
            what, remedy = f"{source} {_OWN_CODE}", _TRUST
        elif kind is None:
            what = f"config.json of {source} names no model_type"
            remedy = "give the folder of a transformers model"
        else:
            what = f"the installed transformers cannot read the model type {kind!r} of {source}: {_first_line(error)}"
            remedy = "upgrade transformers (pip install -U transformers), or choose another model"
        raise ModelError(what, where=str(folder / "config.json"), remedy=remedy) from error


def _model(
    folder: Path, source: str, config: PretrainedConfig, task: Task, trust_remote_code: bool, dtype: torch.dtype
) -> PreTrainedModel:
    import transformers

    # The named class itself, as Auto classes map a config to one head of several; remote code is only known to them.
    architecture, own = _architecture(config), getattr(config, "auto_map", None) or {}
    auto = getattr(transformers, HEADS[task].auto_class)
    named = model_class(architecture)
    if trust_remote_code and str(own.get(auto.__name__)).endswith(f".{architecture}"):
        named = None
    elif named is None and own and not trust_remote_code:
        raise ModelError(f"{source} {_OWN_CODE}: {architecture}", where=str(folder / "config.json"), remedy=_TRUST)
    kind: Any = named or auto
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # should a pooler lack weights, it is the same one each time
        try:
            model, found = kind.from_pretrained(
                folder, config=config, dtype=dtype, output_loading_info=True, trust_remote_code=trust_remote_code
            )
        except CompressError:
            raise
        except Exception as error:  # whatever transformers makes of a damaged config or file
            raise ModelError(
                f"the weights of {source} cannot be loaded: {_first_line(error)}", where=str(folder),
                remedy=_PICKLE if isinstance(error, UnpicklingError) or "weights_only" in str(error)
                else "check that the folder holds the complete weights (*.safetensors) of the model in config.json",
            ) from error  # fmt: skip
    missing = sorted(found["missing_keys"])
    if task == "embedding" and missing and all("pooler" in name.split(".") for name in missing):
        logger.warning("%s has no weights for its pooler, which stays random; token embeddings do not use it", source)
    elif missing:
        raise ModelError(
            f"{source} has no weights for {', '.join(missing[:3])}"
            + (f" and {len(missing) - 3} more" if len(missing) > 3 else ""),
            where=str(folder),
            remedy="a head without weights would be random: use a model trained for the task its config names",
        )
    return model


def _processor(folder: Path, source: str, model: PreTrainedModel, trust_remote_code: bool) -> Any:
    import transformers

    images, speech = model.main_input_name == "pixel_values", model.main_input_name in AUDIO_INPUTS
    text = any((folder / name).is_file() for name in _TOKENIZER_FILES)
    extractor = any((folder / name).is_file() for name in _EXTRACTOR_FILES)
    if not (extractor if images or speech else text and model.main_input_name == "input_ids"):
        return None
    try:
        if speech:
            return Speech(
                transformers.AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=trust_remote_code),
                transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
                if text
                else None,
            )
        if images:  # pillow alone, so that results do not depend on whether torchvision is installed
            return transformers.AutoImageProcessor.from_pretrained(
                folder, backend="pil", trust_remote_code=trust_remote_code
            )
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        kind, extra = ("image processor", "pillow") if images else ("tokenizer", "sentencepiece or tiktoken")
        kind = "feature extractor or tokenizer" if speech else kind
        code = not trust_remote_code and "trust_remote_code" in str(error)
        raise ModelError(
            f"the {kind} of {source} " + (_OWN_CODE if code else f"cannot be loaded: {_first_line(error)}"),
            where=str(folder),
            remedy=_TRUST if code else f"check its files; it may need {extra} to be installed",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
