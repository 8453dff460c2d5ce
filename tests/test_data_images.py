"""Images through the model's processor, augmented for training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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

from compress.data.images import make_images
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


COLOURS: list[dict[str, Any]] = [
    {}, {"image_mean": [0.4, 0.5, 0.1], "image_std": [0.2, 0.3, 0.7]},
    {"do_normalize": False}, {"do_rescale": False, "do_normalize": False},
]  # fmt: skip


@pytest.mark.parametrize("settings", COLOURS)
def test_a_processors_colours_are_applied_to_a_batch_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    model = pretrained("vit")
    for key, value in settings.items():
        monkeypatch.setattr(model.processor, key, value)
    examples = make_images(sorted(write_images(tmp_path / "a", 6).iterdir()), model)
    assert examples.colours is not None
    rows = np.arange(6)
    found = examples.collate(rows, (1, 2))["pixel_values"]
    wanted = replace(examples, colours=None).collate(rows, (1, 2))["pixel_values"]
    assert found.dtype == wanted.dtype == torch.float32
    assert found.is_contiguous()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_processor_that_does_more_than_colours_is_called(tmp_path: Path) -> None:
    model = pretrained("vit")

    def mirrored(images: list[Any], **options: Any) -> Any:
        return {"pixel_values": model.processor(images=images, **options)["pixel_values"].flip(-1)}

    files = sorted(write_images(tmp_path / "a", 4).iterdir())
    plain = make_images(files, model)
    examples = make_images(files, SimpleNamespace(model=model.model, processor=mirrored))
    assert examples.colours is None
    rows = np.arange(4)
    ours, theirs = (part.collate(rows, (0, 0))["pixel_values"] for part in (examples, plain))
    torch.testing.assert_close(ours, theirs.flip(-1), rtol=1e-5, atol=1e-5)


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
