from __future__ import annotations

import pickle
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader

from sta_lightning.errors import StaError
from sta_lightning.tasks import MultiTaskDataModule, TaskDataModule
from sta_lightning.tasks.prepared import EpochSampler, Turn
from tests.tasks import layouts


@pytest.fixture
def root(tmp_path: Path) -> Path:
    layouts.write_mnist(tmp_path, (40, 10))
    return tmp_path


def mnist(root: Path, **settings: Any) -> TaskDataModule:
    return TaskDataModule("mnist", root=str(root), **{"batch_size": 8, **settings})


def pass_over(loader: DataLoader[Any]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


class Recorder(LightningModule):
    """Notes the labels that a fit sees, epoch by epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[list[float]] = []

    def on_train_epoch_start(self) -> None:
        self.seen.append([])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, _ = batch
        self.seen[-1].extend(images.mean(dim=(1, 2, 3)).tolist())
        return self.layer(images.new_ones(1)).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def trainer(folder: Path, **settings: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, **settings,
    )  # fmt: skip


def test_loaders_give_the_encoders_input(root: Path) -> None:
    data = mnist(root)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (8, 3, 32, 32)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert float(images.min()) >= -1
    assert float(images.max()) <= 1
    assert [len(data.dataset(split)) for split in ("train", "validation", "test")] == [36, 4, 10]
    assert len(pass_over(data.predict_dataloader())[1]) == 10
    assert mnist(root, image_size=48).dataset("test")[0][0].shape == (3, 48, 48)


def test_training_order_depends_on_seed_and_epoch_alone(root: Path) -> None:
    first = mnist(root, seed=3).train_dataloader()
    order = [pass_over(first)[0] for _ in range(2)]
    torch.manual_seed(99)
    again = mnist(root, seed=3).train_dataloader()
    before = torch.get_rng_state()
    assert torch.equal(pass_over(again)[0], order[0])
    assert torch.equal(pass_over(again)[0], order[1])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(order[0], order[1])
    assert not torch.equal(pass_over(mnist(root, seed=4).train_dataloader())[0], order[0])
    evaluated = pass_over(mnist(root).evaluation_loader("train"))[0]
    assert not torch.equal(evaluated, order[0])
    assert torch.equal(evaluated.flatten(1).sum(1).sort().values, order[0].flatten(1).sum(1).sort().values)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_fit_meets_the_order_of_an_unbroken_one(root: Path, tmp_path: Path, workers: int) -> None:
    whole, half, rest = Recorder(), Recorder(), Recorder()
    trainer(tmp_path, max_epochs=3, enable_checkpointing=False).fit(whole, mnist(root))
    first = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    first.fit(half, mnist(root))
    first.save_checkpoint(tmp_path / "half.ckpt")
    second = trainer(tmp_path, max_epochs=3, enable_checkpointing=False)
    data = mnist(root, num_workers=workers)
    second.fit(rest, data, ckpt_path=str(tmp_path / "half.ckpt"), weights_only=True)
    assert whole.seen == half.seen + rest.seen
    assert whole.seen[0] != whole.seen[1]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("bound", [{"max_epochs": 2}, {"max_steps": 10}])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_fit_resumed_in_the_middle_of_an_epoch_meets_the_order_of_an_unbroken_one(
    root: Path, tmp_path: Path, bound: dict[str, int], workers: int
) -> None:
    settings: dict[str, Any] = {"augment": True, "num_workers": workers}

    def saver(folder: str) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=1, save_top_k=-1)

    whole = Recorder()
    trainer(tmp_path, callbacks=[saver("whole")], **bound).fit(whole, mnist(root, **settings))
    assert [len(epoch) for epoch in whole.seen] == [36, 36]
    order = [*whole.seen[0], *whole.seen[1]]
    for step, images in ((1, 8), (4, 32), (5, 36), (7, 52)):
        rest = Recorder()
        rest.seen.append([])  # Lightning does not tell of the start of an epoch that goes on
        again = trainer(tmp_path, callbacks=[saver(f"{step}")], **bound)
        path = tmp_path / "whole" / f"step={step}.ckpt"
        again.fit(rest, mnist(root, **settings), ckpt_path=str(path), weights_only=True)
        assert again.global_step == 10
        assert [image for epoch in rest.seen for image in epoch] == order[images:], step


def test_workers_give_what_the_main_process_gives(root: Path) -> None:
    alone = pass_over(mnist(root, num_workers=0).train_dataloader())
    helped = pass_over(mnist(root, num_workers=2).train_dataloader())
    assert torch.equal(alone[0], helped[0])
    assert torch.equal(alone[1], helped[1])


def test_random_crops_follow_from_seed_epoch_and_image(root: Path) -> None:
    settings: dict[str, Any] = {"augment": True, "seed": 5}
    torch.manual_seed(1)
    loader = mnist(root, **settings).train_dataloader()
    first, second = pass_over(loader)[0], pass_over(loader)[0]
    torch.manual_seed(2)
    again = mnist(root, **settings, num_workers=2).train_dataloader()
    assert torch.equal(pass_over(again)[0], first), "whichever process loads them"
    assert torch.equal(pass_over(again)[0], second)
    resumed = mnist(root, **settings, batch_size=5).train_dataloader()
    cast(Any, resumed.sampler).set_epoch(1)
    assert torch.equal(pass_over(resumed)[0], second), "in the second epoch, whatever came before"
    plain = pass_over(mnist(root, **{**settings, "augment": False}).train_dataloader())[0]
    assert not torch.equal(first, plain)
    data = mnist(root, **settings).dataset("train", augment=True)
    assert not torch.equal(data[3][0], data[Turn(3, 1)][0])
    assert torch.equal(data[3][0], data[Turn(3, 0)][0])
    assert not torch.equal(
        data[3][0], mnist(root, **{**settings, "seed": 6}).dataset("train", augment=True)[3][0]
    )


def test_dataset_is_picklable_and_batches_equal_single_samples(root: Path) -> None:
    data = pickle.loads(pickle.dumps(mnist(root).dataset("train", augment=False)))
    batch = data.__getitems__([3, 1, 7])
    for (image, label), index in zip(batch, (3, 1, 7), strict=True):
        assert torch.equal(image, data[index][0])
        assert isinstance(label, int)
        assert label == data[index][1]
    augmented = mnist(root).dataset("train", augment=True)
    augmented[0]
    pickle.loads(pickle.dumps(augmented))[0]


def test_limits_choose_a_fixed_part_whatever_the_seed(root: Path) -> None:
    few = mnist(root, train_limit=5, validation_limit=2, test_limit=3, seed=1)
    assert [len(few.dataset(split)) for split in ("train", "validation", "test")] == [5, 2, 3]
    other = mnist(root, train_limit=5, seed=2)
    assert all(torch.equal(few.dataset("train")[i][0], other.dataset("train")[i][0]) for i in range(5))
    assert len(mnist(root, test_limit=1000).dataset("test")) == 10


def test_scoring_samples_depend_on_their_seed_alone(root: Path) -> None:
    data = mnist(root, seed=1)
    drawn = data.scoring_samples(12, seed=7)
    assert len(set(drawn)) == 12
    assert set(drawn) <= set(range(36))
    assert drawn == mnist(root, seed=2, batch_size=3).scoring_samples(12, seed=7)
    assert drawn != data.scoring_samples(12, seed=8)
    with pytest.raises(StaError, match=r"37 samples.*36 training"):
        data.scoring_samples(37)


def test_missing_files_are_told_at_setup(tmp_path: Path) -> None:
    with pytest.raises(StaError, match="MNIST/raw"):
        mnist(tmp_path).setup("fit")


def test_wrong_settings_are_refused(root: Path) -> None:
    for settings in ({"batch_size": 0}, {"num_workers": -1}, {"encoder": "nothing"}, {"image_size": 0}):
        with pytest.raises(StaError):
            mnist(root, **settings)
    with pytest.raises(StaError, match="cannot be downloaded"):
        TaskDataModule("cars", root=str(root), download=True).prepare_data()


def test_several_tasks_with_a_control(root: Path) -> None:
    layouts.write_gtsrb(root)
    for name in ("a", "b"):
        layouts.picture(root / "flat" / f"n_{name}.png")
    control = root / "watch.yaml"
    control.write_text("{layout: flat, test: flat}")
    data = MultiTaskDataModule(
        ["mnist", "gtsrb"], roots={"mnist": str(root), "gtsrb": str(root)}, control=str(control), batch_size=4
    )
    assert data.task_names == ("mnist", "gtsrb", "watch")
    assert data.control_name == "watch"
    assert data.validation_names == ("mnist", "gtsrb")
    data.setup("test")
    assert [len(pass_over(loader)[1]) for loader in data.test_dataloader()] == [10, 5, 2]
    data.setup("validate")
    assert [len(pass_over(loader)[1]) for loader in data.val_dataloader()] == [4, 4]
    # The image of the control's second class is its second file, at every evaluation.
    assert pass_over(data.test_dataloader()[2])[1].tolist() == [0, 1]


def test_mistakes_with_several_tasks_are_told(root: Path) -> None:
    with pytest.raises(StaError, match="'mnist' was given twice"):
        MultiTaskDataModule(["mnist", "gtsrb"], control="mnist")
    with pytest.raises(StaError, match=r"'minst'.*'mnist'"):
        MultiTaskDataModule(["mnist"], roots={"minst": str(root)})
    with pytest.raises(StaError, match="No task"):
        MultiTaskDataModule([])


def one_of(processes: int, rank: int = 0, device: str = "cpu") -> Any:
    """A trainer that has another datamodule."""
    strategy = SimpleNamespace(root_device=torch.device(device))
    return SimpleNamespace(
        world_size=processes, num_devices=processes, global_rank=rank, training=False, strategy=strategy
    )


def share(root: Path, processes: int, rank: int, **settings: Any) -> DataLoader[Any]:
    """The training loader of one process out of several."""
    data = mnist(root, **settings)
    data.trainer = one_of(processes, rank)
    return data.train_dataloader()


def test_memory_is_pinned_for_a_trainer_on_a_gpu_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    layouts.write_gtsrb(root)
    alone = mnist(root)
    several = MultiTaskDataModule(["mnist", "gtsrb"], roots={"mnist": str(root), "gtsrb": str(root)})
    for device, wanted in ((None, False), ("cpu", False), ("cuda:1", True)):
        alone.trainer = several.trainer = device and one_of(1, device=device)
        loaders = [alone.train_dataloader(), alone.test_dataloader(), *several.val_dataloader()]
        assert [loader.pin_memory for loader in (*loaders, *several.test_dataloader())] == [wanted] * 6


@pytest.mark.parametrize("epoch", [0, 1])
def test_processes_share_the_training_images(root: Path, epoch: int) -> None:
    parts = []
    for rank in range(3):
        torch.manual_seed(rank)
        sampler = cast(Any, share(root, 3, rank, seed=4).sampler)
        sampler.set_epoch(epoch)
        parts.append(list(sampler))
    assert sorted(index for part in parts for index in part) == list(range(36))
    assert parts[0] != sorted(parts[0])


@given(
    size=st.integers(1, 50),
    processes=st.integers(1, 7),
    batch=st.integers(1, 5),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
)
def test_batches_of_all_processes_make_those_of_one(
    size: int, processes: int, batch: int, seed: int, epoch: int
) -> None:
    data: Any = range(size)
    alone = EpochSampler(data, seed)
    alone.set_epoch(epoch)
    shares = [EpochSampler(data, seed, processes, rank) for rank in range(processes)]
    for sampler in shares:
        sampler.set_epoch(epoch)
    whole = list(BatchSampler(alone, batch * processes, drop_last=False))
    parts = [list(BatchSampler(sampler, batch, drop_last=False)) for sampler in shares]
    assert {len(part) for part in parts} == {len(whole)}
    for together, *own in zip(whole, *parts, strict=True):
        # In the last batch, what fills up the shares comes on top.
        taken = [index for batches in zip_longest(*own) for index in batches if index is not None]
        assert taken[: len(together)] == together


def test_the_batch_size_is_of_each_process_or_of_all(root: Path) -> None:
    sizes = {
        shared: [
            [len(labels) for _, labels in share(root, 2, rank, batch_size=10, global_batch=shared)]
            for rank in range(2)
        ]
        for shared in (False, True)
    }
    assert sizes == {False: [[10, 8]] * 2, True: [[5, 5, 5, 3]] * 2}
    assert len(pass_over(mnist(root, batch_size=10, global_batch=True).train_dataloader())[1]) == 36
    with pytest.raises(StaError, match="batch of 10 images cannot be shared out among 3 processes"):
        share(root, 3, 0, batch_size=10, global_batch=True)
