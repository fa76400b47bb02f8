"""One task for Lightning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from sta_lightning.encoders.spec import encoder_spec
from sta_lightning.errors import StaError
from sta_lightning.tasks.find import get_task
from sta_lightning.tasks.image_cache import CachedDataset, cached
from sta_lightning.tasks.loading import NormalisesOnDevice, WholeBatches, as_it_is, pinned, workers
from sta_lightning.tasks.prepared import EpochSampler, PreparedDataset, TrainingLoader
from sta_lightning.tasks.preprocess import Preprocess
from sta_lightning.tasks.split import drawn_indices, limited_indices
from sta_lightning.tasks.task import Split

Batches = DataLoader[tuple[Tensor, int]]


class TaskDataModule(NormalisesOnDevice):
    """Training, validation and test images of one task, preprocessed for an encoder.

    Args:
        task: A task's name (``sta`` lists them when it does not know one), or the path of a YAML
            file that describes folders of images.
        root: Folder with the task's files. By default the embedded suite uses its cache, the
            published sets the folder in the environment variable STA_DATA, and a YAML file what it
            says itself.
        encoder: The encoder that the images are for; it sets image size, mean, deviation and
            interpolation.
        image_size: Side of the encoder's input in pixels; by default the encoder's own.
        batch_size: Images in a batch of each process.
        num_workers: Processes that load images; with 0 the main process does. ``None`` for some, at
            most eight, where there are images to decode, and none where all are in memory.
        seed: Seed of the order of training images and of random crops. The division into training
            and validation images does not depend on it.
        train_limit: Use at most this many training images, a fixed random choice; all by default.
        validation_limit: The same for validation images.
        test_limit: The same for test images.
        augment: Take random crops of training images (90% to 100% of the area) instead of the
            centre.
        download: Fetch the published files if they are missing.
        pretrained: The encoder's weights as the model has them; it matters only where a tag of
            open_clip stands for weights that want another mean and deviation.
        global_batch: Whether ``batch_size`` counts the training images of all processes together. A
            fit then takes the same batches, in the same order, on any number of processes that
            divides it.
        cache_images: Whether validation and test images are decoded once, into files under
            ``$STA_CACHE`` that every later run maps into memory; they take 3 S² bytes an image. The
            result is the same to the last bit. ``None`` for yes where there are images to decode
            and the task can tell when they change. Training images are not cached: random crops
            need them as they are, and scoring reads a few of them.

    Raises:
        StaError: if the task or the encoder is unknown.
    """

    def __init__(
        self,
        task: str,
        root: str | None = None,
        encoder: str = "miniature",
        image_size: int | None = None,
        batch_size: int = 128,
        num_workers: int | None = None,
        seed: int = 0,
        train_limit: int | None = None,
        validation_limit: int | None = None,
        test_limit: int | None = None,
        augment: bool = False,
        download: bool = False,
        pretrained: str | None = None,
        global_batch: bool = False,
        cache_images: bool | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or (num_workers is not None and num_workers < 0):
            raise StaError(
                f"batch_size={batch_size}, num_workers={num_workers} was asked for: use 1 or more, and 0 or more."
            )
        self.task = get_task(task)
        self.root = root
        self.spec = encoder_spec(encoder, image_size, pretrained)
        self.preprocess = Preprocess(
            self.spec.image_size, self.spec.mean, self.spec.std, self.spec.interpolation
        )
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.limits: dict[Split, int | None] = {
            "train": train_limit,
            "validation": validation_limit,
            "test": test_limit,
        }
        self.augment, self.download, self.global_batch = augment, download, global_batch
        self.cache_images = cache_images
        self._opened: dict[Split, Dataset[Any]] = {}
        self._cached: dict[Split, PreparedDataset | CachedDataset] = {}

    def prepare_data(self) -> None:
        """Fetch the published files, if asked for."""
        if self.download:
            self.task.download(self.root)

    def setup(self, stage: str) -> None:
        """Open the splits that a stage needs, so that missing files are an error at once."""
        needed: dict[str, tuple[Split, ...]] = {"fit": ("train", "validation"), "validate": ("validation",)}
        for split in needed.get(stage, ("test",)):
            self.dataset(split)

    def dataset(self, split: Split, augment: bool = False) -> PreparedDataset | CachedDataset:
        """Return a split, ready for the encoder.

        Args:
            split: ``train``, ``validation`` or ``test``.
            augment: Whether crops are random. Scores, prototypes and evaluations take the centre.

        Returns:
            A data set of ``(float32 [3, S, S], label)``.
        """
        data = PreparedDataset(self._base(split), self.preprocess, augment=augment, seed=self.seed)
        if augment or split == "train" or self.cache_images is False:
            return data
        if split not in self._cached:
            if self.cache_images is None and (not self.task.has_fingerprint or data.in_memory):
                return data
            chosen = f"limit {self.limits[split]}"
            self._cached[split] = cached(
                data, self.task, split, chosen, self.root, num_workers=self.num_workers
            )
        return self._cached[split]

    def scoring_samples(self, n: int, seed: int = 0) -> list[int]:
        """Draw samples for importance scoring, without replacement.

        Args:
            n: How many.
            seed: Seed of the draw; nothing else decides it.

        Returns:
            Indices into ``dataset("train")``.

        Raises:
            StaError: if there are fewer training images.
        """
        return drawn_indices(len(self.dataset("train")), n, seed, f"'{self.task.name}'")

    def evaluation_loader(self, split: Split) -> Batches:
        """Return a split in its order, under the evaluation transform."""
        return self._loader(self.dataset(split), self.batch_size)

    def train_dataloader(self) -> Batches:
        """Return the training split in an order that depends on seed and epoch alone."""
        data = self.dataset("train", augment=self.augment)
        trainer: Any = self.trainer
        processes, rank = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
        if self.global_batch and self.batch_size % processes:
            raise StaError(
                f"A batch of {self.batch_size} images cannot be shared out among {processes} processes: with "
                f"global_batch, let batch_size be a multiple of {processes}, or change the number of processes."
            )
        # Lightning would make a sampler of its own, with another order.
        sampler = EpochSampler(data, self.seed, processes, rank)
        share = self.batch_size // (processes if self.global_batch else 1)
        more = {"trainer": trainer, "sampler": sampler}
        return self._loader(data, share, TrainingLoader, whole=self.hands_bytes(), lasting=True, **more)

    def val_dataloader(self) -> Batches:
        """Return the validation split."""
        # A fit comes back to it; of several tasks each would keep processes that wait.
        lasting = self.part_of is None
        return self._loader(
            self.dataset("validation"), self.batch_size, whole=self.hands_bytes(), lasting=lasting
        )

    def test_dataloader(self) -> Batches:
        """Return the test split."""
        return self._loader(self.dataset("test"), self.batch_size, whole=self.hands_bytes())

    def predict_dataloader(self) -> Batches:
        """Return the test split."""
        return self.test_dataloader()

    def _base(self, split: Split) -> Dataset[Any]:
        if split not in self._opened:
            whole = self.task.dataset(split, self.root)
            size = len(whole)  # type: ignore[arg-type]
            chosen = limited_indices(size, self.limits[split])
            self._opened[split] = whole if len(chosen) == size else Subset(whole, chosen)
        return self._opened[split]

    def _loader(
        self,
        data: PreparedDataset | CachedDataset,
        batch_size: int,
        kind: type[Batches] = DataLoader,
        *,
        whole: bool = False,
        lasting: bool = False,
        **more: Any,
    ) -> Batches:
        count = self.num_workers
        if count is None:
            decoded = isinstance(data, PreparedDataset) and not data.in_memory
            count = workers(len(data) // batch_size, self.trainer) if decoded else 0
        return kind(
            WholeBatches(data) if whole else data,
            batch_size=batch_size,
            collate_fn=as_it_is if whole else None,
            num_workers=count,
            persistent_workers=lasting and count > 0,
            pin_memory=pinned(self.trainer),
            # A generator of its own: otherwise every pass draws a number from PyTorch's global one.
            generator=torch.Generator().manual_seed(self.seed),
            **more,
        )
