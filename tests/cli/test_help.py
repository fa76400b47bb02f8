"""Every subcommand explains its options and prints its configuration."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sta_lightning.cli.help import HELPS
from sta_lightning.cli.main import COMMANDS, main
from sta_lightning.cli.shipped import names, shipped

OWN = {
    "score": ["--weights", "--output", "--measure", "--samples", "--seed", "--model.task"],
    "merge": ["--output", "--evaluate", "--model.tasks", "--model.method", "--model.p", "--model.scale"],
    "forget": ["--output", "--evaluate", "--model.target", "--model.method", "--model.p", "--model.control"],
    "predict": ["--output", "--model", "--task", "--head", "--top", "--skip_broken"],
    "probabilities": ["--output", "--ckpt_path", "--model", "--data"],
    "convert": ["--to", "--encoder", "--pretrained", "--dtype", "--unsafe-pickle"],
    "inspect": ["--pretrained", "--json"],
    "fit": ["--ckpt_path", "--model", "--data", "--trainer.max_epochs"],
    "validate": ["--ckpt_path", "--model", "--data"],
    "test": ["--ckpt_path", "--model", "--data"],
    "benchmark": ["--config", "--output", "--force", "--dry-run", "--seeds", "--methods", "--models.encoder"],
    "methods": [],
    "configs": [],
    "demo": ["--config", "--output", "--force", "--models.samples", "--models.tasks"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_gives_the_meaning_of_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help-all"]) == 0
    text = capsys.readouterr().out
    assert "usage: sta" in text
    for option in OWN[name]:
        assert re.search(rf"^  (-\w \S+, )?{re.escape(option)}[ ,\n]", text, flags=re.MULTILINE), option


@pytest.mark.parametrize("name", ["score", "merge", "forget", "demo", "benchmark"])
def test_no_option_of_ours_lacks_meaning_and_default(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help-all"]) == 0
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
    assert main([name, "--help-all"]) == 0
    text = capsys.readouterr().out
    assert (
        text.index("--output") < text.index("--model.p")
        or name == "score"
        or text.index("--model.p") < text.index("--trainer.max_epochs")
    )
    assert text.index("--output") < text.index("--trainer.max_epochs")


def test_usage_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "--help-all"]) == 0
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
            "probabilities",
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


LISTED = sorted(HELPS)
# Words that stand for what is said in another way, or for an option of a class.
ELSEWHERE = {"--SETTING", "--model.task", "--model.encoder", "--model.learning_rate", "--data.batch_size"}


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("columns", [100, 60])
def test_the_help_is_one_screen(
    name: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: sta {name} ")
    assert text.count("\n") <= 60
    assert max(map(len, text.splitlines())) <= columns
    assert text.partition("examples:\n")[2].count(f"  sta {name}") == 3
    assert text.rstrip().endswith(f"sta {name} --help-all")


@pytest.mark.parametrize("name", LISTED)
def test_what_the_one_screen_names_there_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help-all"]) == 0
    everything = capsys.readouterr().out
    assert "<class" not in everything
    named = {option for group in HELPS[name][2:] for key in group for option in re.findall(r"--[\w.-]+", key)}
    for option in named - ELSEWHERE:
        dotted = option.removeprefix("--").replace("--base", "pretrained")
        dotted = {"base": "pretrained"}.get(dotted, dotted) if name == "forget" else dotted
        assert re.search(rf"--(model\.)?{re.escape(dotted)}\b", everything), option


@pytest.mark.parametrize("name", LISTED)
def test_its_configurations_are_shipped(name: str) -> None:
    for example in HELPS[name].examples:
        for config in re.findall(r"--config sta:(\S+)", example):
            assert shipped(config).is_file()


@pytest.mark.parametrize("words", [["--help"], ["merge", "--help"], ["merge", "--help-all"], ["methods"]])
def test_a_terminal_that_knows_ascii_only(words: list[str]) -> None:
    environment = {
        **os.environ,
        "PYTHONIOENCODING": "ascii",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "COLUMNS": "60",
    }
    command = [sys.executable, "-m", "sta_lightning", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert "?" not in done.stdout.replace("PCB?", "")


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - HELPS.keys()))
def test_the_other_helps_fit_a_narrow_terminal(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main([name, "--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) < 60


def test_the_help_takes_no_library() -> None:
    code = "import sys; from sta_lightning.cli.main import main; main(['fit', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "lightning", "jsonargparse"} & set(done.stdout.split())


def test_configurations_are_listed_and_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["configs"]) == 0
    listed = capsys.readouterr().out
    assert {line.split()[0] for line in listed.splitlines()} == set(names())
    assert "  Fuse the six encoders of the embedded suite into one (the paper's Eq. 19)\n" in listed
    assert main(["configs", "merge/miniature"]) == 0
    copy = tmp_path / "configs" / "merge" / "miniature.yaml"
    assert copy.read_bytes() == shipped("merge/miniature").read_bytes()
    copy.write_text("changed")
    assert main(["configs", "merge/miniature"]) == 2
    assert copy.read_text() == "changed"
    assert main(["configs", "merge/minature"]) == 2
    assert "Did you mean 'merge/miniature'" in capsys.readouterr().err


def test_a_shipped_configuration_by_its_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--data.batch_size=3", "--print_config"]
    assert main(["merge", "--config", "sta:merge/miniature", *words]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["model"]["encoder"], printed["data"]["batch_size"]) == ("miniature", 3)


def test_a_configuration_that_is_not_here_is_named_where_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["merge", "--config", "configs/merge/miniature.yaml"]) == 2
    assert "--config sta:merge/miniature" in capsys.readouterr().err
