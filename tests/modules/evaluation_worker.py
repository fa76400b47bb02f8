"""What each process of the multi-process evaluation tests runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from sta_lightning.arithmetic import Merged
from sta_lightning.engine import Job
from sta_lightning.modules import CLIPClassifier, ForgetModule, MergeModule, TaskSource
from sta_lightning.modules.accuracy import Accuracy
from sta_lightning.tasks import MultiTaskDataModule, TaskDataModule
from sta_lightning.weights import sha256
from tests.toys import quiet_trainer, register_toys


class Counted(Callback):
    """Tells how many samples this process has counted for each task."""

    def __init__(self) -> None:
        self.samples: list[int] = []

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for metric in pl_module.modules():
            if isinstance(metric, Accuracy):
                self.samples.append(int(metric.total))


def main(processes: int, folder: Path) -> None:
    """Evaluate a merge, a forgetting and a classifier; then train the head alone."""
    register_toys()
    several: dict[str, Any] = {
        "devices": processes,
        "strategy": "ddp" if processes > 1 else "auto",
    }
    said: dict[str, Any] = {"made": 0}
    in_memory = Job.in_memory

    def made(*args: Any) -> Merged:
        said["made"] += 1
        return in_memory(*args)

    Job.in_memory = made  # type: ignore[method-assign]
    tasks = {
        name: TaskSource(f"{folder}/{name}.safetensors", f"{folder}/{name}-importance.safetensors")
        for name in ("spots", "stripes")
    }
    pretrained = str(folder / "pretrained.safetensors")
    counted = Counted()
    merge = MergeModule(tasks, pretrained=pretrained, metrics=["macro", "per_class"])
    merge.output = folder / f"fused-{processes}.safetensors"
    trainer = quiet_trainer(callbacks=[counted], **several)
    trainer.test(merge, MultiTaskDataModule(list(tasks), control="watch", batch_size=2), verbose=False)
    said["merge"] = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
    said["counted"] = counted.samples
    said["file"] = sha256(merge.output)
    said["digest"] = [float(tensor.double().sum()) for tensor in merge.encoder.state_dict().values()]
    chosen = MergeModule(
        tasks,
        pretrained=pretrained,
        method="auto",
        settings={"candidates": ["average", "tsv", "distilled"], "samples": 3, "steps": 4},
    )
    chosen.output = folder / f"chosen-{processes}.safetensors"
    quiet_trainer(**several).test(chosen, MultiTaskDataModule(list(tasks), batch_size=2), verbose=False)
    said["chosen"] = chosen.about["ranking"]
    said["chosen_file"] = sha256(chosen.output)
    if processes > 1:
        forget = ForgetModule(
            "spots",
            finetuned=tasks["spots"].finetuned,
            importance=tasks["spots"].importance,
            pretrained=pretrained,
        )
        trainer = quiet_trainer(**several)
        trainer.test(forget, MultiTaskDataModule(["spots"], control="watch", batch_size=3), verbose=False)
        said["forget"] = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
        said["forgot"] = [float(tensor.double().sum()) for tensor in forget.encoder.state_dict().values()]
        said["change"] = forget.change
    classifier = CLIPClassifier(
        task="spots", pretrained=pretrained, trainable="head", learning_rate=0.1, warmup_steps=0
    )
    data = TaskDataModule("spots", batch_size=8 // processes)
    trainer = quiet_trainer(**several)
    trainer.validate(classifier, data, verbose=False)
    said["classifier"] = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
    if processes == 2:
        before = classifier.head.weight.detach().clone()
        trainer = quiet_trainer(max_epochs=1, **several)
        trainer.fit(classifier, data)
        said["moved"] = not torch.equal(before, classifier.head.weight)
        said["head"] = float(classifier.head.weight.detach().double().sum())
    print("SAID " + json.dumps(said), flush=True)
