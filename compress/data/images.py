"""Images as model inputs, through the model's own image processor; training images are cropped and mirrored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..errors import DataError
from .sequences import Draw, Hasher, OneStream, Rows

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..models import Pretrained

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
_AREA = (0.5, 1.0)  # share of an image that a random crop keeps
_ASPECT = (3 / 4, 4 / 3)
_ATTEMPTS = 10
_PATCH = 16  # of models whose config names none


@dataclass(frozen=True)
class Colours:
    """A scale and an offset for each channel [3], which take bytes to what a model reads.

    For a batch at once this is several times as fast as an image processor, and threads do not wait for each other.
    """

    scale: Tensor
    offset: Tensor

    def __call__(self, images: Sequence[Image]) -> Tensor:
        """Images of one size -> [B, 3, H, W] float32."""
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        out = torch.empty(len(images), 3, *pixels.shape[1:3])
        out.copy_(pixels.permute(0, 3, 1, 2))
        return out.mul_(self.scale[:, None, None]).add_(self.offset[:, None, None])

    @classmethod
    def of(cls, processor: Any, size: tuple[int, int]) -> Colours | None:
        """Read them off what a processor makes of black, white and noise; None where it does anything else."""
        noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        black, white, noisy = (_pillow().fromarray(part) for part in (noise * 0, noise * 0 + 255, noise))
        made = _unresized(processor, [black, white, noisy])
        if made.shape[1:] != (3, *size):
            return None
        offset = made[0, :, 0, 0].clone()
        found = cls((made[1, :, 0, 0] - offset) / 255, offset)
        return found if torch.allclose(found([black, white, noisy]), made, rtol=1e-4, atol=1e-5) else None


@dataclass(frozen=True)
class Images(OneStream):
    """Images that are opened when their batch is made: files, or the decoded rows of a data set.

    `size` is height and width of what the processor gives; `tokens` counts the positions of an image at a site;
    `colours` is all that the processor does to an image of that size, where it is no more than that.
    """

    pictures: Sequence[Any]
    processor: Any
    size: tuple[int, int]
    tokens: int
    colours: Colours | None = None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each image."""
        return np.full(len(self.pictures), self.tokens, np.int64)

    def collate(self, rows: Rows, draw: Draw | None) -> dict[str, Tensor]:
        """Give pixel_values [B, C, H, W] float32; with `draw`, of a random crop, mirrored half of the time."""
        images = [open_picture(self.pictures[int(row)]) for row in rows]
        if draw is None:
            return {"pixel_values": self.processor(images=images, return_tensors="pt")["pixel_values"].float()}
        images = [self._augmented(image, (*draw, int(row))) for image, row in zip(images, rows, strict=True)]
        return {"pixel_values": _unresized(self.processor, images) if self.colours is None else self.colours(images)}

    def targets(self, rows: Rows, inputs: dict[str, Tensor]) -> None:
        """Images predict no tokens."""

    def hash_into(self, hasher: Hasher) -> None:
        """Feed a hash the images' bytes and the processor's settings."""
        for picture in tqdm(self.pictures, desc="hashing", unit=" images", disable=None, delay=2):
            data = picture.read_bytes() if isinstance(picture, Path) else open_picture(picture).tobytes()
            hasher.update(len(data).to_bytes(8, "little"))
            hasher.update(data)
        hasher.update(self.processor.to_json_string().encode())

    def _augmented(self, image: Image, key: tuple[int, ...]) -> Image:
        from PIL.Image import Resampling, Transpose

        generator = np.random.default_rng(key)
        height, width = self.size
        resample = Resampling(getattr(self.processor, "resample", None) or Resampling.BILINEAR)
        image = image.resize((width, height), resample, box=_random_box(image.size, generator))
        return image.transpose(Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else image


def make_images(pictures: Sequence[Any], pretrained: Pretrained) -> Images:
    """Take pictures for a model. Raises DataError where one cannot be read, or Pillow is missing."""
    for picture in pictures if isinstance(pictures, list) else ():
        open_picture(picture, decode=False)
    processor = pretrained.processor
    blank = processor(images=[_blank()], return_tensors="pt")["pixel_values"]
    height, width = blank.shape[-2:]
    size = height, width
    return Images(pictures, processor, size, patches(pretrained.model, blank), Colours.of(processor, size))


def _unresized(processor: Any, images: Sequence[Image]) -> Tensor:
    """What a processor makes of images that have the model's size already, [B, C, H, W] float32."""
    options = {"do_resize": False, **({"do_center_crop": False} if hasattr(processor, "do_center_crop") else {})}
    pixels: Tensor = processor(images=images, return_tensors="pt", **options)["pixel_values"]
    return pixels.float()


def patches(model: Any, pixels: Tensor) -> int:
    """Count the positions of an image [..., H, W] at a site: its patches and one more."""
    config = model.config
    patch = next(
        (
            size
            for part in (config, getattr(config, "vision_config", None), getattr(config, "encoder", None))
            if (size := getattr(part, "patch_size", None))
        ),
        _PATCH,
    )
    height, width = (patch, patch) if isinstance(patch, int) else tuple(patch)[-2:]
    return int(1 + (pixels.shape[-2] // height) * (pixels.shape[-1] // width))


def open_picture(picture: Any, decode: bool = True) -> Image:
    """Open a file, or take a decoded image, in RGB; `decode=False` reads the head alone. Raises DataError."""
    Image = _pillow()
    if not isinstance(picture, Path):
        return picture.convert("RGB")
    try:
        with Image.open(picture) as image:
            return image.convert("RGB") if decode else image
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"not a readable image: {error}", where=str(picture), remedy="repair or remove it") from None


def _blank() -> Image:
    return _pillow().new("RGB", (64, 64))


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise DataError(
            "images need Pillow, which is not installed", remedy="pip install 'compress-lookup[vision]'"
        ) from None
    return Image


def _random_box(size: tuple[int, int], generator: np.random.Generator) -> tuple[float, float, float, float]:
    """Draw left, top, right, bottom of a crop with a random area and aspect (Szegedy et al. 2015)."""
    width, height = size
    for _ in range(_ATTEMPTS):
        area = width * height * generator.uniform(*_AREA)
        aspect = math.exp(generator.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        crop_width, crop_height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if crop_width <= width and crop_height <= height:
            left = generator.uniform(0, width - crop_width)
            top = generator.uniform(0, height - crop_height)
            return left, top, left + crop_width, top + crop_height
    return 0.0, 0.0, float(width), float(height)
