"""Save a merge and evaluate it on two processes, which Lightning starts; run as a script."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sta_lightning.engine import Job
from sta_lightning.modules import MergeModule, TaskSource
from sta_lightning.tasks import MultiTaskDataModule
from tests.toys import quiet_trainer, register_toys

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    register_toys()
    write, merges = Job.write, []

    def noted(self: Job, *args: Any) -> Any:
        merges.append(args)
        return write(self, *args)

    Job.write = noted  # type: ignore[method-assign]
    tasks = {name: TaskSource(f"{folder}/{name}.safetensors") for name in ("spots", "stripes")}
    data = MultiTaskDataModule(list(tasks), batch_size=4)
    pretrained = str(folder / "pretrained.safetensors")
    for method in ("average", "tsv"):  # the second one after the launch
        module = MergeModule(tasks, pretrained=pretrained, method=method)
        module.save(folder / f"{method}.safetensors")
        trainer = quiet_trainer(devices=2, strategy="ddp")
        trainer.test(module, data, verbose=False)
        found = float(trainer.callback_metrics["test/avg_acc"])
        (folder / f"{method}-{trainer.global_rank}.txt").write_text(f"{len(merges)} {found}")
