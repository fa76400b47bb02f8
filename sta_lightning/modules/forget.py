"""Making a model forget one task, and telling what it cost elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from typing_extensions import override

from sta_lightning.engine import DType, ForgettingJob, ForgettingOptions
from sta_lightning.errors import StaError
from sta_lightning.modules.evaluation import refuse_difference, task_name
from sta_lightning.modules.merged import MergedEvaluation


class ForgetModule(MergedEvaluation):
    """Take what one task's fine-tuning added out of a model (Eq. 20), and evaluate target and control.

    Logs ``test/target/acc``, which should fall, ``test/control/acc``, which should stay, the share
    of entries taken out of each tensor and the size of the change. The datamodule's only task is
    the target, and its control the set that must not be hurt.

    Args:
        target: The task to forget, or the path of its YAML file.
        finetuned: Weights of the encoder that was fine-tuned on it; nothing for method ``vector``.
        importance: The importance that ``sta score`` wrote; nothing where the method or the measure
            needs none.
        control: The task that must not be hurt, or the path of its YAML file; nothing to take the
            datamodule's.
        model: Weights of the model that shall forget: the pretrained one if not given, or a merged
            or fine-tuned one.
        encoder: ``miniature``, an open_clip architecture such as ``ViT-B-16``, or ``timm/`` and a
            model's name.
        pretrained: The pretrained weights (a file or a tag of open_clip); nothing for those the
            package ships.
        image_size: Side of the input in pixels; nothing for the encoder's own.
        method: ``sta`` (the paper's) or another of ``sta methods``; one of your own as
            ``package.module.Name`` or ``file.py:name``.
        settings: Further settings of the method by name, as ``sta methods NAME`` tells them.
        more: Weights of further models fine-tuned on the task, for a method that takes several
            (``negmerge``).
        measure: Importance that ``sta`` goes by: ``lp`` or ``lp+amp`` from the importance file,
            ``amp`` (θ²) or ``delta-amp`` (δ²), which need none; ``delta-lp`` or ``fisher`` from a
            file scored by it; ``file`` from any, taken as it is.
        p: Quantile of each tensor's entries from 0 to 1; those above it are taken out. The paper's
            is 0.7.
        scale: The method's coefficient, if it has one (task arithmetic's γ); nothing for its
            default.
        seed: Of ``random_mask``.
        target_head: Head file of the target; nothing to make it from the pretrained model.
        control_head: Head file of the control; nothing to make it.
        vector: For method ``vector``: the task's masked task vector, which an earlier ``sta merge``
            wrote.
        dtype: Type of the weights made; nothing for that of the model that forgets.
        device: Where the arithmetic is done: ``cpu`` or a GPU such as ``cuda``; the result is the
            same.

    Raises:
        StaError: An argument is unknown or out of range; when merging, a source is missing or does
            not fit.
    """

    def __init__(
        self,
        target: str,
        finetuned: str | None = None,
        importance: str | None = None,
        control: str | None = None,
        model: str | None = None,
        encoder: str = "miniature",
        pretrained: str | None = None,
        image_size: int | None = None,
        method: str = "sta",
        settings: dict[str, Any] | None = None,
        more: list[str] | None = None,
        measure: str = "lp",
        p: float = 0.7,
        scale: float | None = None,
        seed: int = 0,
        target_head: str | None = None,
        control_head: str | None = None,
        vector: str | None = None,
        dtype: DType | None = None,
        device: str = "cpu",
    ) -> None:
        self.target = task_name(target)
        super().__init__(
            encoder,
            pretrained,
            heads={} if target_head is None else {self.target: target_head},
            image_size=image_size,
        )
        options = ForgettingOptions(
            self.target,
            finetuned,
            importance,
            model=model,
            method=method,
            settings=settings,
            more=more,
            measure=measure,
            p=p,
            scale=scale,
            seed=seed,
            target_head=target_head,
            vector=vector,
            dtype=dtype,
            device=device,
        )
        self._job = options.job()
        self._watched = None if control is None else task_name(control)
        self._control_head = control_head

    @property
    @override
    def job(self) -> ForgettingJob:
        return self._job

    @override
    def check_tasks(self, names: list[str]) -> None:
        refuse_difference([self.target], names, "what shall be forgotten is")
        if self._watched is not None and self.control not in (None, self._watched):
            raise StaError(
                f"The module's control is {self._watched!r}, but the datamodule's is {self.control!r}. Give both the same."
            )
        if self._control_head is not None and self.control is not None:
            self._head_files[self.control] = self._control_head

    @override
    def tag(self, name: str) -> str:
        return "control" if name == self.control else "target"

    @override
    def headline(self, stage: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if stage != "test":
            return {}
        return {f"hp/{self.tag(name)}_acc": accuracy for name, accuracy in found.items()}
