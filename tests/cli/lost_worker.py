"""Runs on two processes of which the second never comes, or ends in the middle."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

import torch.distributed as dist

from sta_lightning.callbacks.sampled import SampledPass
from sta_lightning.cli.main import main as sta
from tests.toys import register_toys


def main(processes: int, folder: Path) -> None:
    """Run the next of the cases that the test has left; each says where the second process ends."""
    register_toys()
    cases = json.loads((folder / "cases.json").read_text())
    number = len(list(folder.glob("said-*.json")))
    ends, words = cases[number]
    if os.environ["RANK"] == "1":
        if ends == "before":
            os._exit(0)
        if ends == "merging":
            dist.init_process_group("gloo")
            os._exit(0)
        SampledPass.write = lambda *_: os._exit(0)  # type: ignore[method-assign,assignment]
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        status = sta(words)
    (folder / f"said-{number}.json").write_text(json.dumps([status, err.getvalue()]))
