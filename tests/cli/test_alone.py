"""Merging without an evaluation: no heavy import, and the same bytes as with one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from sta_lightning.cli import merge, merge_evaluated
from sta_lightning.cli.main import main
from sta_lightning.encoders import build_encoder
from sta_lightning.modules import ForgetModule, MergeModule, TaskSource
from sta_lightning.weights import encoder_weights, load_weights, read_metadata, save_weights
from tests.conftest import REPOSITORY
from tests.engine.models import Models, command, write_models
from tests.forks import forked
from tests.toys import write_finetuned, write_importance, write_pretrained

WORKER = REPOSITORY / "tests" / "engine" / "merge_worker.py"
NAMES = ("digits", "vehicles")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STA_CACHE", str(tmp_path_factory.getbasetemp() / "alone"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return write_models(tmp_path_factory.mktemp("models"))


# Light start


def test_what_comes_with_torch_is_never_searched_for_garbage() -> None:
    code = (
        "import gc, sys\n"
        "from sta_lightning.cli.merge import import_torch\n"
        "assert 'torch' not in sys.modules\n"
        "for _ in range(2):\n"
        "    import_torch()\n"
        "    assert 'torch' in sys.modules and gc.isenabled()\n"
        "    assert gc.get_freeze_count() > 20 * len(gc.get_objects())\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_nothing_heavy_is_imported(models: Models, tmp_path: Path) -> None:
    calls = [
        ("light", *command(models, tmp_path / "merged.safetensors")),
        ("light", *command(models, tmp_path / "forgotten.safetensors", name="forget")),
        ("light", *command(models, tmp_path / "refused.safetensors", "--model.p=2")),
    ]
    merged, forgotten, refused = forked(WORKER, calls)
    for outcome in (merged, forgotten):
        assert outcome.status == 0, outcome.err
        assert outcome.out.splitlines()[-1] == "imported:"
        assert outcome.out.startswith(("method: STA", "written: "))
    assert refused.status == 2
    assert refused.out == "imported:\n"
    assert sorted(os.listdir(tmp_path)) == ["forgotten.safetensors", "merged.safetensors"]


# The same bytes as with an evaluation


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole random CLIP, and two encoders and importances of its kind."""
    folder = tmp_path_factory.mktemp("real")
    pretrained = write_pretrained(folder / "pretrained.safetensors")
    for seed, name in enumerate(NAMES):
        write_finetuned(folder / f"{name}.safetensors", pretrained, seed)
        write_importance(folder / f"{name}-importance.safetensors", pretrained, seed)
    encoder = {f"visual.{n}": t for n, t in build_encoder("miniature", str(pretrained)).state_dict().items()}
    save_weights(folder / "encoder.safetensors", encoder)
    save_weights(folder / "half.safetensors", {n: t.half() for n, t in encoder.items()})
    torch.save({"state_dict": load_weights(pretrained)}, folder / "pretrained.ckpt")
    return folder


def sources(real: Path) -> dict[str, TaskSource]:
    return {n: TaskSource(f"{real}/{n}.safetensors", f"{real}/{n}-importance.safetensors") for n in NAMES}


@pytest.mark.parametrize(
    ("pretrained", "settings"),
    [
        ("pretrained.safetensors", {}),
        ("pretrained.safetensors", {"method": "average"}),
        ("pretrained.safetensors", {"measure": "delta-amp", "normalize": "model", "p": 0.2}),
        ("pretrained.safetensors", {"dtype": "bfloat16", "method": "task_arithmetic", "scale": 0.3}),
        ("encoder.safetensors", {}),
        ("half.safetensors", {"method": "random_mask", "seed": 3}),
        ("pretrained.ckpt", {}),
    ],
    ids=str,
)
def test_a_merge_writes_what_the_module_writes(
    pretrained: str, settings: dict[str, Any], real: Path, tmp_path: Path
) -> None:
    module = MergeModule(sources(real), pretrained=str(real / pretrained), **settings)
    expected = module.save(tmp_path / "module.safetensors").read_bytes()
    tasks = {
        name: {"finetuned": s.finetuned, "importance": s.importance} for name, s in sources(real).items()
    }
    words = [f"--model.{key}={value}" for key, value in settings.items()]
    output = tmp_path / "alone.safetensors"
    words += ["--evaluate=false", f"--output={output}", f"--model.pretrained={real / pretrained}"]
    assert main(["merge", f"--model.tasks={json.dumps(tasks)}", *words]) == 0
    assert output.read_bytes() == expected
    merged = module.merge().weights
    assert all(torch.equal(merged[n], t) for n, t in encoder_weights(output, names=merged).items())


@pytest.mark.parametrize(
    "settings", [{}, {"model": "vehicles.safetensors"}, {"model": "half.safetensors", "p": 0.2}], ids=str
)
def test_a_forgetting_writes_what_the_module_writes(
    settings: dict[str, Any], real: Path, tmp_path: Path
) -> None:
    files = sources(real)["digits"]
    if "model" in settings:
        settings = {**settings, "model": str(real / settings["model"])}
    module = ForgetModule(
        "digits",
        finetuned=files.finetuned,
        importance=files.importance,
        pretrained=f"{real}/pretrained.safetensors",
        **settings,
    )
    expected = module.save(tmp_path / "module.safetensors").read_bytes()
    output = tmp_path / "alone.safetensors"
    words = [f"--model.{key}={value}" for key, value in settings.items()]
    words += [
        "--model.target=digits",
        f"--model.finetuned={files.finetuned}",
        f"--model.importance={files.importance}",
    ]
    words += ["--evaluate=false", f"--output={output}", f"--model.pretrained={real}/pretrained.safetensors"]
    assert main(["forget", *words]) == 0
    assert output.read_bytes() == expected


# Which command lines are merged without Lightning


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which part of the command is reached, instead of doing anything."""
    taken: list[str] = []
    monkeypatch.setattr(merge, "write", lambda *args: taken.append("alone"))
    monkeypatch.setattr(merge_evaluated, "run", lambda name, words: taken.append("evaluated"))
    return taken


OF = ["--model.encoder=miniature", "--model.tasks={a: {finetuned: a.safetensors}}"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the one file that is named."""
    monkeypatch.chdir(tmp_path)
    Path("a.safetensors").touch()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--evaluate=false"], ["alone"]),
        (["--evaluate", "false"], ["alone"]),
        (["--evaluate=False", "--model.p=0.3"], ["alone"]),
        (["--evaluate=true"], ["evaluated"]),
        ([], ["evaluated"]),
        (["--evaluate=false", "--evaluate=true"], ["evaluated"]),
        (["--evaluate=maybe"], []),
        (["--evaluate=["], []),
        (["--evaluate=no"], ["alone"]),
        (["--evaluate"], ["evaluated"]),
        (["--evaluate=false", "--help-all"], ["evaluated"]),
        (["--evaluate=false", "--print_config"], ["evaluated"]),
        (["--evaluate=false", "--print_config=skip_default"], ["evaluated"]),
        (["--evaluate=false", "--data.control=null"], []),
        (["--evaluate=false", "--trainer.accelerator=cpu", "--trainer.logger+=CSVLogger"], []),
        (["--evaluate=false", "--trainer=trainer.yaml", "--seed_everything=3"], []),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
@pytest.mark.usefixtures("here")
def test_which_command_lines_need_nothing_more(words: list[str], expected: list[str], way: list[str]) -> None:
    assert main(["merge", *OF, "--output=out.safetensors", *words]) == (0 if expected else 2)
    assert way == expected


@pytest.mark.usefixtures("here")
def test_a_configuration_decides_too(tmp_path: Path, way: list[str]) -> None:
    def config(name: str, content: object) -> str:
        (tmp_path / name).write_text(yaml.safe_dump(content))
        return f"--config={tmp_path / name}"

    first = config("first.yaml", {"evaluate": True, "trainer": {}, "data": {"control": None}})
    second = config("second.yaml", {"evaluate": False})
    for words in ([first, second], [second, first], [first, "--evaluate=false"]):
        assert main(["merge", *OF, "--output=out.safetensors", *words]) == 0
    assert way == ["alone", "evaluated", "alone"]


def test_a_task_is_named_by_its_file_too(models: Models, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for title in ("cat", "dog"):
        (tmp_path / "test" / title).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "test" / title / "0.png")
    file.write_text("{name: mine, test: test}\n")
    sources = {n: {"finetuned": s.finetuned, "importance": s.importance} for n, s in models.tasks.items()}
    sources = {str(file) if n == "task0" else n: s for n, s in sources.items()}
    words = [f"--model.tasks={json.dumps(sources)}", f"--model.pretrained={models.file}", "--evaluate=false"]
    assert main(["merge", *words, f"--output={tmp_path / 'out.safetensors'}"]) == 0
    settings = json.loads(read_metadata(tmp_path / "out.safetensors")["settings"])
    assert settings["tasks"] == ["mine", "task1", "task2"]


def test_a_configuration_may_say_what_an_evaluation_would_need(models: Models, tmp_path: Path) -> None:
    tasks = {n: {"finetuned": s.finetuned, "importance": s.importance} for n, s in models.tasks.items()}
    content = {
        "model": {"tasks": tasks, "pretrained": str(models.file), "p": 0.2},
        "data": {"control": "objects", "batch_size": 250},
        "trainer": {"logger": [{"class_path": "CSVLogger", "init_args": {"save_dir": "runs"}}]},
        "seed_everything": 3,
        "output": str(tmp_path / "config.safetensors"),
        "evaluate": True,
    }
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump(content))
    assert main(["merge", f"--config={tmp_path / 'merge.yaml'}", "--evaluate=false", "--model.p=0.7"]) == 0
    assert main(command(models, tmp_path / "words.safetensors")) == 0
    assert (tmp_path / "config.safetensors").read_bytes() == (tmp_path / "words.safetensors").read_bytes()


@pytest.mark.parametrize("word", ["false", "False", "no", "off"])
def test_all_that_means_no(word: str, models: Models, tmp_path: Path) -> None:
    words = command(models, tmp_path / "out.safetensors")
    assert main([f"--evaluate={word}" if part == "--evaluate=false" else part for part in words]) == 0
    assert (tmp_path / "out.safetensors").is_file()
