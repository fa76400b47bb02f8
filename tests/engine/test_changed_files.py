"""Files that change, shrink or cannot be written during a merge: one message, status 2."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sta_lightning.kernels.build import compiler
from sta_lightning.weights.opened import OpenFile
from tests.engine.models import Models, command, write_models
from tests.forks import Outcome, forked

WORKER = Path(__file__).with_name("merge_worker.py")
SHAPES = {"small": (40,), "large": (200, 300), "other": (300, 100)}
# What happens, to which file, in which merge.
CALLS = [
    ("shrinks_under_a_loop", "pretrained", "merge"),
    ("shrinks_under_a_loop", "task1", "merge"),
    ("shrinks_under_a_loop", "task2-importance", "merge"),
    ("shrinks_under_a_loop", "task0-importance", "forget"),
    ("shrinks_under_a_loop", "task0", "forget"),
    ("cut_off_compiled_reads", "task1", "merge"),
    ("cut_off_compiled_reads", "task2-importance", "merge"),
    ("cut_off_compiled_reads", "task0", "forget"),
    ("shrinks_when_opened", "task1", "merge"),
    ("shrinks_when_opened", "task0-importance", "forget"),
    ("shrinks_when_read", "task1", "merge"),
    ("shrinks_when_read", "task2-importance", "merge"),
    ("shrinks_when_read", "task0", "forget"),
    ("rewritten", "task1", "merge"),
    ("rewritten", "pretrained", "forget"),
    ("replaced", "task2", "merge"),
    ("full_disk", "", "merge"),
    ("full_disk", "", "forget"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [tmp_path_factory.mktemp("changed") for _ in CALLS]


@pytest.fixture(scope="module")
def outcomes(folders: list[Path], kept_cache: Path) -> list[Outcome]:
    calls = []
    for folder, (act, victim, name) in zip(folders, CALLS, strict=True):
        # Half of the importance files do not tell their bounds, so that these are looked for.
        models: Models = write_models(folder, shapes=SHAPES, known_bounds=name == "merge")
        (folder / "out").mkdir()
        (folder / "out" / "merged.safetensors").write_bytes(b"old")
        words = command(models, folder / "out" / "merged.safetensors", name=name)
        calls.append((act, folder / f"{victim}.safetensors", *words))
    return forked(WORKER, calls, {"STA_CACHE": str(kept_cache)})


@pytest.mark.parametrize("number", range(len(CALLS)), ids=["-".join(call) for call in CALLS])
def test_it_is_refused_and_nothing_is_touched(
    number: int, outcomes: list[Outcome], folders: list[Path]
) -> None:
    act, victim, _ = CALLS[number]
    if act in ("shrinks_under_a_loop", "cut_off_compiled_reads") and compiler() is None:
        pytest.skip("no C compiler")
    status, out, err = outcomes[number]
    assert (status, out) == (2, ""), err
    assert err.startswith("sta: error: ")
    assert err.count("\n") == 1
    if act == "full_disk":
        assert "cannot write" in err
        assert "make room" in err
    else:
        assert f"{victim}.safetensors' was changed while it was read" in err
        assert "Nothing was written" in err
    folder = folders[number] / "out"
    assert os.listdir(folder) == ["merged.safetensors"]
    assert (folder / "merged.safetensors").read_bytes() == b"old"


@pytest.mark.parametrize(("victim", "name"), [("task1", "merge"), ("pretrained", "forget")])
def test_who_would_cut_a_mapped_file_waits(victim: str, name: str, tmp_path: Path, kept_cache: Path) -> None:
    if compiler() is None or not leases(tmp_path):
        pytest.skip("no C compiler, or no leases of files here")
    models: Models = write_models(tmp_path, shapes=SHAPES)
    alone, beside = (tmp_path / f"{place}.safetensors" for place in ("alone", "beside"))
    calls = [
        ("light", *command(models, alone, name=name)),
        ("cut_while_mapped", tmp_path / f"{victim}.safetensors", *command(models, beside, name=name)),
    ]
    for call in calls:
        ((status, _, err),) = forked(WORKER, [call], {"STA_CACHE": str(kept_cache)})
        assert (status, err) == (0, "")
    assert load_file(beside).keys() == load_file(alone).keys()
    assert all(torch.equal(load_file(beside)[key], value) for key, value in load_file(alone).items())


def leases(folder: Path) -> bool:
    """Whether files in a folder can be mapped under a lease."""
    (folder / "leased").write_bytes(b"content")
    with OpenFile(folder / "leased") as file:
        return file.mapped.address() is not None
