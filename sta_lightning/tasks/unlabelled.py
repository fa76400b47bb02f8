"""Images of several tasks without their labels, a batch of every task at each step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from typing_extensions import override

from sta_lightning.errors import StaError
from sta_lightning.tasks.loading import pinned, workers
from sta_lightning.tasks.multitask import MultiTaskDataModule
from sta_lightning.tasks.prepared import PreparedDataset, epoch_order
from sta_lightning.tasks.task import SPLITS, Split

Step = dict[str, Tensor]
"""Task -> images, float32 ``[B, 3, S, S]``."""


class UnlabelledDataModule(L.LightningDataModule):
    """At each step of a fit a batch of images of every task, without labels, for AdaMerging.

    Each task's images come in a random order of its own, all of them once before one comes again,
    and then in another order. The order follows from the seed, the task's name and the step alone:
    it is the same on any number of processes and workers, and a resumed fit meets the batches of an
    unbroken one. Labels are never looked at. There is no end: ``max_steps`` of the trainer sets it.

    Args:
        tasks: Names of tasks, or paths of YAML files that describe folders of images.
        roots: Folder of a task's files, by the task's name; see ``TaskDataModule`` for those left
            out.
        encoder: The encoder that the images are for.
        image_size: Side of the encoder's input in pixels; by default the encoder's own.
        batch_size: Images of each task in a step, of all processes together; their number must
            divide it.
        num_workers: See ``TaskDataModule``.
        seed: Seed of the orders.
        split: Which images: ``test`` (AdaMerging's: the images that are evaluated later),
            ``validation`` or ``train``.
        limit: Use at most this many images of each task, a fixed random choice; all by default.
        crops: Whether each image is another random crop of itself in every step, see
            :func:`cropped`.
        download: Fetch the published files if they are missing.
        pretrained: See ``TaskDataModule``.

    Raises:
        StaError: A task or the split is unknown, two tasks have the same name, or a number is out
            of range.
    """

    def __init__(
        self,
        tasks: list[str],
        roots: dict[str, str] | None = None,
        encoder: str = "miniature",
        image_size: int | None = None,
        batch_size: int = 16,
        num_workers: int | None = None,
        seed: int = 0,
        split: Split = "test",
        limit: int | None = None,
        crops: bool = False,
        download: bool = False,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        if split not in SPLITS:
            raise StaError(f"split={split!r} was asked for; choose from {', '.join(SPLITS)}.")
        options: dict[str, Any] = {
            "encoder": encoder,
            "image_size": image_size,
            "batch_size": batch_size,
            "num_workers": num_workers,
            f"{split}_limit": limit,
            "download": download,
            "pretrained": pretrained,
            "cache_images": False,
        }
        together = MultiTaskDataModule(tasks, roots, **options)
        self.members = together.members
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.split, self.limit, self.crops = split, limit, crops
        self._images: dict[str, PreparedDataset] = {}

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks' names."""
        return tuple(self.members)

    def describe(self) -> dict[str, Any]:
        """Return which images these are, for the record of what was learned from them."""
        numbers = {"limit": self.limit, "batch_size": self.batch_size, "seed": self.seed}
        return {"split": self.split, **numbers, "crops": self.crops}

    @override
    def prepare_data(self) -> None:
        """Fetch the published files, if asked for."""
        for member in self.members.values():
            member.prepare_data()

    @override
    def setup(self, stage: str) -> None:
        """Open every task's images, so that missing files are an error at once."""
        for name, member in self.members.items():
            if name not in self._images:
                self._images[name] = cast(PreparedDataset, member.dataset(self.split))
                if not len(self._images[name]):
                    raise StaError(f"The split '{self.split}' of the task '{name}' holds no images.")

    def loading_processes(self) -> int:
        """Return how many processes load images."""
        if self.num_workers is not None:
            return self.num_workers
        decoded = any(not images.in_memory for images in self._images.values())
        return workers(trainer=self.trainer) if decoded else 0

    @override
    def train_dataloader(self) -> DataLoader[Step]:
        """Return the steps: task -> images ``[B, 3, S, S]``, without an end."""
        self.setup("fit")
        trainer: Any = self.trainer
        rank, processes = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        if trainer is not None and trainer.max_steps < 0 and isinstance(trainer.limit_train_batches, float):
            raise StaError(
                "The images without labels come without an end, and nothing ends this fit. Give the trainer max_steps, "
                "500 in AdaMerging."
            )
        if self.batch_size % processes:
            raise StaError(
                f"A batch of {self.batch_size} images cannot be shared out among {processes} processes: let "
                f"batch_size be a multiple of {processes}, or change the number of processes."
            )
        return _Loader(self, Steps(self._images, self.batch_size, self.seed, rank, processes, self.crops))


class Unlabelled(Protocol):
    """Images that can be read by number, ``[B, 3, S, S]``."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True)
class Held:
    """Images in memory, ``[N, 3, S, S]``, read by number."""

    images: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Those of some numbers."""
        return self.images[list(indices)]


class HeldImages(L.LightningDataModule):
    """Steps like those of :class:`UnlabelledDataModule`, of images that are there already.

    Args:
        images: Each task's images.
        batch_size: Images of each task in a step.
        seed: Seed of the orders.
        crops: Whether each image is another random crop of itself in every step.
    """

    def __init__(
        self, images: Mapping[str, Unlabelled], batch_size: int, seed: int, crops: bool = False
    ) -> None:
        super().__init__()
        self.task_names = tuple(images)
        self._steps = Steps(images, batch_size, seed, crops=crops)

    @override
    def train_dataloader(self) -> DataLoader[Step]:
        """Return the steps, without an end."""
        return DataLoader(self._steps, batch_size=None)


class Steps(IterableDataset[Step]):
    """Step after step, from ``first`` on.

    An iterable one, because Lightning puts a sampler of its own into loaders of others.

    Args:
        images: Each task's images.
        batch_size: Images of each task in a step, of all processes together.
        seed: Seed of the orders.
        rank: Which process this is: it takes the images r, r + processes, … of a step.
        processes: How many processes share a step.
        crops: Whether the images are cropped at random, see :func:`cropped`.
    """

    def __init__(
        self,
        images: Mapping[str, Unlabelled],
        batch_size: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        crops: bool = False,
    ) -> None:
        self.images, self.batch_size, self.crops = images, batch_size, crops
        # Otherwise two tasks with equally many images would go through the same numbers.
        digests = {task: hashlib.sha256(f"{seed}/{task}".encode()).digest() for task in images}
        self.seeds = {task: int.from_bytes(digest[:4], "big") for task, digest in digests.items()}
        self.rank, self.processes = rank, processes
        self.first = 0
        self._order: dict[str, tuple[int, list[int]]] = {}

    def __iter__(self) -> Iterator[Step]:
        # Worker w loads every W-th step; the loader asks the workers in turn.
        worker = get_worker_info()
        step, stride = (self.first, 1) if worker is None else (self.first + worker.id, worker.num_workers)
        while True:
            places = range(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.processes)
            found = {
                task: images.batch([self._image(task, place) for place in places])
                for task, images in self.images.items()
            }
            yield (
                {task: self._cropped(task, step, images) for task, images in found.items()}
                if self.crops
                else found
            )
            step += stride

    def _cropped(self, task: str, step: int, images: Tensor) -> Tensor:
        # Drawn for the images of all processes: an image's crop does not depend on their number.
        generator = torch.Generator().manual_seed((self.seeds[task] + step) % 2**32)
        return cropped(
            images, torch.rand(self.batch_size, 4, generator=generator)[self.rank :: self.processes]
        )

    def _image(self, task: str, place: int) -> int:
        """The image at a place of a task's endless order."""
        size = len(self.images[task])
        epoch, within = divmod(place, size)
        if self._order.get(task, (-1, []))[0] != epoch:
            self._order[task] = epoch, epoch_order(size, self.seeds[task], epoch)
        return self._order[task][1][within]


def cropped(images: Tensor, drawn: Tensor) -> Tensor:
    """Each image resampled from a window of its own: bilinear, reflected where it ends.

    Args:
        images: ``[B, C, H, W]``.
        drawn: ``[B, 4]``, 0 to 1, uniform: width and height of the window, 0.75 to 1.15 of the
            image's, and its place, up to a tenth of the image off the centre along both.

    Returns:
        The same shape.
    """
    windows = images.new_zeros(len(images), 2, 3)
    windows[:, 0, 0], windows[:, 1, 1] = (0.75 + 0.4 * drawn[:, :2]).unbind(1)
    windows[:, :, 2] = 0.4 * drawn[:, 2:] - 0.2  # of a grid that goes from -1 to 1
    grid = functional.affine_grid(windows, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


class _Loader(DataLoader[Step]):
    """Begins where the trainer stands: at the first step, or where a checkpoint was left."""

    def __init__(self, datamodule: UnlabelledDataModule, steps: Steps) -> None:
        super().__init__(
            steps,
            batch_size=None,
            num_workers=datamodule.loading_processes(),
            pin_memory=pinned(datamodule.trainer),
            # A generator of its own: otherwise every pass draws a number from PyTorch's global one.
            generator=torch.Generator().manual_seed(datamodule.seed),
        )
        self._datamodule = datamodule

    def __iter__(self) -> Any:
        trainer: Any = self._datamodule.trainer
        done = 0 if trainer is None else trainer.global_step * trainer.accumulate_grad_batches
        cast(Steps, self.dataset).first = done
        return super().__iter__()
