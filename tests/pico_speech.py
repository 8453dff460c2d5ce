"""Pico models that hear or that write, with what turns data into their inputs, and recordings for them."""

from __future__ import annotations

import json
from pathlib import Path

import families
import numpy as np
import soundfile
import transformers
from pico_tokenizer import VOCABULARY, gpt_like, llama_like
from transformers import PreTrainedModel

RATE = 16_000
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}


def whisper(vocab: int = VOCABULARY) -> PreTrainedModel:
    """One second a window: 100 frames of 16 mel bands, 50 positions."""
    made = families.build(
        "WhisperForConditionalGeneration", "WhisperConfig", vocab_size=vocab, d_model=32, encoder_layers=2,
        decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64, encoder_attention_heads=4, decoder_attention_heads=4,
        num_mel_bins=16, max_source_positions=50, max_target_positions=32, suppress_tokens=None,
        begin_suppress_tokens=None, **_SPECIAL,
    )  # fmt: skip
    made.generation_config.begin_suppress_tokens = made.generation_config.suppress_tokens = None
    return made


def wav2vec2(vocab: int = VOCABULARY, norm: str = "layer") -> PreTrainedModel:
    """A position for 320 samples, 50 a second."""
    strides = {"conv_stride": (20, 16), "conv_kernel": (20, 16)}
    settings = {**families._AUDIO, **strides, "vocab_size": vocab, "feat_extract_norm": norm, "pad_token_id": 0}
    return families.build("Wav2Vec2ForCTC", "Wav2Vec2Config", **settings, do_stable_layer_norm=norm == "layer")


def t5(vocab: int = VOCABULARY) -> PreTrainedModel:
    return families.build(
        "T5ForConditionalGeneration", "T5Config", **{**families._T5, "vocab_size": vocab}, pad_token_id=0,
        eos_token_id=2, decoder_start_token_id=0,
    )  # fmt: skip


def save(folder: Path, family: str) -> Path:
    """Save a pico model with its feature extractor and tokenizer, as a folder that transformers loads."""
    model = {"whisper": whisper, "wav2vec2": wav2vec2, "t5": t5}[family]()
    model.save_pretrained(folder)
    tokenizer = llama_like() if family == "t5" else gpt_like()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    if family == "t5":
        tokenizer.add_special_tokens({"eos_token": "</s>"})
    tokenizer.save_pretrained(folder)
    if family == "whisper":
        transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(folder)
    elif family == "wav2vec2":
        transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return folder


def tone(seconds: float, seed: int, rate: int = RATE) -> np.ndarray:
    """Two notes and noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    notes = generator.uniform(200, 2000, 2)
    sound = sum(np.sin(2 * np.pi * note * time) for note in notes) * 0.2 + generator.normal(0, 0.02, len(time))
    return sound.astype(np.float32)


def write_recordings(
    folder: Path, count: int, seconds: tuple[float, float] = (0.2, 0.8), transcripts: bool = False
) -> Path:
    """Write WAV and FLAC files of several rates and lengths."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    rows = []
    for index in range(count):
        rate = (RATE, 22_050, 8_000)[index % 3]
        name = f"{index:03}.{'flac' if index % 2 else 'wav'}"
        sound = tone(float(generator.uniform(*seconds)), index, rate)
        soundfile.write(folder / name, np.stack([sound, sound], 1) if index % 4 == 0 else sound, rate)
        rows.append({"file_name": name, "text": " ".join(generator.choice(["one", "two", "three"], 3))})
    if transcripts:
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
