"""``{task}`` in a configuration, and the number of epochs that follows from a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from sta_lightning.cli.main import main
from sta_lightning.cli.placeholders import fill_placeholders
from sta_lightning.errors import StaError
from tests.conftest import REPOSITORY

FINETUNE = ["fit", "--config", str(REPOSITORY / "configs/finetune/vit_b_16.yaml")]


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    assert main([*words, "--print_config"]) == 0, capsys.readouterr().err
    return yaml.safe_load(capsys.readouterr().out)


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*words, "--print_config"]) == 2
    return capsys.readouterr().err


def test_texts_at_any_depth_are_filled() -> None:
    logger = Namespace(class_path="Logger", init_args=Namespace(save_dir="{output.parent}", version="{task}"))
    config = Namespace(
        model=Namespace(class_path="Model", init_args=Namespace(task="cars", head="runs/{task}/head", p=0.7)),
        output=Path("runs/{task}/{p}.safetensors".replace("{p}", "out")),
        trainer=Namespace(logger=[logger], plugins={"a": "{task}"}),
    )
    fill_placeholders(config)
    assert config.model.init_args.head == "runs/cars/head"
    assert config.output == Path("runs/cars/out.safetensors")
    assert vars(logger.init_args) == {"save_dir": "runs/cars", "version": "cars"}
    assert config.trainer.plugins == {"a": "cars"}


def test_placeholders_of_another_kind_are_left() -> None:
    checkpoint = {"dirpath": "runs/{task}", "filename": "{epoch}-{step}"}
    config = Namespace(model=Namespace(task="cars", files={"head": "runs/{name}"}), callbacks=[checkpoint])
    fill_placeholders(config)
    assert checkpoint == {"dirpath": "runs/cars", "filename": "{epoch}-{step}"}
    assert config.model.files == {"head": "runs/{name}"}


@pytest.mark.parametrize("name", ["taks", "p", "output.parent", "target"])
def test_an_option_without_a_text_is_refused(name: str) -> None:
    config = Namespace(model=Namespace(task="cars", p=0.7, target=None), head=f"runs/{{{name}}}/head")
    with pytest.raises(StaError, match=rf"head: \{{{name}\}} stands for .* there are 'task'"):
        fill_placeholders(config)


def test_a_task_of_ones_own_stands_for_its_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / "test" / folder).mkdir(parents=True)
    file = tmp_path / "file.yaml"
    file.write_text("name: letters\ntest: test\n")
    config = Namespace(model=Namespace(task=str(file)), output="{task}.csv")
    fill_placeholders(config)
    assert (config.model.task, config.output) == (str(file), "letters.csv")


@pytest.mark.parametrize(
    ("words", "epochs"),
    [
        (["--model.task=cars"], 35),
        (["--model.task=pcam"], 1),
        (["--model.task=cars", "--trainer.max_epochs=2"], 2),
        (["--model.task=cars", "--trainer.max_epochs=-1"], -1),
        (["--model.task=cars", "--trainer.max_steps=9"], None),
        (["--model.task=digits", "--trainer.max_epochs=3"], 3),
        (["--model.task=digits", "--trainer.fast_dev_run=1"], None),
    ],
)
def test_epochs_follow_from_the_task_unless_a_fit_is_bounded(
    words: list[str], epochs: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    found = printed([*FINETUNE, *words], capsys)
    assert found["trainer"]["max_epochs"] == epochs
    task = words[0].partition("=")[2]
    assert found["trainer"]["logger"][0]["init_args"]["version"] == task
    assert found["trainer"]["callbacks"][0]["init_args"]["directory"] == f"runs/finetune/{task}"


def test_a_task_without_a_number_of_epochs_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed([*FINETUNE, "--model.task=digits"], capsys)["trainer"]["max_epochs"] is None
    assert main([*FINETUNE, "--model.task=digits"]) == 2
    message = capsys.readouterr().err
    assert "'digits'" in message
    assert "--trainer.max_epochs" in message


def test_a_wrong_placeholder_is_refused_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model.task=cars", "--trainer.default_root_dir=runs/{tsk}"]
    assert "trainer.default_root_dir: {tsk}" in refused([*FINETUNE, *words], capsys)
