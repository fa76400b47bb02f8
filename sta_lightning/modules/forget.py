from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from typing_extensions import override

from sta_lightning.engine import ForgettingOptions
from sta_lightning.errors import StaError
from sta_lightning.modules.evaluation import refuse_difference
from sta_lightning.modules.merged import MergedEvaluation
from sta_lightning.tasks import get_task


class ForgetModule(MergedEvaluation):
    """Make a model forget one task (Eq. 20), and evaluate target and control.

    Logs ``test/target/acc``, which should fall, ``test/control/acc``, which should stay, the share
    of entries taken out of each tensor and the size of the change. The datamodule's only task is
    the target, and its control the set that must not be hurt.

    Args:
        target: The task to forget, or the path of its YAML file.
        options: See :class:`~sta_lightning.engine.ForgettingOptions`.

    Raises:
        StaError: An argument is unknown or out of range; when merging, a source is missing or does
            not fit.
    """

    def __init__(self, target: str, **options: Any) -> None:
        self.target = get_task(target).name
        made = ForgettingOptions(self.target, **options)
        super().__init__(made, {} if made.target_head is None else {self.target: made.target_head})
        self._watched = None if made.control is None else get_task(made.control).name

    @override
    def check_tasks(self, names: list[str]) -> None:
        refuse_difference([self.target], names, "what shall be forgotten is")
        if self._watched is not None and self.control not in (None, self._watched):
            raise StaError(
                f"The module's control is {self._watched!r}, but the datamodule's is {self.control!r}. Give both the same."
            )
        super().check_tasks(names)

    @override
    def tag(self, name: str) -> str:
        return "control" if name == self.control else "target"

    @override
    def headline(self, place: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        results = {f"accuracy/{self.tag(name)}": accuracy for name, accuracy in found.items()}
        return results if place == "test" else {}
