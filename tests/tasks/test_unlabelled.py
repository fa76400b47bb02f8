"""Images without labels: which come when, on any number of processes and workers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sta_lightning.errors import StaError
from sta_lightning.tasks import TaskDataModule, UnlabelledDataModule
from sta_lightning.tasks.unlabelled import cropped
from tests.toys import SIZES, ToyDataset, register_toys

NAMES = ("spots", "stripes")


@pytest.fixture(autouse=True, scope="module")
def _toys() -> None:
    register_toys()


def data(*tasks: str, **settings: Any) -> UnlabelledDataModule:
    return UnlabelledDataModule(list(tasks or NAMES), **{"batch_size": 4, **settings})


def steps(module: UnlabelledDataModule, count: int, start: int = 0) -> list[dict[str, Tensor]]:
    return list(itertools.islice(module.train_dataloader(), start, start + count))


def numbers(task: str, images: Tensor, split: Any = "test") -> list[int]:
    """Which images of the task's split these are."""
    loader = TaskDataModule(task, batch_size=1000).evaluation_loader(split)
    ((known, _),) = list(loader)
    return [next(k for k, other in enumerate(known) if torch.equal(image, other)) for image in images]


def trainer_of(processes: int = 1, rank: int = 0, **settings: Any) -> Any:
    known = {
        "world_size": processes,
        "global_rank": rank,
        "max_steps": 5,
        "limit_train_batches": 1.0,
        "global_step": 0,
        "accumulate_grad_batches": 1,
        "strategy": SimpleNamespace(root_device=torch.device("cpu")),
    }
    return SimpleNamespace(**{**known, **settings})


def same(first: list[dict[str, Tensor]], second: list[dict[str, Tensor]]) -> bool:
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(images, b[task]) for task, images in a.items())
        for a, b in zip(first, second, strict=True)
    )


def test_a_step_is_a_batch_of_every_task() -> None:
    for step in steps(data(), 3):
        assert list(step) == list(NAMES)
        for images in step.values():
            assert images.shape == (4, 3, 32, 32)
            assert images.dtype == torch.float32


def test_every_image_comes_once_before_one_comes_again() -> None:
    found = steps(data(), 63)
    for task in NAMES:
        order = [number for step in found for number in numbers(task, step[task])]
        size = SIZES[task]["test"]
        rounds = [order[at : at + size] for at in range(0, len(order) - size + 1, size)]
        assert all(sorted(one) == list(range(size)) for one in rounds)
        assert len({tuple(one) for one in rounds}) > 1, "another order in every round"


def test_two_tasks_of_one_size_have_orders_of_their_own() -> None:
    found = steps(data("spots", "stripes", split="train", batch_size=24), 1)[0]
    orders = [numbers(task, found[task], "train") for task in NAMES]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(24))
    assert orders[0] != orders[1]


def test_the_seed_decides_and_nothing_else() -> None:
    before = torch.get_rng_state()
    first = steps(data(seed=5), 6)
    torch.manual_seed(99)
    assert same(first, steps(data(seed=5), 6))
    assert same(first[2:], steps(data(seed=5), 4, start=2))
    assert not same(first, steps(data(seed=6), 6))
    torch.set_rng_state(before)
    steps(data(seed=5, num_workers=0), 2)
    assert torch.equal(before, torch.get_rng_state())


def test_a_task_s_order_does_not_depend_on_the_other_tasks() -> None:
    alone, both = steps(data("stripes"), 4), steps(data(), 4)
    assert all(torch.equal(one["stripes"], two["stripes"]) for one, two in zip(alone, both, strict=True))


def test_workers_give_the_same_steps() -> None:
    assert same(steps(data(num_workers=2), 5), steps(data(), 5))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_a_step_out(processes: int) -> None:
    alone = steps(data(), 5)
    shares = []
    for rank in range(processes):
        module = data()
        module.trainer = trainer_of(processes, rank)
        shares.append(steps(module, 5))
    for index, whole in enumerate(alone):
        for task, images in whole.items():
            parts = [share[index][task] for share in shares]
            assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), images)


def test_crops_are_new_in_every_step_and_the_same_on_workers_and_processes() -> None:
    settings = {"crops": True, "limit": 4}
    found = steps(data(**settings), 5)
    for task in NAMES:
        sums = [step[task].sum((1, 2, 3)) for step in found]
        assert len({round(value, 3) for each in sums for value in each.tolist()}) == 20
    assert same(steps(data(num_workers=2, **settings), 5), found)
    for rank in range(2):
        module = data(**settings)
        module.trainer = trainer_of(2, rank)
        for share, whole in zip(steps(module, 5), found, strict=True):
            for task, images in whole.items():
                torch.testing.assert_close(share[task], images[rank::2], rtol=0, atol=1e-5)


def test_a_crop_is_the_window_that_was_drawn() -> None:
    """A ramp resampled from a window is a ramp of the window's slope around the window's centre."""
    side = 32
    ramp = torch.arange(side, dtype=torch.float32).expand(2, 3, side, side)
    images = torch.stack([ramp[0], ramp[1].transpose(1, 2)])
    untouched = torch.tensor([[0.625, 0.625, 0.5, 0.5]]).expand(2, -1)  # 0.75 + 0.4 * 0.625 = 1
    torch.testing.assert_close(cropped(images, untouched), images, rtol=0, atol=1e-4)
    # 0.75 of the width and 0.85 of the height; a tenth of the side to the right, a twentieth up.
    found = cropped(images, torch.tensor([[0.0, 0.25, 1.0, 0.25]]).expand(2, -1))
    places = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
    middle = (side - 1) / 2
    right = (middle + 0.1 * side + 0.75 * places).clamp(max=side - 1)
    down = middle - 0.05 * side + 0.85 * places
    inside = right < side - 1
    torch.testing.assert_close(found[0, 0, 5][inside], right[inside], rtol=0, atol=1e-4)
    torch.testing.assert_close(found[1, 0, :, 5], down.clamp(min=0), rtol=0, atol=1e-4)


def test_it_goes_on_where_the_trainer_stands() -> None:
    module = data()
    module.trainer = trainer_of(global_step=3, accumulate_grad_batches=2)
    loader = module.train_dataloader()
    expected = steps(data(), 9)
    assert same(list(itertools.islice(loader, 2)), expected[6:8])
    module.trainer.global_step = 4  # type: ignore[union-attr]
    assert same(list(itertools.islice(loader, 1)), expected[8:9])


class Poisoned:
    """A label that nobody may look at."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"a label was looked at: {name}")

    def _refuse(self, *args: Any) -> Any:
        raise AssertionError("a label was looked at")

    __int__ = __index__ = __float__ = __bool__ = __eq__ = __hash__ = __len__ = __iter__ = _refuse  # type: ignore[assignment]


def poison(patch: pytest.MonkeyPatch) -> None:
    """Make every label of the toy tasks one that nobody may look at."""
    plain = ToyDataset.__getitem__
    patch.setattr(ToyDataset, "__getitem__", lambda self, index: (plain(self, index)[0], Poisoned()))


@pytest.mark.parametrize("settings", [{}, {"limit": 5}, {"split": "validation"}])
def test_no_label_is_looked_at(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    expected = steps(data(**settings), 3)
    poison(monkeypatch)
    with pytest.raises(AssertionError, match="a label was looked at"):
        TaskDataModule("spots").dataset("test")[0]
    assert same(steps(data(**settings), 3), expected)


def test_images_are_prepared_as_for_an_evaluation() -> None:
    prepared: Any = TaskDataModule("spots").dataset("test")
    assert torch.equal(prepared.batch([3])[0], prepared[3][0])


def test_a_limit_chooses_as_for_an_evaluation() -> None:
    kept = TaskDataModule("stripes", test_limit=3, batch_size=9).evaluation_loader("test")
    ((known, _),) = list(kept)
    (step,) = steps(data("stripes", limit=3, batch_size=3), 1)
    assert sorted(image.sum().item() for image in step["stripes"]) == sorted(i.sum().item() for i in known)


def test_the_record_of_what_was_seen() -> None:
    assert data(seed=4, limit=9).describe() == {
        "split": "test",
        "limit": 9,
        "batch_size": 4,
        "seed": 4,
        "crops": False,
    }
    assert data().task_names == NAMES


def endless() -> Iterator[Any]:
    module = data()
    module.trainer = trainer_of(max_steps=-1)
    yield module.train_dataloader()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: data("spots", "spots"), "given twice"),
        (lambda: data("nothing_of_the_kind"), "nothing_of_the_kind"),
        (lambda: data(split="all"), "split='all'"),
        (lambda: data(batch_size=0), "batch_size=0"),
        (lambda: data(limit=0).setup("fit"), "limit of 0"),
        (lambda: data(roots={"other": "x"}), "'other'"),
        (lambda: next(endless()), "max_steps"),
    ],
)
def test_mistakes(make: Any, message: str) -> None:
    with pytest.raises(StaError, match=message):
        make()


def test_a_step_that_cannot_be_shared_out_is_refused() -> None:
    module = data(batch_size=3)
    module.trainer = trainer_of(2)
    with pytest.raises(StaError, match="batch of 3 images cannot be shared out among 2 processes"):
        module.train_dataloader()
