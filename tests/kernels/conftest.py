"""Compiled loops of these tests go to a folder of their own."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from sta_lightning.kernels import build


@pytest.fixture(scope="session")
def kept_loops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for all tests of the loops."""
    return tmp_path_factory.mktemp("loops")


@pytest.fixture(scope="session")
def loaded() -> dict[str, ctypes.CDLL]:
    """Libraries of these tests' own: each can watch SIGBUS a few times only, and earlier tests may have used that up."""
    return {}


@pytest.fixture(autouse=True)
def _cache(kept_loops: Path, loaded: dict[str, ctypes.CDLL]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STA_CACHE", str(kept_loops))
        patch.setattr(build, "_loaded", loaded)
        yield
