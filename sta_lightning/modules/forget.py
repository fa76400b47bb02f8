"""Making a model forget one task, and telling what it cost elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic import FORGET_METHODS, MEASURES, SAMPLE_MEASURES, Merged, unlearn
from sta_lightning.arithmetic.checks import check_share
from sta_lightning.errors import StaError
from sta_lightning.modules.evaluation import refuse_difference, task_name
from sta_lightning.modules.merged import DType, MergedEvaluation, check_choice, torch_dtype
from sta_lightning.modules.parts import read_encoder
from sta_lightning.modules.sources import read_importance


class ForgetModule(MergedEvaluation):
    """Take what one task's fine-tuning added out of a model (Eq. 20), and evaluate target and control.

    Logs ``test/target/acc``, which should fall, ``test/control/acc``, which should stay, the share of entries taken out of each
    tensor and the size of the change. The datamodule's only task is the target, and its control the set that must not be hurt.

    Args:
        target: The task to forget, or the path of its YAML file.
        finetuned: Weights of the encoder that was fine-tuned on it.
        importance: The importance that ``sta score`` wrote; nothing where the method or the measure needs none.
        control: The task that must not be hurt, or the path of its YAML file; nothing to take the datamodule's.
        model: Weights of the model that shall forget: the pretrained one if not given, or a merged or fine-tuned one.
        encoder: ``miniature``, an open_clip architecture such as ``ViT-B-16``, or ``timm/`` and a model's name.
        pretrained: The pretrained weights (a file or a tag of open_clip); nothing for those the package ships.
        image_size: Side of the input in pixels; nothing for the encoder's own.
        method: ``sta`` (the paper's), ``random_mask`` (of the same density) or ``task_arithmetic``.
        measure: Importance that ``sta`` goes by: ``lp`` or ``lp+amp`` from the importance file, ``amp`` (θ²) or ``delta-amp``
            (δ²), which need none; ``delta-lp`` from a file made with the task vector as direction.
        p: Quantile of each tensor's entries from 0 to 1; those above it are taken out. The paper's is 0.7.
        scale: Coefficient γ of ``task_arithmetic``, 1 by default; the other methods have none.
        seed: Of ``random_mask``.
        target_head: Head file of the target; nothing to make it from the pretrained model.
        control_head: Head file of the control; nothing to make it.
        dtype: Type of the weights made; nothing for that of the model that forgets.

    Raises:
        StaError: An argument is unknown or out of range; when merging, a source is missing or does not fit.
    """

    def __init__(
        self,
        target: str,
        finetuned: str,
        importance: str | None = None,
        control: str | None = None,
        model: str | None = None,
        encoder: str = "miniature",
        pretrained: str | None = None,
        image_size: int | None = None,
        method: str = "sta",
        measure: str = "lp",
        p: float = 0.7,
        scale: float | None = None,
        seed: int = 0,
        target_head: str | None = None,
        control_head: str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.target = task_name(target)
        super().__init__(
            encoder,
            pretrained,
            heads={} if target_head is None else {self.target: target_head},
            image_size=image_size,
        )
        check_choice("method", method, FORGET_METHODS)
        check_choice("measure", measure, MEASURES)
        check_share(p)
        torch_dtype(dtype)
        if scale is not None and FORGET_METHODS[method].default_scale is None:
            raise StaError(
                f"Method {method!r} has no coefficient, but scale={scale} is given; leave it out, or use task_arithmetic."
            )
        self._watched = None if control is None else task_name(control)
        self._finetuned, self._importance, self._model = finetuned, importance, model
        self._control_head = control_head
        self._method, self._measure, self._p, self._scale = method, measure, p, scale
        self._seed, self._asked_dtype = seed, dtype

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

    @override
    def compute(self) -> Merged:
        pretrained = self.original().state_dict()
        finetuned = read_encoder(self._finetuned, pretrained, f"task {self.target!r}")
        model: Mapping[str, Tensor] = pretrained
        if self._model is not None:
            model = read_encoder(self._model, pretrained, "the model that shall forget")
        importance = None
        if FORGET_METHODS[self._method].needs_importance:
            importance = read_importance(
                self.target,
                self._importance,
                measure=self._measure,
                finetuned=finetuned,
                pretrained=pretrained,
            )
        return unlearn(
            self._method,
            model,
            pretrained,
            finetuned,
            importance,
            p=self._p,
            scale=self._scale,
            seed=self._seed,
            task=self.target,
            dtype=torch_dtype(self._asked_dtype),
        )

    @override
    def origin(self) -> tuple[str, dict[str, Any], dict[str, str | Path]]:
        method = FORGET_METHODS[self._method]
        settings: dict[str, Any] = {
            "method": self._method,
            "target": self.target,
            "encoder": self._encoder_name,
            "image_size": self._image_size,
        }
        if method.uses_p:
            settings["p"] = self._p
        if method.needs_importance:
            settings["measure"] = self._measure
        if method.default_scale is not None:
            settings["scale"] = method.default_scale if self._scale is None else self._scale
        if self._method == "random_mask":
            settings["seed"] = self._seed
        sources: dict[str, str | Path] = {f"finetuned/{self.target}": self._finetuned}
        if self._model is not None:
            sources["model"] = self._model
        if method.needs_importance and self._importance is not None and self._measure in SAMPLE_MEASURES:
            sources[f"importance/{self.target}"] = self._importance
        return f"forgotten:{self._method}", settings, sources
