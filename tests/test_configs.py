"""Every shipped YAML parses and instantiates; those that a chain of commands shares agree on their files."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sta_lightning.cli.main import main
from tests.conftest import REPOSITORY

CONFIGS = REPOSITORY / "configs"
COMMAND = {
    "finetune": "fit",
    "pretrain": "fit",
    "score": "score",
    "merge": "merge",
    "adamerging": "fit",
    "forget": "forget",
    "demo": "demo",
    "deit": "demo",
    "benchmark": "benchmark",
}
WITHOUT_TRAINER = ("demo", "benchmark")
# These files are stacked on others: tests/test_paper.py has the first, a test below the second.
ELSEWHERE = (CONFIGS / "paper", CONFIGS / "methods")
RUNS = sorted(
    file
    for file in CONFIGS.rglob("*.yaml")
    if file.parent.name != "tasks" and not any(map(file.is_relative_to, ELSEWHERE))
)
TRAINED = [file for file in RUNS if COMMAND[file.relative_to(CONFIGS).parts[0]] not in WITHOUT_TRAINER]
METHODS = sorted((CONFIGS / "methods").rglob("*.yaml"))


def name_of(file: Path) -> str:
    return file.relative_to(CONFIGS).as_posix()


def command_of(file: Path) -> str:
    return COMMAND[file.relative_to(CONFIGS).parts[0]]


@pytest.mark.parametrize("file", [file for file in RUNS if file not in TRAINED], ids=name_of)
def test_parses(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command_of(file), "--config", str(file), "--print_config"]) == 0, capsys.readouterr().err
    printed = yaml.safe_load(capsys.readouterr().out)
    written = yaml.safe_load(file.read_text())
    assert within(printed, written) == written


def within(printed: Any, written: Any) -> Any:
    """What was printed, without the defaults that were filled in."""
    if isinstance(written, dict):
        return {key: within(printed[key], value) for key, value in written.items()}
    return printed


@pytest.mark.parametrize("file", METHODS, ids=name_of)
def test_a_methods_file_goes_on_top_of_a_merges(file: Path, built: list[Any]) -> None:
    command = file.parent.name
    base = CONFIGS / {"merge": "merge/miniature.yaml", "forget": "forget/digits.yaml"}[command]
    assert main([command, "--config", str(base), "--config", str(file)]) == 0
    (cli,) = built
    written = yaml.safe_load(file.read_text())
    assert cli.model.job.name == written["model"]["method"]
    assert all(
        cli.model.job.method.settings()[name] == value
        for name, value in written["model"].get("settings", {}).items()
    )
    named = file.read_text().splitlines()[1]
    assert (
        named
        == f"#   sta {command} --config {base.relative_to(REPOSITORY)} --config {file.relative_to(REPOSITORY)}"
    )


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What a command line has built, in place of running it."""
    from sta_lightning.cli.base import StaCLI

    found: list[Any] = []
    monkeypatch.setattr(StaCLI, "_run_subcommand", lambda self, subcommand: found.append(self))
    monkeypatch.chdir(tmp_path)
    return found


@pytest.mark.parametrize("file", TRAINED, ids=name_of)
def test_instantiates(
    file: Path, built: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if command_of(file) == "score":  # what it scores must be there
        weights = Path(yaml.safe_load(file.read_text())["weights"])
        weights.parent.mkdir(parents=True)
        weights.touch()
    words = ["--trainer.accelerator=cpu", "--trainer.devices=1"]
    assert main([command_of(file), "--config", str(file), *words]) == 0, capsys.readouterr().err
    (cli,) = built
    assert cli.model is not None
    assert cli.datamodule is not None
    assert cli.trainer is not None


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("finetune/*.yaml")), ids=name_of)
def test_the_documented_folders_chain(file: Path) -> None:
    task = file.stem
    fit = yaml.safe_load(file.read_text())
    folder = f"runs/finetune/{task}"
    assert fit["model"]["init_args"]["task"] == task
    exports = [c for c in fit["trainer"]["callbacks"] if c["class_path"] == "ExportWeights"]
    assert [c["init_args"]["directory"] for c in exports] == [folder]

    score = yaml.safe_load((CONFIGS / "score" / f"{task}.yaml").read_text())
    assert score["weights"] == f"{folder}/encoder.safetensors"
    assert score["model"]["head"] == f"{folder}/head.safetensors"
    assert score["output"] == f"{folder}/importance.safetensors"

    forget = yaml.safe_load((CONFIGS / "forget" / f"{task}.yaml").read_text())["model"]
    encoder = fit["model"]["init_args"]["encoder"]
    merges = [yaml.safe_load(merge.read_text())["model"] for merge in CONFIGS.glob("merge/*.yaml")]
    merged = [
        model["tasks"][task] for model in merges if task in model["tasks"] and model["encoder"] == encoder
    ]
    assert merged
    assert score["model"]["encoder"] == forget["encoder"] == encoder
    assert forget["target"] == task
    for files in (forget, *merged):
        assert files["finetuned"] == score["weights"]
        assert files["importance"] == score["output"]
    heads = {forget["target_head"], *(files["head"] for files in merged)}
    assert heads == {score["model"]["head"]}


def test_the_paper_s_recipe() -> None:
    from sta_lightning.tasks.published import EPOCHS

    epochs = {"mnist": 5, "cars": 35, "dtd": 77, "eurosat": 12, "gtsrb": 11, "svhn": 4}
    assert {task: EPOCHS[task] for task in epochs} == epochs
    for task, number in EPOCHS.items():
        fit = yaml.safe_load((CONFIGS / "finetune" / f"{task}.yaml").read_text())
        model = fit["model"]["init_args"]
        assert (model["encoder"], model["pretrained"]) == ("ViT-B-16", "openai")
        assert fit["trainer"]["max_epochs"] == number
        assert fit["trainer"]["gradient_clip_val"] == 1.0
        assert (model["learning_rate"], model["weight_decay"], model["warmup_steps"]) == (1e-5, 0.1, 500)
        assert fit["data"]["init_args"]["batch_size"] == 128


@pytest.mark.parametrize(
    "task", ["digits", "vehicles", "street_numbers", "traffic_signs", "textures", "land_cover"]
)
def test_the_embedded_suite_is_fine_tuned_as_in_the_demo(task: str) -> None:
    from sta_lightning.experiment.settings import ExperimentSettings

    settings = ExperimentSettings()
    recipe = settings.fine_tuning(task)
    fit = yaml.safe_load((CONFIGS / "finetune" / f"{task}.yaml").read_text())
    model, data = fit["model"]["init_args"], fit["data"]["init_args"]
    assert model["learning_rate"] == recipe.learning_rate
    assert model["weight_decay"] == settings.weight_decay
    assert model["warmup_steps"] == settings.warmup_steps
    assert fit["trainer"]["max_epochs"] == recipe.epochs
    assert data["batch_size"] == recipe.batch_size
    assert data.get("train_limit") == recipe.train_limit
