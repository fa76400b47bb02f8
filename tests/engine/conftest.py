"""Compiled loops and hashes of these tests go to a folder of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def kept_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for all tests of the engine and their child processes."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache(kept_cache: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STA_CACHE", str(kept_cache))
        yield
