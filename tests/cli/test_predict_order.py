"""Which pictures are found, and in which order."""

from pathlib import Path

import pytest

from sta_lightning.cli.pictures import find_pictures, natural_key
from sta_lightning.errors import StaError


def test_numbers_count_as_numbers() -> None:
    names = [
        "b",
        "a10.png",
        "a2.png",
        "A3.png",
        "a2b1",
        "a02.png",
        "10",
        "9",
        "x1/y",
        "x1/a10",
        "x1/a9",
        "x.d/1",
    ]
    found = [path.as_posix() for path in sorted(map(Path, names), key=natural_key)]
    assert found.index("9") < found.index("10")
    assert found.index("a2.png") < found.index("A3.png") < found.index("a10.png")
    assert found.index("x1/a9") < found.index("x1/a10") < found.index("x1/y")


def test_numbered_folders_are_found(tmp_path: Path) -> None:
    for name in ("2024", "2024/12", "2024/3"):
        (tmp_path / name).mkdir()
    for name in ("2024/12/1.PNG", "2024/3/11.png", "2024/3/2.png"):
        (tmp_path / name).write_text("")
    found, _ = find_pictures([tmp_path / "2024"])
    assert [p.relative_to(tmp_path).as_posix() for p in found] == [
        "2024/3/2.png",
        "2024/3/11.png",
        "2024/12/1.PNG",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(StaError, match="holds no pictures"):
        find_pictures([tmp_path / "2024", tmp_path / "empty"])
