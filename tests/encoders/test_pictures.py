"""Images of every depth become red, green and blue of 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sta_lightning.encoders.pictures import read_image, rgb
from sta_lightning.errors import StaError

RAMP = np.linspace(0, 1, 1024).reshape(32, 32)


def grey(image: Image.Image) -> npt.NDArray[Any]:
    """The value of each pixel; the three channels must agree."""
    pixels = np.asarray(image)
    assert image.mode == "RGB"
    assert pixels.dtype == np.uint8
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].astype(np.int64)


@pytest.mark.parametrize("ending", ["png", "tif", "pgm", "jp2"])
def test_16_bits_are_scaled(tmp_path: Path, ending: str) -> None:
    values = np.rint(RAMP * 65535).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{ending}")
    assert (grey(read_image(tmp_path / f"a.{ending}")) == np.rint(values / 257)).all()


def test_16_bits_of_either_byte_order_are_scaled() -> None:
    values = np.rint(RAMP * 65535).astype(np.uint16)
    for mode, kind in (("I;16", "<u2"), ("I;16B", ">u2")):
        image = Image.frombytes(mode, (32, 32), values.astype(kind).tobytes())
        assert (grey(rgb(image)) == np.rint(values / 257)).all()


def test_what_was_8_bits_comes_back_from_16() -> None:
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    assert (grey(rgb(Image.fromarray(values * 257))) == values).all()


def test_floats_between_0_and_1_are_scaled(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "a.tif")
    assert (grey(read_image(tmp_path / "a.tif")) == np.rint(RAMP.astype(np.float32) * 255)).all()


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (RAMP.astype(np.float32) * 255, "floats from 0 to 255"),
        (RAMP.astype(np.float32) - 0.5, "floats from -0.5 to 0.5"),
        (np.full((4, 4), np.nan, np.float32), "floats from nan"),
        ((RAMP * 65535).astype(np.int32), "integers of 32 bits"),
    ],
)
def test_values_of_no_known_range_are_refused_by_name(
    tmp_path: Path, values: npt.NDArray[Any], complaint: str
) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(StaError, match=rf"a\.tif cannot be decoded: .*{complaint}.*8 or 16 bits"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_other_modes_are_as_pillow_has_them(mode: str) -> None:
    image = Image.fromarray((RAMP * 255).astype(np.uint8)).convert("RGB").convert(mode)
    assert (np.asarray(rgb(image)) == np.asarray(image.convert("RGB"))).all()
