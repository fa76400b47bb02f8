"""Every mistake is one message with status 2: what was asked, what was found, how to mend it."""

from pathlib import Path

import pytest

from sta_lightning.cli.main import main
from tests.conftest import REPOSITORY

FIT = [
    *("fit", "--model=CLIPClassifier", "--data=TaskDataModule"),
    *("--trainer.logger=false", "--trainer.max_epochs=1"),
]
MERGE = ["merge", "--config", str(REPOSITORY / "configs" / "merge" / "miniature.yaml")]
SCORE = ["score", "--config", str(REPOSITORY / "configs" / "score" / "miniature.yaml")]
FORGET = [
    *("forget", "--config", str(REPOSITORY / "configs" / "forget" / "miniature.yaml")),
    "--model.target=digits",
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with (empty) files of the names that the configurations expect."""
    monkeypatch.chdir(tmp_path)
    for task in ("digits", "vehicles", "street_numbers", "traffic_signs", "textures", "land_cover"):
        folder = tmp_path / "runs" / "finetune" / task
        folder.mkdir(parents=True)
        for name in ("encoder", "importance", "head"):
            (folder / f"{name}.safetensors").touch()


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one message of a command line that is refused."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    messages = [line for line in err.splitlines() if line.startswith("sta: error: ")]
    assert len(messages) == 1
    assert len(messages[0]) < 900
    assert "NestedArg" not in err
    assert "Union subtypes" not in err
    return messages[0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([*MERGE, "--model.p=1.3"], ["1.3", "p"]),
        ([*FORGET, "--model.p=-0.1"], ["-0.1"]),
        ([*MERGE, "--model.p=half"], ["--model.p", "a number", "'half'"]),
        ([*MERGE, "--model.method=stta"], ["'stta'", "'sta'"]),
        ([*FORGET, "--model.method=average"], ["'average'", "task_arithmetic"]),
        ([*MERGE, "--model.measure=lq"], ["'lq'", "lp"]),
        ([*MERGE, "--model.metod=sta"], ["--model.metod", "'model.method'"]),
        ([*MERGE, "--otput=x"], ["--otput", "'output'"]),
        ([*MERGE, "--evaluate=maybe"], ["--evaluate", "true or false", "'maybe'"]),
        ([*MERGE, "--model.scale=0.3"], ["scale"]),
        ([*MERGE, "--model.tasks={digits: {finetund: x}}"], ["finetund", "'finetuned'"]),
        ([*MERGE, "--output=fused.pt"], ["fused.pt", ".safetensors"]),
        ([*MERGE, "--data.tasks=[digits]"], ["data.tasks", "model.tasks"]),
        ([*MERGE, "stray"], ["'stray'"]),
        ([*MERGE, "--trainer.accelerator=abacus"], ["trainer", "abacus"]),
        ([*MERGE, "--trainer.max_epochs=many"], ["--trainer.max_epochs", "an integer", "'many'"]),
        (["merge", "--output=o.safetensors"], ["--model.tasks", "must be given"]),
        (["forget"], ["must be given"]),
        ([*SCORE, "--measure=loss"], ["--measure", "'lp'", "'loss'"]),
        ([*SCORE, "--weights=nowhere.safetensors"], ["--weights", "nowhere.safetensors"]),
        ([*SCORE, "--weights=nowhere.ckpt"], ["--weights", "nowhere.ckpt"]),
        (["fit"], ["--data", "--model", "must be given"]),
        ([*FIT, "--optimizer=SGD"], ["--optimizer", "'model.optimizer'"]),
        ([*FIT, "--lr_scheduler=StepLR"], ["--lr_scheduler", "'model.lr_scheduler'"]),
        ([*FIT, "--batch_size=4"], ["--batch_size", "'data.batch_size'"]),
        (["fit", "--config", "nowhere.yaml"], ["nowhere.yaml", "does not exist"]),
        (["fit", "--config"], ["--config"]),
        (["fit", "--model=CLIPClassifer", "--data=TaskDataModule"], ["'CLIPClassifer'", "'CLIPClassifier'"]),
        ([*FIT, "--model.encodr=x"], ["model.encodr", "'encoder'"]),
        ([*FIT, "--model.trainable=all"], ["--model.trainable", "'head'", "'all'"]),
        ([*FIT, "--model.task=digts"], ["digts", "digits"]),
        ([*FIT, "--model.encoder=ViT-B-99"], ["ViT-B-99"]),
        ([*FIT, "--model.label_smoothing=2"], ["label_smoothing"]),
        ([*FIT, "--data.batch_size=0"], ["batch_size"]),
        (
            [*FIT, "--model.task=digits", "--data.task=textures"],
            ["data.task", "'textures'", "model.task", "'digits'"],
        ),
        ([*FIT, "--ckpt_path=nowhere.ckpt"], ["--ckpt_path", "nowhere.ckpt"]),
        ([*FIT, f"--ckpt_path={__file__}"], ["--ckpt_path", "cannot be read"]),
        ([*FIT, "--trainer.callbacks=ExportWeight"], ["'ExportWeight'", "'ExportWeights'"]),
        (
            [
                *FIT,
                "--trainer.callbacks=ImportanceScoring",
                "--trainer.callbacks.output=o",
                "--trainer.callbacks.samples=0",
            ],
            ["samples", "0"],
        ),
        (["demo", "--epocs=3"], ["--epocs", "'models.epochs'"]),
        (["demo", "--models.learning_rate=high"], ["--models.learning_rate", "a number", "'high'"]),
        (["demo", "--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["demo", "--output=${STA_NO_SUCH_VARIABLE}"], ["STA_NO_SUCH_VARIABLE"]),
        (["demo", "--models.tasks=[digts]"], ["digts"]),
    ],
    ids=lambda value: " ".join(value)[-60:].replace("/", "_") if isinstance(value, list) else None,
)
def test_mistakes_on_the_command_line(
    words: list[str],
    expected: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    before = sorted(tmp_path.rglob("*"))
    message = refused(words, capsys)
    for part in expected:
        assert part in message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "content", "expected"),
    [
        ("merge", "modl: {p: 0.5}\n", ["modl", "'model'"]),
        ("merge", "model: {p: 0.5, metod: sta}\n", ["model.metod", "'method'"]),
        (
            "merge",
            "data: {tasks: [digits]}\nmodel: {encoder: miniature, tasks: {a: settings.yaml}}\noutput: o.safetensors\n",
            ["data.tasks", "'digits'", "model.tasks"],
        ),
        ("merge", "model: {p: [1, 2]}\n", ["--model.p", "a number"]),
        ("merge", "model: {p: 0.5\n", ["not valid YAML", "line 2"]),
        (
            "merge",
            "trainer: {max_epohs: 3}\nmodel: {encoder: miniature, tasks: {a: settings.yaml}}\noutput: o.safetensors\n",
            ["trainer.max_epohs", "'max_epochs'"],
        ),
        ("fit", "- CLIPClassifier\n", ["expected a mapping"]),
        (
            "fit",
            "model: {class_path: CLIPClassifier, init_args: {encodr: x}}\n",
            ["model.encodr", "'encoder'"],
        ),
        ("fit", "model: {class_path: Nothing}\n", ["--model", "'Nothing'"]),
        ("fit", "trainer: {callbacks: [{class_path: ExportWeights, init_args: {folder: x}}]}\n", ["folder"]),
        (
            "fit",
            "model: {class_path: CLIPClassifier, init_args: {image_size: 32}}\n"
            "data: {class_path: TaskDataModule, init_args: {image_size: 64}}\n",
            ["data.image_size", "64", "32"],
        ),
        ("demo", "models: {epocs: 3}\n", ["epocs", "'epochs'"]),
        ("demo", "models: {tasks: digits}\n", ["tasks", "a list"]),
    ],
)
def test_mistakes_in_a_file(
    command: str, content: str, expected: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    message = refused([command, "--config", str(file)], capsys)
    for part in expected:
        assert part in message


def test_debug_shows_the_exception() -> None:
    from sta_lightning.errors import StaError

    with pytest.raises(StaError, match=r"1\.3"):
        main([*MERGE, "--model.p=1.3", "--debug"])
