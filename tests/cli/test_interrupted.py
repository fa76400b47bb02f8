"""Ctrl+C in a fit tells what is kept, and the line that goes on from there."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from tests.forks import forked

WORKER = Path(__file__).with_name("interrupted_worker.py")
WORDS = [
    "--config=sta:finetune/miniature",
    "--model.task=spots",
    "--model.pretrained=random",
    "--data.batch_size=8",  # three steps an epoch
    "--data.train_limit=24",
    "--trainer.accelerator=cpu",
]


def test_what_is_kept_and_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    early, late = forked(WORKER, [("fit", tmp_path / "none", 2, *WORDS), ("fit", folder, 7, *WORDS)])
    for done in (early, late):
        assert done.status == 130, done.err
        assert [line for line in done.err.splitlines() if line.startswith("sta: ")] == [
            "sta: error: interrupted"
        ]
    assert early.out.splitlines()[-1] == (
        "Interrupted. No checkpoint has been written yet; the same command begins again."
    )
    assert not list((tmp_path / "none").rglob("*.ckpt"))

    (kept,) = folder.rglob("*.ckpt")
    said, line = late.out.splitlines()[-2:]
    assert said == f"Interrupted. What is done is kept in {kept}; go on from there with"
    assert torch.load(kept, weights_only=True)["global_step"] == 6
    sta, command, *words = shlex.split(line)
    assert (sta, command, words) == ("sta", "fit", [*WORDS, f"--ckpt_path={kept}"])
    ((status, out, err),) = forked(WORKER, [("fit", folder, 0, *words)])
    assert status == 0, err
    assert f"written: {kept}" in out
    assert torch.load(kept, weights_only=True)["global_step"] == 12
