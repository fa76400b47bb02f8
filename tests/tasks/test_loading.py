"""From files and tensors to a trainer's device: the same numbers, by bytes and by workers."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sta_lightning.tasks import MultiTaskDataModule, Task, TaskDataModule, loading, register_task
from sta_lightning.tasks.image_cache import CachedDataset
from sta_lightning.tasks.loading import Pixels, workers
from sta_lightning.tasks.prepared import PreparedDataset
from tests.tasks import layouts
from tests.toys import quiet_trainer, register_toys


@pytest.fixture(autouse=True)
def toys() -> None:
    register_toys()


class Seen(LightningModule):
    """Keeps what its steps get."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.batches: dict[str, list[tuple[Tensor, Tensor]]] = {"train": [], "validation": [], "test": []}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batches["train"].append(tuple(batch))
        return self.layer(self.layer.weight).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.batches["validation"].append(tuple(batch))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.batches["test"].append(tuple(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.0)


def spots(**settings: Any) -> TaskDataModule:
    return TaskDataModule("spots", **{"batch_size": 5, "augment": True, **settings})


def fitted(module: Seen, data: TaskDataModule, **settings: Any) -> Seen:
    quiet_trainer(max_epochs=1, num_sanity_val_steps=0, **settings).fit(module, data)
    return module


def equal(found: list[tuple[Tensor, Tensor]], wanted: Any) -> bool:
    pairs = list(zip(found, wanted, strict=True))
    return all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("count", [0, 2])
def test_a_trainer_gets_the_numbers_that_a_loader_alone_gives(count: int) -> None:
    data = spots(num_workers=count)
    module = fitted(Seen(), data)
    alone = spots()
    assert equal(module.batches["train"], alone.train_dataloader())
    assert equal(module.batches["validation"], alone.val_dataloader())
    assert module.batches["train"][0][0].dtype == torch.float32
    several, again = (MultiTaskDataModule(["spots", "stripes"], batch_size=4) for _ in range(2))
    quiet_trainer().test(module, several, verbose=False)
    assert equal(module.batches["test"], (batch for loader in again.test_dataloader() for batch in loader))


def test_a_trainers_loaders_hand_on_bytes() -> None:
    data, module, trainer = spots(), Seen(), quiet_trainer(max_epochs=1)
    trainer.fit(module, data)
    loaders = [trainer.train_dataloader, trainer.val_dataloaders]
    several = MultiTaskDataModule(["spots", "stripes"], batch_size=4)
    trainer.test(module, several, verbose=False)
    for loader in [*loaders, *trainer.test_dataloaders]:
        batch = next(iter(loader))
        assert isinstance(batch, Pixels)
        assert (batch.images.dtype, batch.labels.dtype) == (torch.uint8, torch.int64)
        image, label = loader.dataset[0]
        assert (image.dtype, type(label)) == (torch.float32, int)
    # Who goes over a loader by hand has no device to normalise on.
    for loader in (several.members["spots"].evaluation_loader("test"), data.val_dataloader()):
        images, _ = next(iter(loader))
        assert images.dtype == torch.float32


@pytest.mark.parametrize(("precision", "kind"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16)])
def test_images_have_the_trainers_precision(precision: Any, kind: torch.dtype) -> None:
    module = fitted(Seen(), spots(), precision=precision)
    wanted = [image.to(kind) for image, _ in spots().train_dataloader()]
    found = [images for images, _ in module.batches["train"]]
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


class Brighter(Seen):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] + 1, batch[1]]


class Early(Seen):
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] + 1, batch[1]]


class Carried(Seen):
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return [batch[0].to(device) + 1, batch[1]]


@pytest.mark.parametrize("kind", [Brighter, Early, Carried])
@pytest.mark.filterwarnings("ignore:You have overridden")
def test_a_modules_own_hooks_get_the_encoders_input(kind: type[Seen]) -> None:
    found = fitted(kind(), spots()).batches["train"]
    assert equal(found, [(images + 1, labels) for images, labels in spots().train_dataloader()])


class After(TaskDataModule):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] + 1, batch[1]]


class Before(TaskDataModule):
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] + 1, batch[1]]


class Own(TaskDataModule):
    """Images of another kind altogether."""

    def train_dataloader(self) -> Any:
        return DataLoader([(torch.full((3, 2, 2), 7, dtype=torch.uint8), 1)])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [After, Before])
def test_a_datamodules_own_hooks_get_the_encoders_input(kind: type[TaskDataModule]) -> None:
    found = fitted(Seen(), kind("spots", batch_size=5)).batches["train"]
    plain = spots(augment=False).train_dataloader()
    assert equal(found, [(images + 1, labels) for images, labels in plain])


def test_what_another_loader_gives_is_left_alone() -> None:
    ((images, labels),) = fitted(Seen(), Own("spots")).batches["train"]
    assert (images.dtype, images.unique().tolist(), labels.tolist()) == (torch.uint8, [7], [1])


def test_workers_are_for_images_that_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.write_mnist(tmp_path, (400, 100))
    monkeypatch.setattr(loading, "usable_processors", lambda: 2)
    files = TaskDataModule("mnist", root=str(tmp_path), batch_size=10, cache_images=False)
    few = TaskDataModule("mnist", root=str(tmp_path), batch_size=200)
    memory, told = spots(batch_size=1), spots(num_workers=1)
    assert [one.train_dataloader().num_workers for one in (files, few, memory, told)] == [2, 0, 0, 1]
    training, validation = files.train_dataloader(), files.val_dataloader()
    assert training.persistent_workers
    assert (training.prefetch_factor, validation.num_workers) == (2, 1)
    assert validation.persistent_workers
    several = MultiTaskDataModule(["mnist"], roots={"mnist": str(tmp_path)}, batch_size=5, cache_images=False)
    (loader,) = several.val_dataloader()
    assert (loader.num_workers, loader.persistent_workers) == (2, False)
    kept = TaskDataModule("mnist", root=str(tmp_path), batch_size=10)
    assert kept.val_dataloader().num_workers == 0, "they have been decoded"


def test_how_many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for processors, batches, devices, wanted in (
        (2, 100, 1, 2), (64, 100, 1, 8), (16, 100, 4, 4), (2, 100, 4, 1), (16, 11, 1, 2), (16, 3, 1, 0),
    ):  # fmt: skip
        monkeypatch.setattr(loading, "usable_processors", lambda processors=processors: processors)
        assert workers(batches, SimpleNamespace(num_devices=devices)) == wanted
    assert workers() == 8
    with monkeypatch.context() as patch:
        patch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn", "fork"])
        assert workers() == 0
    monkeypatch.setattr(multiprocessing, "current_process", lambda: SimpleNamespace(daemon=True))
    assert workers() == 0


class Unknown:
    """An opener that cannot tell when its images change."""

    def __call__(self, split: Any, root: Path | None) -> Dataset[Any]:
        image = layouts.Image.new("RGB", (40, 33), (9, 99, 199))
        return [(image, 0)] * 3  # type: ignore[return-value]


def test_decoded_images_are_kept_for_evaluations_unless_told(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("apple", "pear"):
            layouts.picture(tmp_path / split / name / "0.png", (40, 33))
    (tmp_path / "fruit.yaml").write_text("{train: train, test: test}")
    task = str(tmp_path / "fruit.yaml")
    register_task(Task("no_fingerprint", ("one",), ("a {}.",), Unknown(), own_validation=True))
    kept = TaskDataModule(task)
    assert type(kept.dataset("test")) is CachedDataset
    assert type(kept.dataset("train")) is PreparedDataset
    for other in (
        TaskDataModule(task, cache_images=False), TaskDataModule("digits"), TaskDataModule("no_fingerprint")
    ):  # fmt: skip
        assert type(other.dataset("test")) is PreparedDataset
