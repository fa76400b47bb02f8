"""A pretrained encoder and quiet trainers for the tests of modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.toys import register_toys, write_pretrained


@pytest.fixture(autouse=True, scope="session")
def _toys() -> None:
    register_toys()


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pretrained(tmp_path_factory.mktemp("pretrained") / "pretrained.safetensors")
