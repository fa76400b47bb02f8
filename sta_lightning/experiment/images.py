"""Evaluation images that are decoded once and held in memory, and the loaders over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sta_lightning.tasks import TaskDataModule


class Remembered(Dataset[tuple[Tensor, int]]):
    """A data set that decodes each image once, as long as the memory lent to it lasts.

    Args:
        base: Gives ``(float32 [3, S, S], label)``, the same at every call.
        memory: Shared by several data sets; what does not fit is decoded again.
    """

    def __init__(self, base: Dataset[tuple[Tensor, int]], memory: Memory) -> None:
        self.base = base
        self._memory = memory
        self._samples: dict[int, tuple[Tensor, int]] = {}

    def __len__(self) -> int:
        return len(self.base)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        missing = [index for index in indices if index not in self._samples]
        fresh: dict[int, tuple[Tensor, int]] = {}
        if missing:
            fresh = dict(zip(missing, read(self.base, missing), strict=True))
            for index, (image, label) in fresh.items():
                if self._memory.take(image.nbytes):
                    # A copy: the images of a batch are views of one tensor, which would stay alive
                    # as a whole.
                    self._samples[index] = (image.clone(), label)
        return [self._samples[index] if index in self._samples else fresh[index] for index in indices]


@dataclass
class Memory:
    """Bytes that may still be used."""

    left: int

    def take(self, size: int) -> bool:
        """Take ``size`` bytes if there are as many."""
        if size > self.left:
            return False
        self.left -= size
        return True


class Counted(Dataset[tuple[Tensor, int]]):
    """A data set that tells how many samples were read, for a progress bar.

    Args:
        base: Gives the samples.
        tell: Called with the number of samples of each read.
    """

    def __init__(self, base: Dataset[tuple[Tensor, int]], tell: Callable[[int], object]) -> None:
        self.base = base
        self._tell = tell

    def __len__(self) -> int:
        return len(self.base)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        samples = read(self.base, indices)
        self._tell(len(indices))
        return samples


def read(data: Dataset[tuple[Tensor, int]], indices: list[int]) -> list[tuple[Tensor, int]]:
    """Read several samples, in one call where the data set offers it."""
    batched = getattr(data, "__getitems__", None)
    return list(batched(indices)) if callable(batched) else [data[index] for index in indices]


class EvaluationData(LightningDataModule):
    """Loaders over images in memory, one for each task: what ``MultiTaskDataModule`` offers to the modules.

    Args:
        members: A task's own datamodule by its name, in the order of the loaders.
        images: One data set for each of them.
        batch_size: Images in a batch.
        control_name: The control among the names, if it is there.
    """

    def __init__(
        self,
        members: dict[str, TaskDataModule],
        images: list[Remembered],
        batch_size: int,
        control_name: str | None = None,
    ) -> None:
        super().__init__()
        self.members = members
        self.task_names = tuple(members)
        self.control_name = control_name
        self._images = images
        self._batch_size = batch_size

    @property
    def counts(self) -> dict[str, int]:
        """Number of images of each task."""
        return {name: len(data) for name, data in zip(self.task_names, self._images, strict=True)}

    def test_dataloader(self) -> list[DataLoader[tuple[Tensor, int]]]:
        """One loader for each task, in the images' own order."""
        return [DataLoader(data, batch_size=self._batch_size) for data in self._images]
