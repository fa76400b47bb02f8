"""From an image as it is stored to the input of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from sta_lightning.encoders.pictures import rgb
from sta_lightning.errors import StaError

_SMALLEST_CROP = 0.9


@dataclass(frozen=True)
class Preprocess:
    """Resize the short side, crop the centre, scale to 0..1, normalise.

    With crops the crop is random instead: between 90% and 100% of the area, at any place, resized
    to the input (the light augmentation that CLIP models are fine-tuned with). Images are never
    mirrored: digits and signs would change their meaning.

    Attributes:
        image_size: Side S of the result, in pixels.
        mean: Mean per channel of pixels scaled to 0..1.
        std: Standard deviation per channel.
        interpolation: ``bicubic`` or ``bilinear``, both with antialiasing.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"

    def __call__(self, image: Any) -> Tensor:
        """Turn one image into float32 ``[3, S, S]``; see :meth:`batch`."""
        return self.batch([image])[0]

    def batch(self, images: Sequence[Any]) -> Tensor:
        """Turn images into float32 ``[B, 3, S, S]``, by the centre crop; see :meth:`pixels`."""
        return self.normalize(self.pixels(images))

    def pixels(self, images: Sequence[Any], crops: Tensor | None = None) -> Tensor:
        """Resize and crop images, as before ``normalize``: uint8 ``[B, 3, S, S]``.

        Args:
            images: PIL images, or uint8 tensors of shape ``[3 or 1, H, W]``; those of one size are
                treated all at once.
            crops: Three numbers of [0, 1) for each image, ``[B, 3]``: its share of the area, and
                the place from above and from the left; centre crops if not given.

        Raises:
            StaError: if an image is neither.
        """
        if crops is None and all(
            isinstance(image, Tensor) and image.shape == images[0].shape for image in images
        ):
            return torch.as_tensor(self._centre(_rgb(torch.stack(list(images)))))
        places = [None] * len(images) if crops is None else crops.tolist()
        return torch.stack([self._pixels(image, place) for image, place in zip(images, places, strict=True)])

    def normalize(self, pixels: Tensor) -> Tensor:
        """Turn uint8 ``[B, 3, S, S]`` into the encoder's float32 input, on the same device."""
        mean, std = (_per_channel(values, pixels.device) for values in (self.mean, self.std))
        scaled: Tensor = pixels.float().div_(255)
        return scaled.sub_(mean).div_(std)

    def _pixels(self, image: Any, place: list[float] | None) -> Tensor:
        image = _rgb(image)
        cropped = self._centre(image) if place is None else self._random(image, *place)
        return cropped if isinstance(cropped, Tensor) else F.pil_to_tensor(cropped)

    def _centre(self, image: Any) -> Any:
        size = [self.image_size, self.image_size]
        width, height = F.get_image_size(image)
        if min(width, height) != self.image_size:
            image = F.resize(image, [self.image_size], self._mode, antialias=True)
        return image if [height, width] == size else F.center_crop(image, size)

    def _random(self, image: Any, share: float, down: float, across: float) -> Any:
        width, height = F.get_image_size(image)
        # A square as large as fits, times the root of the share of its area.
        side = max(1, round(min(width, height) * (_SMALLEST_CROP + (1 - _SMALLEST_CROP) * share) ** 0.5))
        top, left = round(down * (height - side)), round(across * (width - side))
        target = [self.image_size, self.image_size]
        return F.resized_crop(image, top, left, side, side, target, self._mode, antialias=True)

    @property
    def _mode(self) -> InterpolationMode:
        return InterpolationMode(self.interpolation)


@lru_cache
def _per_channel(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """Kept for later batches: a copy to a GPU waits for it."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(3, 1, 1)


def _rgb(image: Any) -> Any:
    """Grey images (and palettes, and transparency) become red, green, blue."""
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else rgb(image)
    found = type(image).__name__
    if isinstance(image, Tensor):
        if image.dtype == torch.uint8 and image.ndim in (3, 4) and image.shape[-3] in (1, 3):
            return image.expand(*image.shape[:-3], 3, -1, -1)
        found = f"a tensor {image.dtype} {tuple(image.shape)}"
    raise StaError(f"An image must be a PIL image or a uint8 tensor [3, height, width]; found {found}.")
