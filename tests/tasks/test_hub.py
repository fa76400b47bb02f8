"""Tasks from a Hugging Face data set, on folders that the test writes."""

from __future__ import annotations

import io
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sta_lightning.errors import StaError
from sta_lightning.tasks import TaskDataModule, get_task

NAMES = ["black_cat", "dog"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return datasets


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (5, 4), value).save(buffer, "PNG")
    return buffer.getvalue()


def rows(labels: list[Any], image: str = "image", label: str = "label") -> dict[str, list[Any]]:
    images = [{"bytes": png(10 * number), "path": f"{number}.png"} for number in range(len(labels))]
    return {image: images, label: labels, "note": ["x"] * len(labels)}


def save(
    package: Any, folder: Path, kind: Any, names: dict[str, str] | None = None, **splits: list[Any]
) -> None:
    columns = {"image": "image", "label": "label", **(names or {})}
    features = package.Features(
        {columns["image"]: package.Image(), columns["label"]: kind, "note": package.Value("string")}
    )
    made = {
        split: package.Dataset.from_dict(rows(labels, columns["image"], columns["label"]), features=features)
        for split, labels in splits.items()
    }
    package.DatasetDict(made).save_to_disk(str(folder))


@pytest.fixture
def pets(package: Any, tmp_path: Path) -> Path:
    labels = package.ClassLabel(names=NAMES)
    save(package, tmp_path / "pets", labels, train=[0, 1] * 10, val=[1, 0], test=[0, 1, 1])
    return tmp_path


def load(folder: Path, text: str) -> Any:
    path = folder / "task.yaml"
    path.write_text(text)
    return get_task(str(path))


def labels_of(opened: Any) -> list[int]:
    return [opened[index][1] for index in range(len(opened))]


def test_names_come_with_the_data_set(pets: Path) -> None:
    task = load(pets, "{name: pets, huggingface: {path: pets}}")
    assert (task.name, task.class_names) == ("pets", ("black cat", "dog"))
    assert [len(task.dataset(split)) for split in ("train", "validation", "test")] == [18, 2, 3]
    test = pickle.loads(pickle.dumps(task.dataset("test")))
    assert labels_of(test) == [0, 1, 1]
    image = test[2][0]
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (5, 4), (20, 20, 20))


def test_own_names_splits_and_root(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "huggingface: {path: pets, splits: {train: train, validation: val, test: test}}\nclass_names: [cat, hound]"
    task = load(pets, text)
    assert task.class_names == ("cat", "hound")
    assert [len(task.dataset(split)) for split in ("train", "validation", "test")] == [20, 2, 3]
    mapped = load(pets, "{huggingface: {path: pets}, class_names: {dog: hound, black_cat: cat}}")
    assert mapped.class_names == ("cat", "hound")
    other = tmp_path / "elsewhere"
    other.mkdir()
    monkeypatch.setenv("SOME_DATA", str(pets))
    assert len(load(other, "{huggingface: {path: pets}, root: $SOME_DATA}").dataset("test")) == 3
    assert len(load(other, f"huggingface: {{path: {pets / 'pets'}}}").dataset("test")) == 3


def test_columns_and_labels_of_other_kinds(package: Any, tmp_path: Path) -> None:
    columns = {"image": "img", "label": "fine_label"}
    save(package, tmp_path / "texts", package.Value("string"), columns, train=["b", "a"] * 2, test=["a", "b"])
    text = "huggingface: {path: texts, image: img, label: fine_label}"
    task = load(tmp_path, text)
    assert task.class_names == ("a", "b")
    assert labels_of(task.dataset("test")) == [0, 1]
    assert load(tmp_path, f"{text}\nclass_names: {{b: dog, a: cat}}").class_names == ("cat", "dog")
    save(package, tmp_path / "numbers", package.Value("int64"), train=[1, 0] * 2, test=[1, 0])
    with pytest.raises(StaError, match=r"are numbers, '0', '1'.*`class_names`"):
        load(tmp_path, "huggingface: {path: numbers}")
    numbered = load(tmp_path, "{huggingface: {path: numbers}, class_names: [cat, dog]}")
    assert labels_of(numbered.dataset("test")) == [1, 0]


def test_images_as_bytes_are_read_too(package: Any, tmp_path: Path) -> None:
    made = package.Dataset.from_dict({"img_bytes": [png(3), png(4)], "label": ["a", "b"]})
    package.DatasetDict(test=made).save_to_disk(str(tmp_path / "raw"))
    task = load(tmp_path, "huggingface: {path: raw, image: img_bytes, splits: {test: test}}")
    assert task.splits == ("test",)
    assert task.dataset("test")[1][0].getpixel((0, 0)) == (4, 4, 4)


def test_a_folder_that_load_dataset_reads(package: Any, tmp_path: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "plain" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.png").write_bytes(png(number))
    task = load(tmp_path, "huggingface: {path: plain}")
    assert task.class_names == ("cat", "dog")
    assert labels_of(task.dataset("test")) == [0, 0, 1, 1]


def test_serves_a_datamodule_and_its_image_cache(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STA_CACHE", str(pets / "cache"))
    task = load(pets, "huggingface: {path: pets}")
    assert task.fingerprint("test") == load(pets, "huggingface: {path: pets}").fingerprint("test")
    assert task.fingerprint("test") != task.fingerprint("train")
    module = TaskDataModule(str(pets / "task.yaml"), batch_size=3, cache_images=True)
    module.setup("test")
    assert next(iter(module.test_dataloader()))[1].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("huggingface: pets", "mapping with `path`"),
        ("huggingface: {name: pets}", "mapping with `path`"),
        ("huggingface: {path: pets, splt: {}}", "unknown keys 'splt'.*'splits'"),
        ("{huggingface: {path: pets}, train: a}", "unknown keys 'train'"),
        ("huggingface: {path: pets, splits: {train: train}}", "`test` is needed"),
        ("huggingface: {path: pets, splits: {test: exam}}", "no split 'exam'.*'train', 'val', 'test'"),
        ("huggingface: {path: pets, image: img}", "no column 'img'.*'image', 'label', 'note'"),
        ("huggingface: {path: ./absent}", "absent of .*task.yaml is not there"),
        ("{huggingface: {path: pets}, class_names: [cat]}", "1 names for 2 classes.*'black_cat', 'dog'"),
        (
            "{huggingface: {path: pets}, class_names: {cat: a, dog: b}}",
            "names 'cat', 'dog'; the classes .*'black_cat'",
        ),
        ("{huggingface: {path: pets}, class_names: [cat, cat]}", "more than one class is named 'cat'"),
        ("huggingface: {path: pets/test}", "saved as one split"),
    ],
)
def test_mistakes_are_told(pets: Path, text: str, complaint: str) -> None:
    with pytest.raises(StaError, match=f"(?s){complaint}"):
        load(pets, text)


def test_labels_out_of_range_empty_classes_and_broken_images_are_told(package: Any, tmp_path: Path) -> None:
    # -1 is how the hub marks test images whose labels were held back.
    save(package, tmp_path / "hidden", package.ClassLabel(names=NAMES), train=[0, 1], test=[-1, -1])
    with pytest.raises(StaError, match=r"Row 0 of the test images .*label -1; it can be '0', '1'"):
        load(tmp_path, "huggingface: {path: hidden}").dataset("test")
    save(package, tmp_path / "empty", package.ClassLabel(names=NAMES), train=[0, 1], test=[1, 1])
    with pytest.raises(StaError, match=r"classes 'black cat' .*no test image"):
        load(tmp_path, "huggingface: {path: empty}").dataset("test")
    made = package.Dataset.from_dict({"image": [png(3), b"broken"], "label": ["a", "b"]})
    package.DatasetDict(test=made).save_to_disk(str(tmp_path / "broken"))
    opened = load(tmp_path, "huggingface: {path: broken, splits: {test: test}}").dataset("test")
    assert opened[0][1] == 0
    with pytest.raises(StaError, match=r"Row 1 of the test images .* cannot be decoded"):
        opened[1]


def test_a_repository_that_cannot_be_reached_is_one_message(
    package: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def offline(*words: Any, **options: Any) -> None:
        asked.append((words, options))
        raise ConnectionError("Couldn't reach 'someone/pets' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(package, "load_dataset", offline)
    with pytest.raises(StaError, match=r"'someone/pets'.*Couldn't reach.*without a network.*HF_HUB_OFFLINE"):
        load(tmp_path, "huggingface: {path: someone/pets, name: small, revision: abc123}")
    assert asked == [(("someone/pets", "small"), {"split": "train", "revision": "abc123"})]


def test_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(StaError, match=r"package datasets: pip install 'sta-lightning\[hf\]'"):
        load(tmp_path, "huggingface: {path: pets}")
