"""What each process of the multi-process test of learned merges runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from sta_lightning.arithmetic import Merged
from sta_lightning.engine import Job
from sta_lightning.errors import StaError
from sta_lightning.modules import AdaMerging, DistilledMerging, TaskSource
from sta_lightning.tasks import UnlabelledDataModule
from sta_lightning.weights import save_weights
from tests.toys import quiet_trainer, register_toys

NAMES = ("spots", "stripes")


class Sizes(Callback):
    """Notes how many images of each task this process sees in a step."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.images = [len(batch[name]) for name in NAMES]


def main(processes: int, folder: Path) -> None:
    """Learn on all processes; then what they refuse together."""
    register_toys()
    several: dict[str, Any] = {"devices": processes, "strategy": "ddp" if processes > 1 else "auto"}
    tasks = {name: TaskSource(str(folder / f"{name}.safetensors")) for name in NAMES}
    pretrained = str(folder / "pretrained.safetensors")

    def made(output: Path) -> AdaMerging:
        return AdaMerging(
            tasks, pretrained=pretrained, granularity="task", learning_rate=0.01, output=str(output)
        )

    module, sizes = made(folder / f"fused-{processes}.safetensors"), Sizes()
    trainer = quiet_trainer(max_steps=5, callbacks=[sizes], **several)
    trainer.fit(module, UnlabelledDataModule(list(NAMES), batch_size=4))
    rank = trainer.global_rank
    save_weights(folder / f"merged-{processes}-{rank}.safetensors", module.merged_weights())
    said: dict[str, Any] = {
        "coefficients": module.coefficients.tolist(),
        "metrics": {tag: float(value) for tag, value in trainer.callback_metrics.items()},
        "images": sizes.images,
    }
    said["made"] = 0
    in_memory = Job.in_memory

    def merged(*args: Any) -> Merged:
        said["made"] += 1
        return in_memory(*args)

    Job.in_memory = merged  # type: ignore[method-assign]
    distilled = DistilledMerging(tasks, pretrained=pretrained)
    images = UnlabelledDataModule(list(NAMES), split="train", limit=4, batch_size=4)
    quiet_trainer(max_steps=2, **several).fit(distilled, images)
    said["distilled"] = distilled.coefficients.tolist()
    if processes > 1:
        (folder / "in_the_way").touch()
        for what, output, size in (
            ("odd", folder / "odd.safetensors", 3),
            ("unwritable", folder / "in_the_way" / "fused.safetensors", 4),
        ):
            try:
                quiet_trainer(max_steps=1, **several).fit(
                    made(output), UnlabelledDataModule(list(NAMES), batch_size=size)
                )
            except StaError as error:
                said[what] = str(error)
    print("SAID " + json.dumps(said), flush=True)
