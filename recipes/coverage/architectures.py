"""The architectures of transformers' mappings that hold models to convert."""

from __future__ import annotations

from dataclasses import dataclass

_MAPPINGS = {
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForCTC": "MODEL_FOR_CTC_MAPPING_NAMES",
    "AutoModelForSpeechSeq2Seq": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "AutoModelForAudioClassification": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
}


@dataclass(frozen=True)
class Architecture:
    """A model class, the model type that builds it and the Auto class that finds it."""

    name: str
    model_type: str
    auto: str


def architectures() -> list[Architecture]:
    """Every class of the mappings once, by the first mapping and model type that name it."""
    from transformers.models.auto import modeling_auto

    found: dict[str, Architecture] = {}
    for auto, mapping in _MAPPINGS.items():
        for model_type, classes in getattr(modeling_auto, mapping).items():
            for name in [classes] if isinstance(classes, str) else classes[:1]:
                found.setdefault(name, Architecture(name, model_type, auto))
    return list(found.values())
