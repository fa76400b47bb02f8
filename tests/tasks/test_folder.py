from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from sta_lightning.errors import StaError
from sta_lightning.tasks import Task, get_task
from tests.tasks.layouts import picture


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split, count in (("train", 4), ("val", 2)):
        for number, name in enumerate(("n01_cat", "n02", "n03")):
            for image in range(count):
                picture(
                    tmp_path / "data" / split / name / f"{image}.png",
                    (6 + number, 6),
                    "L" if image else "RGB",
                )
    for name in ("n02_big_dog.JPEG", "n01_tench.jpg", "n03_ping-pong_ball.PNG"):
        path = tmp_path / "data" / "flat" / name
        picture(path)
    return tmp_path / "data"


def load(folder: Path, text: str) -> Task:
    path = folder / "task.yaml"
    path.write_text(text)
    return get_task(str(path))


def labels(data: Any) -> list[int]:
    return [int(data[index][1]) for index in range(len(data))]


def test_paths_are_relative_to_the_file(data: Path) -> None:
    task = load(data, "{name: pets, train: train, test: val}")
    assert (task.name, task.class_names) == ("pets", ("n01 cat", "n02", "n03"))
    assert labels(task.dataset("test")) == [0, 0, 1, 1, 2, 2]
    assert len(cast(Any, task.dataset("train"))) == 11
    assert len(cast(Any, task.dataset("validation"))) == 1
    opened = pickle.loads(pickle.dumps(task.dataset("train")))
    assert isinstance(opened[0][0], Image.Image)


def test_name_and_templates_have_defaults(data: Path) -> None:
    task = load(data, "{test: val}")
    assert task.name == "task"
    assert all("{}" in template for template in task.templates)
    assert (task.splits, task.head) == (("test",), "auto")


def test_mapping_names_and_chooses_classes(data: Path) -> None:
    task = load(data, "{train: train, test: val, class_names: {n03: bird, n01_cat: cat}}")
    assert task.class_names == ("cat", "bird")
    assert labels(task.dataset("test")) == [0, 0, 1, 1]
    image, _ = cast(Any, task.dataset("test"))[2]
    assert image.size == (8, 6)


def test_include_and_list_of_names(data: Path) -> None:
    task = load(data, "{train: train, test: val, include: [n03, n02], class_names: [dog, bird]}")
    assert task.class_names == ("dog", "bird")
    assert labels(task.dataset("test")) == [0, 0, 1, 1]


def test_validation_folder_is_used_where_given(data: Path) -> None:
    task = load(data, "{train: train, validation: val, test: val}")
    assert len(cast(Any, task.dataset("train"))) == 12
    assert len(cast(Any, task.dataset("validation"))) == 6


def test_root_may_come_from_environment_file_or_option(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    text = "{root: $SOME_IMAGES, train: train, test: val, class_names: {n02: dog}}"
    monkeypatch.delenv("SOME_IMAGES", raising=False)
    task = load(other, text)
    with pytest.raises(StaError, match=r"\$SOME_IMAGES.*not set.*`root`"):
        task.dataset("test")
    assert len(cast(Any, task.dataset("test", data))) == 2
    monkeypatch.setenv("SOME_IMAGES", str(data))
    assert len(cast(Any, task.dataset("test"))) == 2
    relative = load(other, "{root: ../data, test: val}")
    assert len(cast(Any, relative.dataset("test"))) == 6
    with pytest.raises(StaError, match="elsewhere"):
        relative.dataset("test", other)


def test_flat_folder_has_one_image_a_class(data: Path) -> None:
    task = load(data, "{layout: flat, test: flat, head: own}")
    assert task.class_names == ("tench", "big dog", "ping-pong ball")
    assert (task.head, task.splits) == ("own", ("test",))
    opened = cast(Any, task.dataset("test"))
    assert labels(opened) == [0, 1, 2]
    assert opened[0][0].mode == "RGB"
    assert len(pickle.loads(pickle.dumps(opened))) == 3


def test_flat_folder_must_have_every_class(data: Path) -> None:
    task = load(data, "{layout: flat, test: flat, class_names: imagenet}")
    assert len(task.class_names) == 1000
    with pytest.raises(StaError, match=r"1000 classes.*holds 3"):
        task.dataset("test")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{train: train}", "test: <folder>"),
        ("{test: val, trian: train}", "unknown keys 'trian'.*'train'"),
        ("[train, val]", "keys and values"),
        ("{test: [", "not a YAML file"),
        ("{test: val, layout: tree}", "layout: tree.*'folders', 'flat'"),
        ("{test: val, head: best}", "head: best"),
        ("{test: nowhere}", "nowhere.*no such folder"),
        ("{test: val, class_names: [a, b]}", "2 names for 3"),
        ("{test: val, include: n02}", "`include` should be a list"),
        ("{test: val, include: [n02, n09], class_names: {n02: dog}}", "'n09'"),
        ("{test: val, templates: [a photo]}", "'a photo'"),
        ("{layout: flat, test: flat, include: [n02]}", "flat layout has none"),
        ("{layout: flat, test: flat, class_names: {a: b}}", "cannot be a mapping"),
        ("{test: val, class_names: nonsense}", "'nonsense' was asked for"),
        ("{test: val, class_names: [cat, dog, cat]}", "more than one class is named 'cat'"),
        ("{test: val, class_names: {n02: dog, n03: dog}}", "more than one class is named 'dog'"),
        ("{test: val, class_names: [cat, no, yes]}", "has False where a text should be.*quotes"),
        ("{test: val, csv: a.csv, huggingface: {path: a}}", "both `csv` and `huggingface`"),
        ("{train: train, csv: a.csv}", "unknown keys 'train'"),
    ],
)
def test_mistakes_in_the_file_are_told(data: Path, text: str, complaint: str) -> None:
    with pytest.raises(StaError, match=f"(?s){complaint}"):
        load(data, text)


def test_missing_file_class_or_image_is_told(data: Path) -> None:
    with pytest.raises(StaError, match="no such file"):
        get_task(str(data / "absent.yaml"))
    task = load(data, "{test: val, class_names: {n02: dog, n07: cow}}")
    with pytest.raises(StaError, match=r"'n07'.*no folder in"):
        task.dataset("test")
    (data / "val" / "n07").mkdir()
    with pytest.raises(StaError, match="n07"):
        task.dataset("test")


def test_folders_that_are_no_class_are_told_unless_classes_are_chosen(data: Path) -> None:
    picture(data / "val" / "n99" / "0.png")
    for text in ("{train: train, test: val}", "{train: train, test: val, class_names: [a, b, c]}"):
        task = load(data, text)
        assert len(cast(Any, task.dataset("train"))) == 11
        with pytest.raises(StaError, match=r"'n99'.*none of the 3 classes.*`include`"):
            task.dataset("test")
    chosen = load(data, "{train: train, test: val, include: [n01_cat, n02, n03]}")
    assert len(cast(Any, chosen.dataset("test"))) == 6
    (data / "train" / ".thumbnails").mkdir()
    assert len(load(data, "{test: train}").class_names) == 3


def test_an_image_that_does_not_decode_is_named_when_met(data: Path) -> None:
    for path in (data / "val" / "n02" / "0.png", data / "flat" / "n02_big_dog.JPEG"):
        path.write_bytes(path.read_bytes()[:40])
    data_set = cast(Any, load(data, "{train: train, test: val}").dataset("test"))
    assert data_set[0][1] == 0
    with pytest.raises(StaError, match=r"n02/0\.png cannot be decoded.*Replace the file"):
        data_set[2]
    with pytest.raises(StaError, match=r"big_dog\.JPEG cannot be decoded"):
        cast(Any, load(data, "{layout: flat, test: flat}").dataset("test"))[1]


def test_hidden_files_and_folders_are_no_images(data: Path) -> None:
    train = data / "train"
    picture(train / "n02" / ".ipynb_checkpoints" / "0-checkpoint.png")
    picture(train / "n02" / "__MACOSX" / "0.png")
    picture(train / "__MACOSX" / "n02" / "0.png")
    picture(train / "n02" / "more" / "5.png")
    (train / "n02" / "._0.png").write_bytes(b"\0\5\26\7")
    (data / "flat" / "._n01_tench.jpg").write_bytes(b"\0\5\26\7")
    opened = load(data, "{test: train}").dataset("test")
    assert labels(opened) == [0] * 4 + [1] * 5 + [2] * 4
    assert len(cast(Any, load(data, "{layout: flat, test: flat}").dataset("test"))) == 3


def test_every_ending_that_is_read_and_what_is_left_out_is_told(data: Path) -> None:
    folder = data / "val" / "n02"
    whole = Image.new("RGB", (8, 8), "red")
    for ending in (".gif", ".JFIF", ".webp", ".avif", ".jpe", ".pgm", ".jp2", ".tga", ".dib", ".apng"):
        kind = {".jfif": "JPEG", ".jpe": "JPEG", ".apng": "PNG"}.get(ending.lower())
        whole.convert("L" if ending == ".pgm" else "RGB").save(folder / f"x{ending}", kind)
    opened = cast(Any, load(data, "{test: val}").dataset("test"))
    assert labels(opened) == [0] * 2 + [1] * 12 + [2] * 2
    assert all(opened[index][0].mode == "RGB" for index in range(len(opened)))
    (folder / "x.heic").write_bytes(b"of a telephone")
    with pytest.warns(UserWarning, match=r"test images of .*: 1 files are left out, '.*x\.heic'.*\.webp"):
        assert labels(load(data, "{test: val}").dataset("test")) == labels(opened)
    (data / "flat" / "notes.txt").write_text("not an image")
    with pytest.warns(UserWarning, match=r"1 files are left out, '.*notes\.txt'"):
        load(data, "{layout: flat, test: flat}").dataset("test")
    for image in (data / "val" / "n03").iterdir():
        image.rename(image.with_suffix(".heic"))
    with (
        pytest.warns(UserWarning, match="3 files are left out"),
        pytest.raises(StaError, match=r"'n03'.*no test image"),
    ):
        load(data, "{test: val}").dataset("test")


@pytest.mark.skipif(os.name == "nt", reason="links take rights there")
def test_linked_folders_are_followed(data: Path) -> None:
    (data / "val" / "n02" / "more").symlink_to(data / "train" / "n02", target_is_directory=True)
    assert labels(load(data, "{test: val}").dataset("test")) == [0] * 2 + [1] * 6 + [2] * 2
