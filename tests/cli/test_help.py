"""Every subcommand explains its options and prints its configuration."""

import re

import pytest
import yaml

from sta_lightning.cli.main import COMMANDS, main

OWN = {
    "score": ["--weights", "--output", "--measure", "--samples", "--seed", "--model.task"],
    "merge": ["--output", "--evaluate", "--model.tasks", "--model.method", "--model.p", "--model.scale"],
    "forget": ["--output", "--evaluate", "--model.target", "--model.method", "--model.p", "--model.control"],
    "predict": ["--output", "--model", "--task", "--head", "--top", "--skip_broken"],
    "convert": ["--to", "--encoder", "--pretrained", "--dtype", "--unsafe-pickle"],
    "inspect": ["--pretrained", "--json"],
    "fit": ["--ckpt_path", "--model", "--data", "--trainer.max_epochs"],
    "validate": ["--ckpt_path", "--model", "--data"],
    "test": ["--ckpt_path", "--model", "--data"],
    "benchmark": ["--config", "--output", "--force", "--dry-run", "--seeds", "--methods", "--models.encoder"],
    "methods": [],
    "demo": ["--config", "--output", "--force", "--models.samples", "--models.tasks"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_gives_the_meaning_of_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "usage: sta" in text
    for option in OWN[name]:
        assert re.search(rf"^  (-\w \S+, )?{re.escape(option)}[ ,\n]", text, flags=re.MULTILINE), option


@pytest.mark.parametrize("name", ["score", "merge", "forget", "demo", "benchmark"])
def test_no_option_of_ours_lacks_meaning_and_default(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out.partition("\noptions:")[2]
    entries = re.split(r"\n  (?=--?\w)", text)
    ours = [" ".join(entry.split()) for entry in entries if not entry.strip().startswith("--trainer")]
    described = [entry for entry in ours if re.match(r"--(?!.*\.help)(model|data|\w+)[\w.]* ", entry)]
    assert len(described) > 10
    for entry in described:
        if " CONFIG " in entry.partition("Path to")[0] or entry.startswith("--print_config"):
            continue
        assert re.search(
            r"\((required, )?type: .*(default: |required)|\(required, type|\(default: ", entry
        ), entry
        meaning = re.sub(r"\((required, )?(type|default).*", "", entry).split(maxsplit=2)[2:]
        assert meaning, entry


@pytest.mark.parametrize("name", ["score", "merge", "forget"])
def test_what_is_ours_stands_before_the_trainer(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert (
        text.index("--output") < text.index("--model.p")
        or name == "score"
        or text.index("--model.p") < text.index("--trainer.max_epochs")
    )
    assert text.index("--output") < text.index("--trainer.max_epochs")


def test_usage_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "--help"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == ""


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "--model=CLIPClassifier", "--data=TaskDataModule", "--model.task=textures", "--print_config"],
        ["validate", "--model=CLIPClassifier", "--data=TaskDataModule", "--print_config"],
        [
            "test",
            "--model=MultiTaskEvaluation",
            "--data=MultiTaskDataModule",
            "--data.tasks=[digits]",
            "--print_config",
        ],
        [
            "predict",
            "--model=CLIPClassifier",
            "--data=TaskDataModule",
            "--output=x.safetensors",
            "--print_config",
        ],
        ["score", "--weights=w.safetensors", "--output=o.safetensors", "--print_config"],
        ["merge", "--output=o.safetensors", "--print_config"],
        [
            "forget",
            "--output=o.safetensors",
            "--model.target=digits",
            "--model.finetuned=f",
            "--print_config",
        ],
        ["demo", "--models.epochs=2", "--print_config"],
    ],
    ids=lambda words: words[0],
)
def test_print_config(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    if words[0] == "demo":
        assert printed["models"]["epochs"] == 2
    else:
        assert {"seed_everything", "trainer", "model", "data"} <= printed.keys()
    if words[0] == "fit":
        assert printed["model"]["class_path"].endswith(".CLIPClassifier")
        assert printed["model"]["init_args"]["task"] == "textures"


def test_configs_stack_and_words_win(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    (folder / "a.yaml").write_text("model: {p: 0.1, method: average}\ntrainer: {max_epochs: 1}\n")
    (folder / "b.yaml").write_text("model: {p: 0.2}\n")
    configs = ["--config", str(folder / "a.yaml"), "--config", str(folder / "b.yaml")]
    assert main(["merge", *configs, "--trainer.max_epochs=5", "--output=o", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["model"]["p"], printed["model"]["method"]) == (0.2, "average")
    assert printed["trainer"]["max_epochs"] == 5
