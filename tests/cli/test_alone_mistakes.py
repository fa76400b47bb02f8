"""Mistakes where nothing is evaluated: one message with status 2, and no stack trace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sta_lightning.cli import merge_evaluated
from sta_lightning.cli.main import main
from tests.engine.models import Models, command, write_models


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STA_CACHE", str(tmp_path_factory.getbasetemp() / "alone"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return write_models(tmp_path_factory.mktemp("models"))


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one message of a command line that is refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge_evaluated, "run", lambda name, words: pytest.fail("it is not evaluated"))
        assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sta: error: ")
    assert err.count("\n") == 1, err
    assert len(err) < 900
    assert "Traceback" not in err
    assert "NestedArg" not in err
    return err


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--model.p=1.3"], ["p must be", "1.3"]),
        (["--model.p=half"], ["--model.p", "a number", "'half'"]),
        (["--model.method=stta"], ["'stta'", "'sta'"]),
        (["--model.measure=lq"], ["'lq'", "'lp'"]),
        (["--model.normalize=layer"], ["'layer'", "'tensor'"]),
        (["--model.scale=0.4"], ["has no coefficient"]),
        (["--model.dtype=int8"], ["--model.dtype", "'int8'"]),
        (["--model.metod=sta"], ["--model.metod", "'model.method'"]),
        (["--otput=x"], ["--otput", "'output'"]),
        (["stray"], ["'stray'"]),
        (["--model.tasks={}"], ["nothing to merge"]),
        (["--model.tasks={one: {finetund: x}}"], ["finetund", "'finetuned'"]),
        (["--model.tasks={one: x.safetensors}"], ["'one'", "'x.safetensors'", "looked from"]),
        (["--model.tasks=3"], ["--model.tasks"]),
        (["--model.tasks={one: {finetuned: nowhere.safetensors}}"], ["nowhere.safetensors", "'one'"]),
        (["--model.pretrained=nowhere.safetensors"], ["nowhere.safetensors"]),
        (["--model.encoder=ViT-B-99"], ["ViT-B-99"]),
        (["--trainer.max_epoch=3"], ["--trainer.max_epoch ", "--evaluate=false"]),
        (["--data.batch_size", "8"], ["--data.batch_size ", "--evaluate=false"]),
        (["--seed_everything=1"], ["--seed_everything ", "--evaluate=false"]),
        (["--output=merged.pt"], ["merged.pt", ".safetensors"]),
        (["--output=."], ["a folder"]),
        (["--config=nowhere.yaml"], ["nowhere.yaml", "does not exist"]),
        (["--config=broken.yaml"], ["broken.yaml", "not valid YAML", "line 2"]),
        (["--config=list.yaml"], ["list.yaml", "expected a mapping"]),
        (["--config=modl.yaml"], ["modl.yaml", "modl", "'model'"]),
        (["--config=metod.yaml"], ["metod.yaml", "model.metod", "'method'"]),
        (["--config=number.yaml"], ["--model.p", "a number"]),
    ],
    ids=lambda value: (
        " ".join(value) if isinstance(value, list) and value[0].startswith(("--", "stray")) else None
    ),
)
def test_mistakes(
    more: list[str],
    expected: list[str],
    models: Models,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, text in {
        "broken": "model: {p: 0.5\n", "list": "- model\n", "modl": "modl: {p: 0.5}\n",
        "metod": "model: {metod: sta}\n", "number": "model: {p: [1, 2]}\n",
    }.items():  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(tmp_path))
    message = refused([*command(models, tmp_path / "merged.safetensors"), *more], capsys)
    for part in expected:
        assert part in message
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["merge", "--output=o.safetensors"], ["--model.tasks", "must be given"]),
        (["merge", "--model.tasks={a: {finetuned: x}}"], ["--output", "must be given"]),
        (["forget", "--output=o.safetensors"], ["--model.target", "must be given"]),
        (["forget", "--output=o.safetensors", "--model.target=a", "--model.finetuned=a.safetensors", "--model.normalize=model"],
         ["--model.normalize"]),
        (["forget", "--output=o.safetensors", "--model.target=a", "--model.finetuned=a.safetensors", "--model.method=average"],
         ["'average'", "'task_arithmetic'"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)  # fmt: skip
def test_what_must_be_given(
    words: list[str],
    expected: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused([words[0], "--evaluate=false", *words[1:]], capsys)
    for part in expected:
        assert part in message
    assert not list(tmp_path.iterdir())
