"""A process that is lost does not leave the others waiting for ever."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.engine.models import command, write_models
from tests.launch import launch
from tests.toys import write_pretrained

pytestmark = pytest.mark.timeout(900)
WORKER = Path(__file__).with_name("lost_worker.py")


def test_the_others_say_so_and_end(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    pretrained = write_pretrained(tmp_path / "pretrained.safetensors")
    score = [
        *("score", "--model.task=spots", f"--model.pretrained={pretrained}", "--data.batch_size=4"),
        *(f"--weights={pretrained}", f"--output={tmp_path / 'out' / 'score.safetensors'}", "--samples=4"),
        *("--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"),
    ]
    merge = command(write_models(tmp_path / "models"), tmp_path / "out" / "merged.safetensors")
    cases = [
        ("before", [*merge, "--timeout=3"]),
        ("merging", [*merge, "--timeout=3"]),
        ("before", [*score, "--timeout=3"]),
        ("scoring", [*score, "--timeout=60"]),
    ]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    launch(WORKER, [2] * len(cases), tmp_path)
    for number, (ends, words) in enumerate(cases):
        status, err = json.loads((tmp_path / f"said-{number}.json").read_text())
        said = [line for line in err.splitlines() if line.startswith("sta: ")]
        assert status == 2, (ends, words[0], err)
        assert len(said) == 1
        assert "another process of this run has ended, or did not answer in time (--timeout" in said[0]
    assert os.listdir(tmp_path / "out") == []
