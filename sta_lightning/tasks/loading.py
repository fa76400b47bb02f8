"""How images get from a data set to a trainer's device: as bytes, and normalised there."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, tensor
from torch.utils.data import Dataset
from typing_extensions import override

from sta_lightning.arithmetic.workers import usable_processors
from sta_lightning.tasks.prepared import EncoderInput
from sta_lightning.tasks.preprocess import Preprocess

_MOST = 8  # loading processes, unless more are asked for
_BATCHES = 4  # for which one more of them is worth its start


def workers(batches: int = sys.maxsize, trainer: Any = None) -> int:
    """Return how many processes decode images where nobody has said it.

    One for each processor that a process of the trainer has, but few for few batches, and none
    where a process could not start them by itself: a daemon, or a script on a system where new
    processes run it again.
    """
    forks = multiprocessing.get_all_start_methods()[0] == "fork"
    if not forks or multiprocessing.current_process().daemon:
        return 0
    share = usable_processors() // (1 if trainer is None else trainer.num_devices)
    return min(max(share, 1), _MOST, batches // _BATCHES)


def pinned(trainer: Any) -> bool:
    """Whether batches go to a GPU from pinned memory: that of a trainer, if it runs on one."""
    return trainer is not None and trainer.strategy.root_device.type == "cuda"


class Pixels(NamedTuple):
    """A batch before normalisation: images, uint8 ``[B, 3, S, S]``, and labels, int64 ``[B]``."""

    images: Tensor
    labels: Tensor


class WholeBatches(Dataset[Any]):
    """The images of a data set, of which a loader gets a batch as :class:`Pixels`.

    Its loader's ``collate_fn`` is :func:`as_it_is`. A single image is ready for the encoder.
    """

    def __init__(self, data: EncoderInput) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> tuple[Tensor, int]:
        return self.data[index]

    def __getitems__(self, indices: Sequence[Any]) -> Pixels:
        images, labels = self.data.pixels(indices)
        return Pixels(images, tensor(labels))


def as_it_is(batch: Any) -> Any:
    """Return a batch that is one already."""
    return batch


class NormalisesOnDevice(L.LightningDataModule):
    """Bytes travel to the trainer's device, and become the encoder's input there.

    A module gets the input as ever, ``[images, labels]``, in ``on_after_batch_transfer`` too. A
    module or a datamodule with a hook of its own before that gets the input from the loader, and so
    does who goes over a loader without a trainer.

    Attributes:
        preprocess: The encoder's preprocessing.
        part_of: The datamodule that a trainer has in place of this one, if another has it.
    """

    preprocess: Preprocess
    part_of: NormalisesOnDevice | None = None

    def hands_bytes(self) -> bool:
        """Whether every batch of the trainer goes through :meth:`on_after_batch_transfer` alone."""
        trainer: Any = self.trainer
        datamodule = getattr(trainer, "datamodule", None)
        if datamodule is not (self.part_of or self):
            return False
        before = ("on_before_batch_transfer", "transfer_batch_to_device")
        own = (trainer.lightning_module, datamodule)
        return not is_overridden("on_after_batch_transfer", datamodule, NormalisesOnDevice) and not any(
            is_overridden(hook, one) for hook in before for one in own
        )

    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise; what the module does with a batch on the device comes after."""
        trainer: Any = self.trainer
        if isinstance(batch, Pixels):
            images = self.preprocess.normalize(batch.images)
            batch = [trainer.precision_plugin.convert_input(images), batch.labels]
        return trainer.lightning_module.on_after_batch_transfer(batch, dataloader_idx)
