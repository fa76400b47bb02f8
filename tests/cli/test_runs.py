"""One quick run of every subcommand, chained as a user would chain them, and what each refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from sta_lightning.cli.main import main
from sta_lightning.encoders import build_encoder
from sta_lightning.modules import CLIPClassifier
from sta_lightning.tasks import TaskDataModule
from tests.conftest import REPOSITORY
from tests.toys import write_pretrained

CONFIGS = REPOSITORY / "configs"
# Untrained weights: these tests are about the plumbing, and need no file of the package.
QUIET = ["--model.pretrained=random", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
TASKS = ("digits", "textures")


def sta(*words: object) -> int:
    return main([str(word) for word in words])


def config(kind: str, task: str) -> list[str]:
    option = "target" if kind == "forget" else "task"
    return ["--config", str(CONFIGS / kind / "miniature.yaml"), f"--model.{option}={task}"]


@pytest.fixture(scope="module")
def finetuned(tiny_suite: Path) -> Path:
    """The folder in which two encoders have been fine-tuned by the shipped configs."""
    for task in TASKS:
        assert (
            sta("fit", *config("finetune", task), *QUIET, "--trainer.max_epochs=1", "--data.batch_size=24")
            == 0
        )
    return tiny_suite


@pytest.fixture(scope="module")
def scored(finetuned: Path) -> Path:
    """The same folder, with importances."""
    for task in TASKS:
        assert sta("score", *config("score", task), *QUIET, "--samples=4") == 0
    return finetuned


@pytest.fixture(scope="module")
def merge_config(scored: Path) -> Path:
    """The shipped merge, of the two tasks that were fine-tuned."""
    import yaml

    content = yaml.safe_load((CONFIGS / "merge" / "miniature.yaml").read_text())
    content["model"]["tasks"] = list(TASKS)
    file = scored / "merge.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata())


def test_fit_leaves_what_the_other_configs_read(finetuned: Path) -> None:
    for task in TASKS:
        folder = finetuned / "runs" / "finetune" / task
        for name in ("encoder.safetensors", "head.safetensors", "checkpoints/last.ckpt", "fit.yaml"):
            assert (folder / name).is_file(), name
        assert list(folder.glob("events.out.tfevents*"))
        assert list(folder.glob("csv/*/metrics.csv"))


@pytest.mark.parametrize("trained", ["head", "both"])
def test_the_shipped_fits_of_a_head_train_what_they_say(trained: str, tiny_suite: Path) -> None:
    def loss(task: str, **files: Any) -> float:
        module = CLIPClassifier(task=task, **files)
        module.build()
        images, labels = zip(*TaskDataModule(task).dataset("train"), strict=True)
        with torch.no_grad():
            return float(cross_entropy(module(torch.stack(images)), torch.tensor(labels)))

    for task in TASKS:
        base, on_top = config("finetune", task), ["--config", str(CONFIGS / "finetune" / f"{trained}.yaml")]
        words = [*base[:2], *on_top, *base[2:], *QUIET[1:], "--data.batch_size=24"]
        assert sta("fit", *words) == 0
        folder = tiny_suite / "runs" / f"finetune_{trained}" / task
        start, moved = build_encoder("miniature").state_dict(), load_file(folder / "encoder.safetensors")
        same = [torch.equal(moved[f"visual.{name}"], tensor) for name, tensor in start.items()]
        assert all(same) if trained == "head" else sum(same) < len(same) / 2
        files = {"weights": str(folder / "encoder.safetensors"), "head": str(folder / "head.safetensors")}
        before, head_alone, after = loss(task), loss(task, head=files["head"]), loss(task, **files)
        assert after < 0.9 * before
        assert (head_alone == after) == (trained == "head")
        assert (folder / "checkpoints" / "last.ckpt").is_file()
        assert list(folder.glob("events.out.tfevents*"))


def test_fit_resumes_and_names_what_it_wrote(finetuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finetuned / "runs" / "finetune" / "digits"
    words = [
        *QUIET[:-1],  # with progress, which nothing can redraw here
        "--data.batch_size=24",
        "--trainer.max_epochs=2",
        f"--ckpt_path={folder / 'checkpoints/last.ckpt'}",
    ]
    assert sta("fit", *config("finetune", "digits"), *words) == 0
    assert json.loads(metadata(folder / "encoder.safetensors")["settings"])["steps"] == 4
    out, err = capsys.readouterr()
    assert "\r" not in out + err
    told = [line.removeprefix("written: ") for line in out.splitlines() if "written: " in line]
    names = ("encoder.safetensors", "head.safetensors", "checkpoints/last.ckpt")
    assert [Path(path).resolve() for path in told] == [(folder / name).resolve() for name in names]


@pytest.mark.parametrize("name", ["validate", "test"])
def test_evaluations_leave_the_records_of_the_fit_alone(name: str, finetuned: Path) -> None:
    folder = finetuned / "runs" / "finetune" / "digits"
    before = {file: file.read_bytes() for file in (folder / "fit.yaml", *folder.glob("csv/*/metrics.csv"))}
    checkpoint = folder / "checkpoints" / "last.ckpt"
    assert sta(name, *config("finetune", "digits"), *QUIET, f"--ckpt_path={checkpoint}") == 0
    assert {file: file.read_bytes() for file in before} == before
    assert (folder / f"{name}.yaml").is_file()


def test_probabilities_are_written(finetuned: Path) -> None:
    checkpoint = finetuned / "runs" / "finetune" / "digits" / "checkpoints" / "last.ckpt"
    output = finetuned / "probabilities.safetensors"
    words = [*config("finetune", "digits"), *QUIET, f"--ckpt_path={checkpoint}", f"--output={output}"]
    assert sta("probabilities", *words) == 0
    probabilities = load_file(output)["probabilities"]
    assert probabilities.shape[0] == 24
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(24))


def test_score_takes_a_checkpoint_too(scored: Path) -> None:
    folder = scored / "runs" / "finetune" / "digits"
    words = [f"--weights={folder / 'checkpoints' / 'last.ckpt'}", f"--output={scored / 'again.safetensors'}"]
    assert sta("score", *config("score", "digits"), *QUIET, "--samples=4", *words) == 0
    first, again = load_file(folder / "importance.safetensors"), load_file(scored / "again.safetensors")
    assert first.keys() == again.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(again[name], tensor)
    assert any(tensor.any() for tensor in first.values())


def test_score_by_amplitude_and_seed(scored: Path) -> None:
    folder = scored / "runs" / "finetune" / "digits"
    output = scored / "amplitude.safetensors"
    assert sta("score", *config("score", "digits"), *QUIET, "--measure=amp", f"--output={output}") == 0
    weights = load_file(folder / "encoder.safetensors")
    amplitude = load_file(output)
    name = next(iter(amplitude))
    torch.testing.assert_close(amplitude[name], weights[f"visual.{name}"].square())


def test_merge_writes_evaluates_and_prints(merge_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sta("merge", "--config", merge_config, *QUIET) == 0
    out = capsys.readouterr().out
    folder = merge_config.parent / "runs" / "merge" / "miniature"
    for line in (*TASKS, "average", "objects (control)"):
        assert any(row.startswith(line) and row.rstrip().endswith("%") for row in out.splitlines()), line
    about = metadata(folder / "fused.safetensors")
    assert json.loads(about["settings"])["p"] == 0.7
    assert (folder / "merge.yaml").is_file()
    assert list(folder.glob("csv/*/metrics.csv"))
    # What was measured is in the card, and goes with the model into other layouts.
    read = ModelCard.load(folder / "fused-card.md").data.eval_results
    table = {result.dataset_name: f"{100 * result.metric_value:.2f}%" for result in read}
    assert list(table) == [*TASKS, "average", "objects (control)"]
    for task, share in table.items():
        assert any(row.startswith(task) and row.endswith(f" {share}") for row in out.splitlines()), task
    words = ["--to=huggingface", "--encoder=miniature"]
    assert sta("convert", folder / "fused.safetensors", folder / "hub", *words) == 0
    assert [
        found.metric_value for found in ModelCard.load(folder / "hub" / "README.md").data.eval_results
    ] == [result.metric_value for result in read]


def test_merge_without_evaluation_reads_no_images(
    merge_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = merge_config.parent / "new" / "folder" / "average.safetensors"
    words = ["--model.method=average", "--evaluate=false", f"--output={output}"]
    assert sta("merge", "--config", merge_config, *words) == 0
    assert "accuracy" not in capsys.readouterr().out
    one, two = (
        load_file(merge_config.parent / "runs" / "finetune" / task / "encoder.safetensors") for task in TASKS
    )
    fused = load_file(output)
    for name in one:  # the rest is the text tower, copied
        wanted = ((one[name] + two[name]) / 2).to(fused[name].dtype)  # that of the pretrained model
        torch.testing.assert_close(fused[name], wanted)


def test_forget_writes_evaluates_and_prints(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sta("forget", *config("forget", "digits"), *QUIET) == 0
    out = capsys.readouterr().out
    assert [row.split()[0] for row in out.splitlines() if row.rstrip().endswith("%")] == ["target", "control"]
    about = metadata(scored / "runs" / "forget" / "digits" / "forgotten.safetensors")
    assert json.loads(about["settings"])["target"] == "digits"


def not_a_number(file: Path) -> None:
    tensors = load_file(file)
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, file)


def another_shape(file: Path) -> None:
    tensors = load_file(file)
    name = next(name for name in tensors if tensors[name].ndim == 2)
    tensors[name] = torch.zeros(2, 3)
    save_file(tensors, file)


def another_architecture(file: Path) -> None:
    save_file({"layer1.conv.weight": torch.ones(3, 3), "layer1.conv.bias": torch.ones(3)}, file)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (not_a_number, "class_embedding"),
        (another_shape, "shape"),
        (another_architecture, "encoder"),
        (cut_short, "bad.safetensors"),
        (Path.unlink, "bad.safetensors"),
    ],
)
def test_merge_refuses_bad_sources_and_writes_nothing(
    damage: Callable[[Path], None],
    expected: str,
    merge_config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes((merge_config.parent / "runs/finetune/digits/encoder.safetensors").read_bytes())
    damage(bad)
    tasks = {
        task: {
            "finetuned": str(bad) if task == "digits" else f"runs/finetune/{task}/encoder.safetensors",
            "importance": f"runs/finetune/{task}/importance.safetensors",
        }
        for task in TASKS
    }
    output = tmp_path / "out" / "fused.safetensors"
    words = [f"--model.tasks={json.dumps(tasks)}", f"--output={output}", "--trainer.logger=false"]
    assert sta("merge", "--config", merge_config, *QUIET, *words) == 2
    err = capsys.readouterr().err
    assert expected in err
    assert err.count("sta: error:") == 1
    assert "Traceback" not in err
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("name", ["fit", "test"])
def test_a_checkpoint_of_another_model_is_refused(
    name: str, finetuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = torch.load(finetuned / "runs/finetune/digits/checkpoints/last.ckpt", weights_only=True)
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {key: state[key] for key in state if "mlp" not in key}
    file = finetuned / "other.ckpt"
    torch.save(checkpoint, file)
    assert (
        sta(name, *config("finetune", "digits"), *QUIET, "--trainer.logger=false", f"--ckpt_path={file}") == 2
    )
    err = capsys.readouterr().err
    assert "other.ckpt" in err
    assert "Traceback" not in err


def test_a_checkpoint_with_code_in_it_is_not_run(
    finetuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return Path.touch, (tmp_path / "ran",)

    file = tmp_path / "evil.ckpt"
    torch.save({"state_dict": Evil()}, file)
    assert sta("test", *config("finetune", "digits"), *QUIET, f"--ckpt_path={file}") == 2
    assert sta("score", *config("score", "digits"), *QUIET, f"--weights={file}") == 2
    assert "evil.ckpt" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_demo_runs(tiny_suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tiny_suite / "demo"
    models = {
        "pretrained": write_pretrained(tiny_suite / "clip.safetensors"),
        "tasks": "[digits,textures]",
        **dict.fromkeys(("epochs", "warmup_steps"), 1),
        **{"batch_size": 24, "train_limit": 24, "test_limit": 12, "validation_limit": 12, "samples": 2},
    }
    words = ["demo", *(f"--models.{key}={value}" for key, value in models.items()), "--curves.p=[0.7]"]
    words += ["--methods.task_arithmetic.tune={scale: [0.4]}", f"--output={output}"]
    assert sta(*words) == 0
    assert (output / "report.md").is_file()
    assert (output / "fused.safetensors").is_file()
    assert f"tensorboard --logdir {output}" in capsys.readouterr().out


FLAGS = {
    "fit": ["--trainer.fast_dev_run=True", "--trainer.overfit_batches=1", "--trainer.limit_train_batches=1"],
    "validate": ["--trainer.fast_dev_run=True", "--trainer.limit_val_batches=1"],
    "test": ["--trainer.limit_test_batches=1"],
    "probabilities": ["--trainer.fast_dev_run=True", "--trainer.limit_predict_batches=1"],
    "score": ["--trainer.fast_dev_run=True", "--trainer.limit_val_batches=0"],
    "merge": ["--trainer.fast_dev_run=True", "--trainer.limit_test_batches=1"],
}


@pytest.mark.filterwarnings("ignore:You requested to overfit", "ignore:The dataloader, .*does not have many")
@pytest.mark.parametrize(("name", "flag"), [(name, flag) for name, flags in FLAGS.items() for flag in flags])
def test_a_trial_leaves_nothing_where_results_lie(
    name: str, flag: str, merge_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def files() -> dict[Path, bytes]:
        return {
            file: file.read_bytes()
            for file in merge_config.parent.rglob("*")
            if file.is_file() and "cache" not in file.parts
        }

    results = merge_config.parent / "runs" / "finetune" / "digits"
    task = [*config("score" if name == "score" else "finetune", "digits"), "--data.batch_size=8"]
    words = {
        "fit": [*task, "--trainer.max_epochs=1"],
        "test": [*task, f"--ckpt_path={results / 'checkpoints' / 'last.ckpt'}"],
        "probabilities": [*task, f"--output={results / 'encoder.safetensors'}"],
        "score": [*task, "--samples=4"],
        "merge": ["--config", merge_config, f"--output={results / 'encoder.safetensors'}"],
    }.get(name, task)
    before = files()
    assert sta(name, *words, *QUIET, flag) == 0
    assert files() == before
    out = capsys.readouterr().out
    assert f"a trial ({flag.removeprefix('--trainer.')}): nothing is logged" in out
    assert "written: " not in out


def test_a_limit_on_the_validation_within_a_fit_is_no_trial(
    finetuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finetuned / "runs" / "other"
    words = ["--data.batch_size=24", "--trainer.max_epochs=1", "--trainer.limit_val_batches=0"]
    export = ["--trainer.callbacks=ExportWeights", f"--trainer.callbacks.directory={folder}"]
    assert sta("fit", *config("finetune", "digits"), *QUIET, *words, *export) == 0
    assert (folder / "encoder.safetensors").is_file()
    assert "a trial" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["fit", "test"])
def test_a_checkpoint_chooses_no_code(
    name: str, finetuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        f"open({str(tmp_path / 'RAN')!r}, 'w')\ndef f(pretrained, deltas):\n    return deltas.sum(0)\n"
    )
    (tmp_path / "payload.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')\nclass X: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = torch.load(finetuned / "runs/finetune/digits/checkpoints/last.ckpt", weights_only=True)
    fit = own["hyper_parameters"]
    tasks = {task: {"finetuned": f"runs/finetune/{task}/encoder.safetensors"} for task in TASKS}
    merge = {"encoder": "miniature", "tasks": tasks, "method": f"{tmp_path / 'mine.py'}:f"}
    for number, planted in enumerate(
        (
            {"_class_path": "payload.X"},
            {"_class_path": "sta_lightning.modules.MergeModule", **merge},
            {**fit, "optimizer": {"class_path": "payload.X"}, "compile": {"backend": "payload.X"}},
            {**fit, "_instantiator": "payload.X", "_class_path": "payload.X"},
        )
    ):
        file = tmp_path / f"{number}.ckpt"
        torch.save({**own, "hyper_parameters": planted, "callbacks": {}}, file)
        words = [*QUIET, "--trainer.logger=false", "--trainer.enable_checkpointing=false"]
        words += ["--trainer.callbacks=[]", f"--ckpt_path={file}"]
        words += ["--trainer.max_epochs=1"] if name == "fit" else []
        assert sta(name, *config("finetune", "digits"), *words) == 0
        assert not (tmp_path / "RAN").exists(), planted


def test_a_checkpoint_sets_what_its_class_lists(
    finetuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(finetuned / "runs/finetune/digits/checkpoints/last.ckpt", weights_only=True)
    content["hyper_parameters"] |= {"encoder": "no-such-encoder", "output": "elsewhere"}
    torch.save(content, tmp_path / "other.ckpt")
    words = [*config("finetune", "digits"), *QUIET, "--trainer.logger=false"]
    assert sta("test", *words, f"--ckpt_path={tmp_path / 'other.ckpt'}") == 2
    assert "no-such-encoder" in capsys.readouterr().err
