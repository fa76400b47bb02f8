from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic import Merged, change_size
from sta_lightning.arithmetic.run import Kept
from sta_lightning.arithmetic.workers import Processes
from sta_lightning.callbacks.scorable import made_once
from sta_lightning.callbacks.trial import trial
from sta_lightning.encoders.pretrained import found_encoder, pretrained_for_merge
from sta_lightning.engine import MergeOptions, Pretrained, TaskHead, launched_processes
from sta_lightning.engine.card import write_card
from sta_lightning.modules.evaluation import MultiTaskEvaluation, accuracies

_WRITTEN = "STA_WRITTEN"
"""An environment variable, which launched processes inherit: what has been saved, as digests of
file and options."""


class MergedEvaluation(MultiTaskEvaluation):
    """Merge once, into a file or in memory, and evaluate what came out.

    After :meth:`save`, or with ``output`` set, what is evaluated is the file; without either the
    merge is made in memory. A test writes the card of that file (see :func:`write_card`), with what
    it measured; a trial (``fast_dev_run`` and the like) does not.

    Args:
        options: What is merged, and how.
        heads: Head files by task name.

    Attributes:
        output: The file that an evaluation writes before it begins, by all processes together;
            ``None`` to write none.
        merged: The merged model, once it has been made.
        accuracy: What the last test measured, by task, shares in [0, 1].
        card: The card that it wrote; ``None`` without one.

    Raises:
        StaError: An option is unknown or out of range.
    """

    def __init__(self, options: MergeOptions, heads: dict[str, str]) -> None:
        job = options.job()
        encoder = options.encoder or found_encoder(options.pretrained)
        size, metrics = options.image_size, options.metrics
        super().__init__(encoder, options.pretrained, heads=heads, image_size=size, metrics=metrics)
        self.save_hyperparameters({**asdict(options), "encoder": encoder}, logger=False)
        self.options = options
        self.job = job
        self.output: Path | None = None
        self.merged: Merged | None = None
        self.accuracy: dict[str, float] = {}
        self.card: Path | None = None
        self._kept: Kept | None = None

    @property
    def change(self) -> dict[str, float]:
        """Size of the change by the merge: ``norm``, ``relative_norm``, share ``changed``."""
        return change_size(self.original().state_dict(), self.merge().weights)

    def merge(self) -> Merged:
        """Return the merged model, from the file that has been written or else made in memory.

        Of a trainer's several processes the first one makes it, and the others get it from there:
        all of them call this.

        Raises:
            StaError: A source is missing, or differs in names or shapes, or holds NaN or Inf: the
                message names it.
        """
        if self.merged is None:
            if self._kept is None:
                self.merged = made_once(self._trainer, self._made)
            else:
                self.merged = Merged(dict(super().encoder_weights()), self._kept)
        return self.merged

    def _made(self) -> Merged:
        with self._pretrained_for_merge() as pretrained:
            found = self.job.in_memory(pretrained)
        return Merged({name: tensor.cpu() for name, tensor in found.weights.items()}, found.kept)

    @override
    def encoder_weights(self) -> dict[str, Tensor]:
        """Return the merged weights."""
        return self.merge().weights

    def save(self, path: str | Path, processes: Processes | None = None) -> Path:
        """Write the merged encoder, whole; from here on the file is what is evaluated.

        A script that saves and then starts a trainer on several devices is run again in every
        process that the trainer launches: those take the file that the first one has written.

        Args:
            path: A safetensors file; see :meth:`~sta_lightning.engine.Job.write`.
            processes: Who merges together; every one of them calls this.

        Returns:
            The path.

        Raises:
            StaError: The merge is refused, or the file cannot be written; nothing has been changed
                then.
        """
        mark = sha256(f"{Path(path).resolve()} {self.options!r}".encode()).hexdigest()[:16]
        written = os.environ.get(_WRITTEN, "").split()
        if processes is None and mark in written and _launched_by_lightning():
            self._kept = {}
        else:
            with self._pretrained_for_merge() as pretrained:
                self._kept = self.options.write(pretrained, path, processes, self.task_heads())
            os.environ[_WRITTEN] = " ".join([*written[-99:], mark])
        self._weights, self.merged = str(path), None
        return Path(path)

    @override
    def load(self) -> None:
        if self.output is not None and self._kept is None:
            with launched_processes() as processes:
                self.save(self.output, processes)
        super().load()

    @override
    def on_test_end(self) -> None:
        """Keep what was measured, and write it into the card of the file that was evaluated."""
        logged = self.trainer.callback_metrics
        self.accuracy = accuracies({key: float(value) for key, value in logged.items()})
        self.card = None
        if self._kept is not None and trial(self.trainer) is None:
            self.card = made_once(self.trainer, lambda: write_card(str(self._weights), self.accuracy))

    def task_heads(self) -> dict[str, TaskHead]:
        """By task: the heads that go into the file beside the encoder; none by default."""
        return {}

    @contextmanager
    def _pretrained_for_merge(self) -> Iterator[Pretrained]:
        asked = self.options
        with ExitStack() as stack:
            yield pretrained_for_merge(
                asked.encoder, asked.pretrained, asked.image_size, stack, build=self.original
            )

    @override
    def check_tasks(self, names: list[str]) -> None:
        head = self.options.control_head
        if head is not None and self.control is not None:
            self._head_files[self.control] = head

    @override
    def describe(self) -> dict[str, Any]:
        with self._pretrained_for_merge() as pretrained:
            return self.job.described(pretrained)


def _launched_by_lightning() -> bool:
    """Whether Lightning's launcher runs the script here once more, after the first process."""
    launcher = "NODE_RANK" in os.environ and "RANK" not in os.environ  # torchrun and MPI set both
    return launcher and int(os.environ.get("LOCAL_RANK", "0")) > 0
