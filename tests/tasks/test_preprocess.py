from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from sta_lightning.errors import StaError
from sta_lightning.tasks import Preprocess

MEAN, STD = (0.48, 0.45, 0.40), (0.26, 0.27, 0.28)
HALF = (0.5, 0.5, 0.5)


def photo(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(50, 30), (31, 64), (24, 24), (20, 17), (100, 24)])
def test_equals_torchvisions_transforms(size: tuple[int, int], interpolation: str) -> None:
    expected = transforms.Compose(
        [
            transforms.Resize(24, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(24),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    image = photo(*size)
    found = Preprocess(24, MEAN, STD, interpolation)(image)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA"])
def test_every_kind_of_image_becomes_three_channels(mode: str) -> None:
    image = photo(12, 12, mode)
    found = Preprocess(12, MEAN, STD)(image)
    assert torch.equal(found, Preprocess(12, MEAN, STD)(image.convert("RGB")))


def test_tensors_of_the_right_size_are_only_scaled() -> None:
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    prepare = Preprocess(32, HALF, HALF)
    assert torch.equal(prepare.batch(list(images)), (images.float() / 255 - 0.5) / 0.5)
    assert torch.equal(prepare(images[2]), prepare.batch(list(images))[2])


def test_grey_tensors_become_three_channels() -> None:
    grey = torch.randint(0, 256, (1, 32, 32), dtype=torch.uint8)
    found = Preprocess(32, HALF, HALF)(grey)
    assert torch.equal(found[0], found[2])


def test_a_batch_is_what_its_images_are_alone() -> None:
    prepare = Preprocess(16, MEAN, STD)
    mixed = [photo(20, 30), torch.randint(0, 256, (3, 40, 16), dtype=torch.uint8), photo(16, 16, "L")]
    alone = torch.stack([prepare(image) for image in mixed])
    assert torch.equal(prepare.batch(mixed), alone)
    same = [torch.randint(0, 256, (3, 21, 30), dtype=torch.uint8) for _ in range(4)]
    torch.testing.assert_close(prepare.batch(same), torch.stack([prepare(image) for image in same]))


def drawn(count: int, seed: int) -> torch.Tensor:
    """Random crops."""
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed))


def test_random_crops_follow_what_was_drawn_alone() -> None:
    prepare, image = Preprocess(16, MEAN, STD), photo(40, 30)
    before = torch.get_rng_state()
    first = prepare.pixels([image] * 4, drawn(4, 1))
    assert torch.equal(first, prepare.pixels([image] * 4, drawn(4, 1)))
    assert not torch.equal(first, prepare.pixels([image] * 4, drawn(4, 2)))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(before, torch.get_rng_state())
    assert first.shape == (4, 3, 16, 16)


def test_every_image_has_its_own_crop() -> None:
    prepare, images = Preprocess(16, MEAN, STD), [photo(40, 30, seed=seed) for seed in range(3)]
    crops = drawn(3, 1)
    found = prepare.pixels(images, crops)
    assert torch.equal(found[1:], prepare.pixels(images[1:], crops[1:]))
    corner = prepare.pixels([torch.arange(256, dtype=torch.uint8).view(1, 16, 16)], torch.zeros(1, 3))
    assert corner.dtype == torch.uint8
    assert corner[0, 0, 0, 0] < 3, "no place from above and from the left"
    with pytest.raises(ValueError, match="shorter"):
        prepare.pixels(images, crops[:2])


def test_random_crops_keep_most_of_the_image_and_never_mirror() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).mul(4).expand(3, 64, 64).contiguous()
    found = Preprocess(64, MEAN, STD).pixels([ramp] * 30, drawn(30, 0)).float()
    steps = (found[..., -1] - found[..., 0]).mean(dim=(1, 2)) / (4 * 63)
    assert bool((steps > 0.93).all())
    assert bool((steps < 1.001).all())
    assert steps.std() > 0.005


def test_other_things_are_refused() -> None:
    with pytest.raises(StaError, match=r"PIL image or a uint8 tensor.*float32"):
        Preprocess(16, MEAN, STD)(torch.rand(3, 16, 16))
    with pytest.raises(StaError, match="ndarray"):
        Preprocess(16, MEAN, STD)(np.zeros((16, 16, 3), dtype=np.uint8))
