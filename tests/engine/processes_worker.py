"""What each process of the multi-process tests of merging runs. Imports no Lightning."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

import torch.distributed as dist

from sta_lightning.cli.main import main as sta


def main(processes: int, folder: Path) -> None:
    """Run the command lines that the test has left, and print what became of each."""
    calls = json.loads((folder / "calls.json").read_text())
    own = folder / f"on{processes}"
    for number, words in enumerate(calls):
        # The first forms the group itself, as `sta` does; the others find one.
        if number == 1 and processes > 1:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/group{processes}",
                rank=int(os.environ["RANK"]),
                world_size=processes,
            )
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            status = sta([word.replace("{own}", str(own)) for word in words])
        print("SAID " + json.dumps([status, err.getvalue()]), flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()
