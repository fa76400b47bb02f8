"""The settings of a merge are stated once; the modules that evaluate hand them on."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser

from sta_lightning.arithmetic.forgetting import RandomForgetting, StaForgetting
from sta_lightning.arithmetic.fusion import RandomMask, Sta
from sta_lightning.arithmetic.linear import Average, Negation, TaskArithmetic
from sta_lightning.engine import ForgettingOptions, FusionOptions, TaskSource
from sta_lightning.engine.processes import own_device
from sta_lightning.errors import StaError

TASKS = {name: TaskSource(f"{name}.safetensors", f"{name}-importance.safetensors") for name in "ab"}


def described(of: type[Any]) -> dict[str, str]:
    """Every option of a class on a command line, with its text, type and default."""
    parser = ArgumentParser()
    parser.add_class_arguments(of, "model", fail_untyped=True)
    entries = re.split(r"\n  --model\.", parser.format_help())[1:]
    words = [entry.split("\n\n")[0].split() for entry in entries]
    return {entry[0]: " ".join(entry[2:]) for entry in words if not entry[0].endswith(".help")}


@pytest.mark.parametrize(
    ("options", "module"), [(FusionOptions, "MergeModule"), (ForgettingOptions, "ForgetModule")]
)
def test_the_module_takes_them_all_with_their_text(options: type[Any], module: str) -> None:
    from sta_lightning import modules

    expected = described(options)
    assert {name.split(".")[0] for name in expected} == {
        field.name for field in dataclasses.fields(options) if field.init
    }
    # The files of all tasks are a group of options, whose own text is the group's title.
    texts = [text for name, text in expected.items() if name != "files"]
    assert all("type: " in text and not text.startswith("(") for text in texts)
    assert described(getattr(modules, module)) == expected


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({}, Sta(0.7, "tensor")),
        ({"p": 0.3, "normalize": "block"}, Sta(0.3, "block")),
        ({"method": "random_mask", "seed": 4}, RandomMask(0.7, 4)),
        ({"method": "average"}, Average()),
        ({"method": "task_arithmetic"}, TaskArithmetic(0.4)),
        ({"method": "task_arithmetic", "scale": 0.2}, TaskArithmetic(0.2)),
    ],
)
def test_the_fusion_that_they_ask_for(settings: dict[str, Any], method: object) -> None:
    job = FusionOptions(TASKS, **settings).job()
    assert job.method == method
    assert job.tasks == TASKS


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({}, StaForgetting(0.7)),
        ({"p": 0.3}, StaForgetting(0.3)),
        ({"method": "random_mask", "seed": 4}, RandomForgetting(0.7, 4)),
        ({"method": "task_arithmetic"}, Negation(1.0)),
        ({"method": "task_arithmetic", "scale": 0.2}, Negation(0.2)),
    ],
)
def test_the_forgetting_that_they_ask_for(settings: dict[str, Any], method: object) -> None:
    job = ForgettingOptions("a", "a.safetensors", "i.safetensors", model="m.safetensors", **settings).job()
    assert job.method == method
    assert job.target == "a"
    assert job.start == "m.safetensors"
    assert dataclasses.astuple(job.tasks["a"])[:2] == ("a.safetensors", "i.safetensors")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": {}}, "nothing to merge"),
        ({"method": "stta"}, "method 'stta' is unknown"),
        ({"p": 1.2}, "p must be a number"),
        ({"scale": 0.3}, "has no coefficient"),
        ({"normalize": "layer"}, "normalize='layer' was asked for; choose one of 'tensor', 'block'"),
        ({"measure": "lq"}, "measure='lq' was asked for"),
        ({"dtype": "float8"}, "dtype='float8' was asked for"),
        ({"method": "task_arithmetic", "scale": float("nan")}, "scale must be a finite number"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StaError, match=message):
        FusionOptions(**{"tasks": TASKS, **settings}).job()


def test_a_gpu_without_a_number_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device(torch.device("cuda")) == torch.device("cuda", 3)
    assert own_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert own_device(torch.device("cpu")) == torch.device("cpu")
    assert own_device(None) is None
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.setenv("SLURM_LOCALID", "6")
    assert own_device(torch.device("cuda")) == torch.device("cuda", 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)  # a trainer's choice
    assert own_device(torch.device("cuda")) == torch.device("cuda", 1)
