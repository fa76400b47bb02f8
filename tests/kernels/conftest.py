"""Compiled loops of these tests go to a folder of their own."""

from collections.abc import Iterator

import pytest

from sta_lightning.kernels import build


@pytest.fixture(autouse=True, scope="package")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STA_CACHE", str(tmp_path_factory.mktemp("loops")))
        patch.setattr(build, "_loaded", {})
        yield
