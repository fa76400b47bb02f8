"""Every shipped YAML parses and instantiates; those that a chain of commands shares agree on their files."""

from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from sta_lightning.cli.main import main
from sta_lightning.tasks.published import EPOCHS
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
    base = ["--config", f"configs/{command}/miniature.yaml"]
    base += ["--model.target=digits"] if command == "forget" else []
    base_words = [word.replace("configs/", f"{CONFIGS}/") for word in base]
    assert main([command, *base_words, "--config", str(file)]) == 0
    (cli,) = built
    written = yaml.safe_load(file.read_text())
    assert cli.model.job.name == written["model"]["method"]
    assert all(
        cli.model.job.method.settings()[name] == value
        for name, value in written["model"].get("settings", {}).items()
    )
    named = file.read_text().splitlines()[1]
    assert named == f"#   sta {command} {' '.join(base)} --config {file.relative_to(REPOSITORY)}"


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
    command, task = command_of(file), "digits" if file.stem.startswith("miniature") else "dtd"
    words = ["--trainer.accelerator=cpu", "--trainer.devices=1"]
    words += {"finetune": [f"--model.task={task}"], "score": [f"--model.task={task}"]}.get(
        file.parent.name, []
    )
    words += [f"--model.target={task}"] if command == "forget" else []
    if command == "score":  # what it scores must be there
        weights = Path(f"runs/finetune/{task}/encoder.safetensors")
        weights.parent.mkdir(parents=True)
        weights.touch()
    assert main([command, "--config", str(file), *words]) == 0, capsys.readouterr().err
    (cli,) = built
    assert cli.model is not None
    assert cli.datamodule is not None
    assert cli.trainer is not None


def content(kind: str, family: str) -> dict[str, Any]:
    text = (CONFIGS / kind / f"{family}.yaml").read_text()
    return cast(dict[str, Any], yaml.safe_load(text))


@pytest.mark.parametrize("family", ["miniature", "vit_b_16"])
def test_the_documented_folders_chain(family: str) -> None:
    folder = "runs/finetune/{task}"
    fit, score, forget = (content(kind, family) for kind in ("finetune", "score", "forget"))
    exports = [c for c in fit["trainer"]["callbacks"] if c["class_path"] == "ExportWeights"]
    assert [c["init_args"]["directory"] for c in exports] == [folder]
    assert score["weights"] == f"{folder}/encoder.safetensors"
    assert score["model"]["head"] == f"{folder}/head.safetensors"
    assert score["output"] == f"{folder}/importance.safetensors"

    read = {"finetuned": score["weights"], "importance": score["output"], "head": score["model"]["head"]}
    model = forget["model"]
    found = {"finetuned": model["finetuned"], "importance": model["importance"], "head": model["target_head"]}
    assert found == {key: path.replace("{task}", "{target}") for key, path in read.items()}
    encoder = fit["model"]["init_args"]["encoder"]
    assert score["model"]["encoder"] == model["encoder"] == encoder
    for merge in CONFIGS.glob(f"merge/{family}*.yaml"):
        model = yaml.safe_load(merge.read_text())["model"]
        assert model["encoder"] == encoder
        for task, files in model["tasks"].items():
            assert files == {key: path.replace("{task}", task) for key, path in read.items()}


def test_the_paper_s_recipe() -> None:
    epochs = {"mnist": 5, "cars": 35, "dtd": 77, "eurosat": 12, "gtsrb": 11, "svhn": 4}
    assert {task: EPOCHS[task] for task in epochs} == epochs
    fit = content("finetune", "vit_b_16")
    model = fit["model"]["init_args"]
    assert (model["encoder"], model["pretrained"]) == ("ViT-B-16", "openai")
    assert "max_epochs" not in fit["trainer"]  # each task has its own
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
    fit = content("finetune", "miniature")
    model, data = fit["model"]["init_args"], fit["data"]["init_args"]
    assert model["learning_rate"] == recipe.learning_rate
    assert model["weight_decay"] == settings.weight_decay
    assert model["warmup_steps"] == settings.warmup_steps
    assert fit["trainer"]["max_epochs"] == recipe.epochs
    assert data["batch_size"] == recipe.batch_size
    assert data.get("train_limit") == recipe.train_limit
