"""Configuration files are checked, by name and line, before anything heavy looks at them."""

from pathlib import Path

import pytest

from sta_lightning.cli.configs import asked_for, read_config
from sta_lightning.errors import StaError


def test_reads_a_mapping_and_an_empty_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model: {p: 0.7}\n")
    assert read_config(str(file)) == {"model": {"p": 0.7}}
    file.write_text("# nothing\n")
    assert read_config(str(file)) == {}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"model: {p: 0.7\ndata: 1\n", "not valid YAML at line 2"),
        (b"model:\n\tp: 1\n", "not valid YAML at line 2"),
        (b"- model\n", "expected a mapping"),
        (b"\xff\xfe\x00x", "YAML"),
    ],
)
def test_bad_content_is_told_with_its_place(content: bytes, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(StaError, match=expected) as caught:
        read_config(str(file))
    assert "bad.yaml" in str(caught.value)


def test_missing_file_lists_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("")
    with pytest.raises(StaError, match=r"does not exist.*digits\.yaml"):
        read_config(str(tmp_path / "digit.yaml"))
    with pytest.raises(StaError, match="is a folder"):
        read_config(str(tmp_path))


def test_asked_for_takes_the_last_word() -> None:
    configs = [{"data": {"task": "a"}}, {"data": {"init_args": {"task": "b"}}}, {"model": {"task": "c"}}]
    assert asked_for([], configs, "data", "task") == "b"
    assert asked_for(["--data.task=d"], configs, "data", "task") == "d"
    assert asked_for(["--data.init_args.task", "e"], configs, "data", "task") == "e"
    assert asked_for(["--data.image_size=64"], [], "data", "image_size") == 64
    assert asked_for([], [{"data": "Name"}], "data", "task") is None
