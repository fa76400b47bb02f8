"""Fixtures that several rooms share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# No test asserts a time: the machine may be busy.
settings.register_profile("sta", deadline=None)
settings.load_profile("sta")

# Before anything imports torch: tests are many small operations, which threads only slow down.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the tests' own: the user's is not filled, and decides no test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def tiny_suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A few images per split of the embedded suite, in a folder that becomes the current one."""
    from sta_lightning.tasks.miniature import suite

    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STA_CACHE", str(folder / "cache"))
        patch.setattr(suite, "SPLIT_SIZES", {"train": 48, "validation": 16, "test": 24})
        patch.chdir(folder)
        yield folder
