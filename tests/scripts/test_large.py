"""The benchmark's sharded model, small: what is made, merged and told."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from scripts.benchmarks import large
from scripts.benchmarks.inputs import Inputs
from scripts.benchmarks.merging import NO_MERGEKIT
from sta_lightning.weights.formats import weight_files


def test_a_sharded_model_of_eight_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STA_CACHE", str(tmp_path / "cache"))
    inputs = Inputs(tmp_path / "inputs")
    section = large.measure(inputs, Namespace(size="8MB", mergekit=None))
    assert [row[0] for row in section.rows] == ["task arithmetic", "TIES", "STA by Amp"]
    for row in section.rows:
        seconds, busy, beyond, private, peak = map(float, row[1:])
        assert seconds > 0
        assert busy > 0
        assert beyond < private < peak
        assert beyond < large.LIMIT
    assert NO_MERGEKIT in section.notes
    models = inputs.folder / "sharded-8000000"
    assert sorted(path.name for path in models.iterdir()) == ["base", "task0", "task1", "task2"]
    for folder in models.iterdir():
        shards = weight_files(folder)
        assert len(shards) >= large.SHARDS
        table = json.loads((folder / "model.safetensors.index.json").read_text())
        assert table["metadata"]["total_size"] == pytest.approx(8e6, rel=0.2)
    # The merged models are not kept.
    assert [path.name for path in inputs.folder.iterdir()] == ["sharded-8000000"]
