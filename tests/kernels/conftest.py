"""Compiled loops of these tests go to a folder of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def kept_loops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for all tests of the loops."""
    return tmp_path_factory.mktemp("loops")


@pytest.fixture(autouse=True)
def _cache(kept_loops: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STA_CACHE", str(kept_loops))
        yield
