"""Every shipped YAML parses and instantiates; those of one chain agree on their files."""

import re
import shlex
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from lightning.pytorch import LightningDataModule, LightningModule

from sta_lightning.arithmetic import FORGET_METHODS, FUSION_METHODS
from sta_lightning.cli.main import main
from sta_lightning.engine.defaults import BY_IMAGES
from sta_lightning.tasks.published import EPOCHS
from tests.command_lines import documented, instantiated, parsed
from tests.conftest import REPOSITORY

CONFIGS = REPOSITORY / "configs"
COMMAND = {
    "finetune": "fit",
    "pretrain": "fit",
    "score": "score",
    "merge": "merge",
    "adamerging": "fit",
    "distilled": "fit",
    "forget": "forget",
    "benchmark": "benchmark",
}
SUITES = sorted((CONFIGS / "merge").glob("vit_b_16_*.yaml"))
# Parts: tests/test_paper.py has the first, a test below the second.
ELSEWHERE = [*(CONFIGS / "paper").rglob("*.yaml"), *SUITES]
RUNS = sorted(
    file for file in CONFIGS.rglob("*.yaml") if file.parent.name != "tasks" and file not in ELSEWHERE
)
TRAINED = [file for file in RUNS if file.parent.name != "benchmark"]
METHODS = (REPOSITORY / "docs" / "methods" / "README.md").read_text()


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


def test_there_are_few_files() -> None:
    assert len(list(CONFIGS.rglob("*.yaml"))) <= 50


@pytest.mark.parametrize("file", TRAINED, ids=name_of)
def test_instantiates(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = words_of(file)
    assert words[0] == command_of(file)
    made = instantiated([*words, "--trainer.accelerator=cpu", "--trainer.devices=1"])
    assert isinstance(made.model, LightningModule)
    assert isinstance(made.data, LightningDataModule)


def words_of(file: Path) -> list[str]:
    """The command in a file's first lines, with absolute paths, up to the user's folders."""
    first = documented(file.read_text())[0]
    assert f"configs/{name_of(file)}" in first
    return [str(REPOSITORY / word) if word.startswith("configs/") else word for word in first]


@pytest.mark.parametrize("file", SUITES, ids=name_of)
def test_a_suite_goes_on_top_of_the_merge(file: Path) -> None:
    from sta_lightning.tasks.published import SUITES as TASKS

    found = parsed(words_of(file))
    assert found["model"]["tasks"] == list(TASKS[file.stem.rsplit("_", 1)[-1]])
    assert found["output"] == f"runs/merge/{file.stem}/fused.safetensors"
    assert found["model"]["files"] == parsed(words_of(CONFIGS / "merge/vit_b_16.yaml"))["model"]["files"]


@pytest.mark.parametrize(
    ("command", "row"),
    [
        (command, row)
        for command in ("merge", "forget")
        for row in re.findall(
            r"^\| `(--model\.[^`]*)`",
            METHODS.split(f"| `sta {command}` with")[1].split("\n\n")[0],
            re.MULTILINE,
        )
    ],
)
def test_a_documented_method_goes_on_top_of_a_merge(command: str, row: str) -> None:
    options = shlex.split(row)
    target = ["--model.target=digits"] if command == "forget" else []
    base = [command, "--config", str(CONFIGS / command / "miniature.yaml"), *target]
    module = instantiated([*base, *options, "--trainer.accelerator=cpu", "--trainer.logger=false"]).model
    job, asked = module.job, dict(option.removeprefix("--model.").split("=", 1) for option in options)
    method = asked.get("method", "sta")
    assert module.hparams["method"] == method
    # What looks at images has another job until they are there.
    assert job.name == method or method in BY_IMAGES
    assert yaml.safe_load(asked.get("settings", "{}")).items() <= job.method.settings().items()


def test_every_method_is_documented_with_its_line() -> None:
    for command, methods in (("merge", FUSION_METHODS), ("forget", FORGET_METHODS)):
        table = METHODS.split(f"| `sta {command}` with")[1].split("\n\n")[0]
        assert set(methods) - set(re.findall(r"--model\.method=(\w+)", table)) <= {"vectors", "vector"}


FINETUNING = (REPOSITORY / "docs" / "finetuning.md").read_text()


def test_the_documented_metrics_are_chosen_in_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (yaml_text,) = re.findall(r"```yaml\n(.*?)```", FINETUNING, re.DOTALL)
    Path("metrics.yaml").write_text(yaml_text)
    every = ["macro", "top5", "per_class", "confusion"]
    words = ["fit", "--config", str(CONFIGS / "finetune/miniature.yaml"), "--config", "metrics.yaml"]
    assert parsed([*words, "--model.task=digits"])["model"]["init_args"]["metrics"] == every
    merge = ["merge", "--config", str(CONFIGS / "merge/miniature.yaml"), "--model.metrics=[macro]"]
    assert parsed(merge)["model"]["metrics"] == ["macro"]


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
    merge = content("merge", family)["model"]
    assert (merge["encoder"], merge["files"]) == (encoder, read)


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
    from sta_lightning.benchmark.settings import ModelSettings

    settings = ModelSettings()
    recipe = settings.fine_tuning(task)
    fit = content("finetune", "miniature")
    model, data = fit["model"]["init_args"], fit["data"]["init_args"]
    assert model["learning_rate"] == recipe.learning_rate
    assert model["weight_decay"] == settings.weight_decay
    assert model["warmup_steps"] == settings.warmup_steps
    assert fit["trainer"]["max_epochs"] == recipe.epochs
    assert data["batch_size"] == recipe.batch_size
    assert data.get("train_limit") == recipe.train_limit
