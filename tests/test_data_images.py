"""Images through the model's processor, augmented for training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_samples import (
    corpus,
    pretrained,
    same,
    write_images,
)
from PIL import Image

from compress.streams import real_tokens


def test_images_go_through_the_models_processor(tmp_path: Path) -> None:
    whole = corpus(write_images(tmp_path / "a", 40), "vit", source="images")
    assert (whole.train.tokens, whole.holdout.tokens) == (30 * 17, 10 * 17)  # 4 x 4 patches and one more
    assert [len(batch["pixel_values"]) for batch in whole.train.batches(170)] == [10, 10, 10]
    rows = whole.holdout.rows[:3]
    images = [Image.open(tmp_path / "a" / f"{row:03}.png").convert("RGB") for row in rows]
    wanted = pretrained("vit").processor(images, return_tensors="pt")["pixel_values"]
    given = whole.holdout.examples.collate(rows, None)["pixel_values"]
    assert torch.equal(given, wanted)
    assert given.dtype == torch.float32
    assert real_tokens(None, {"pixel_values": given}, "main", 17) is None


def test_training_images_are_augmented_by_seed_step_and_image(tmp_path: Path) -> None:
    examples = corpus(write_images(tmp_path / "a", 8), "vit", source="images").train.examples
    rows = np.arange(4)
    batches = [examples.collate(rows, draw)["pixel_values"] for draw in ((0, 0), (0, 0), (0, 1), (1, 0), None)]
    assert torch.equal(batches[0], batches[1])
    assert len({batch.numpy().tobytes() for batch in batches}) == 4
    alone = examples.collate(rows[2:3], (0, 0))["pixel_values"][0]
    assert torch.equal(alone, batches[0][2])


def test_training_batches_of_images_differ_from_epoch_to_epoch(tmp_path: Path) -> None:
    train = corpus(write_images(tmp_path / "a", 8), "vit", source="images").train
    first, later = (train.batch(step * train.steps_per_epoch(10_000), 10_000, 0)["pixel_values"] for step in (0, 1))
    assert {image.numpy().tobytes() for image in first}.isdisjoint(image.numpy().tobytes() for image in later)
    assert same(train.batch(1, 34, 0), train.batch(1, 34, 0))


def test_images_are_capped_by_a_sample(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "a", 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compress.data.corpus.LEAST_HELD_OUT", 85)
        whole = corpus(folder, "vit", source="images", tokens=340)
    assert whole.train.tokens == 340
    names = [picture.stem for picture in whole.train.examples.pictures]  # type: ignore[attr-defined]
    assert names != [f"{index:03}" for index in range(len(names))]
