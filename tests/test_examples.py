"""The notebooks under examples/ run from the first cell to the last, in an empty folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))
LEFT = {
    "merge_your_checkpoints": ["merged.safetensors", "without_cars.safetensors"],
    "fine_tune_score_fuse_look": ["fused.safetensors", "kept.svg"],
}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(notebook: Path, tmp_path: Path) -> None:
    cells = json.loads(notebook.read_text())["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    sizes = {"STA_EXAMPLE_EPOCHS": "1", "STA_EXAMPLE_IMAGES": "60", "STA_CACHE": str(tmp_path / "cache")}
    environment = {**os.environ, **sizes, "MPLBACKEND": "agg", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(LEFT[notebook.stem]) <= {path.name for path in tmp_path.rglob("*")}
    assert all(not cell.get("outputs") for cell in cells)


def test_both_are_there() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(LEFT)
