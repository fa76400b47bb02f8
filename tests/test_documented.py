"""Every command that README and docs print is run, page by page, as it stands there.

Sizes are reduced by a configuration after the words of the page, and by a suite of few images. What
cannot be run here is read by its own parser, for the reason that is told beside it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from sta_lightning.cli.main import main
from sta_lightning.encoders import pretrained
from sta_lightning.encoders.head import ClassificationHead
from sta_lightning.tasks import get_task
from sta_lightning.tasks.miniature import suite
from sta_lightning.weights import save_weights
from tests.command_lines import documented
from tests.conftest import REPOSITORY
from tests.toys import write_finetuned, write_importance
from tests.weights.formats.tiny import CONFIGS, NAMES, moved, tiny_clip

SUITE = ("digits", "vehicles", "street_numbers", "traffic_signs", "textures", "land_cover")
MINIATURE = REPOSITORY / "sta_lightning" / "encoders" / "miniature.safetensors"

# What a line has in it -> a further configuration, of the first that fits.
_CPU = {"accelerator": "cpu"}
_ONE_STEP = {"trainer": {**_CPU, "max_steps": 1}, "data": {"init_args": {"batch_size": 2}}}
_TWO_TASKS = {"tasks": list(SUITE[:2])}
SMALL: dict[str, dict[str, Any]] = {
    "fit --config configs/adamerging": _ONE_STEP,
    "fit --config configs/distilled": _ONE_STEP,
    "fit ": {
        "trainer": {**_CPU, "max_steps": 2, "max_epochs": 1},
        "data": {"init_args": {"batch_size": 24}},
    },
    "score ": {"samples": 2, "trainer": _CPU},
    "test ": {"trainer": _CPU},
    "merge --config configs/merge/miniature.yaml --model.method=auto": {
        "model": {**_TWO_TASKS, "settings": {"samples": 4, "steps": 2}},
        "trainer": _CPU,
    },
    "merge --config configs/merge/miniature.yaml --model.method=distilled": {
        "model": {**_TWO_TASKS, "settings": {"samples": 4, "steps": 2}},
        "trainer": _CPU,
    },
    "merge --config configs/merge/miniature.yaml --model.method=tsv --model.foretell": {
        "model": _TWO_TASKS,
        "trainer": _CPU,
    },
    "merge --config configs/merge/miniature.yaml --model.method=regmean_plus_plus": {
        "model": {**_TWO_TASKS, "settings": {"samples": 4}},
        "trainer": _CPU,
    },
    "merge --config configs/merge/miniature.yaml --model.heads": {"evaluate": False},
    "merge --config configs/": {"model": _TWO_TASKS, "evaluate": False},
    "forget --config configs/": {"evaluate": False},
}
# What a line has in it -> why its words are parsed and no more.
PARSED = {
    "vit_b_16": "weights and data sets of the internet",
    "deit": "weights and data sets of the internet",
    "compare.yaml": "weights and data sets of the internet",
    "benchmark --config configs/benchmark/miniature.yaml": "hours, but for --dry-run",
    "benchmark --config sta:benchmark/miniature": "hours",
    "benchmark --config configs/benchmark/prepared.yaml": "an hour",
    "runs/benchmark/": "the models of a benchmark",
}
# Pages and lines that are run elsewhere.
ELSEWHERE = {
    "docs/reproduce.md": "loops of a shell, whose runs tests/paper rehearses",
    "methods --table": "tests/cli/test_methods.py",
}


def complete(text: str) -> list[list[str]]:
    """The command lines of a page: in blocks, and within sentences where nothing is left out."""
    inline = re.findall(r"`(sta \w+ [^`]*--config [^`.]*\.yaml[^`]*)`", text)
    return [words for words in documented("\n".join([text, *inline])) if " ".join(words) not in ELSEWHERE]


PAGES = {
    name: lines
    for file in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md")))
    if (name := file.relative_to(REPOSITORY).as_posix()) not in ELSEWHERE
    and (lines := complete(file.read_text()))
}


@pytest.fixture(scope="module")
def files(tiny_suite: Path) -> Iterator[Path]:
    """The files that the pages speak of, small."""
    folder = tiny_suite / "files"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(suite, "SPLIT_SIZES", {**suite.SPLIT_SIZES, "train": 64})  # what an example asks for
        known = {**pretrained.known_architectures(), "ViT-B-32-quickgelu": CONFIGS[NAMES["quick_gelu"]]}
        patch.setattr(pretrained, "known_architectures", lambda: known)
        _write_suite()
        _write_clips()
        _write_language_models()
        for name in ("pictures", "photos", "examples/cars", "examples/signs"):
            Path(name).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (40, 30), (90 * number, 60, 200)).save(f"{name}/{number}.png")
        for page, name in (("merging", "mine.py"), ("running", "compare.yaml")):
            text = (REPOSITORY / "docs" / f"{page}.md").read_text()
            (found,) = re.findall(rf"```\w+\n(# [^\n]*{name}\n.*?)```", text, re.DOTALL)
            Path(name).write_text(found)
        for name in ("configs", "sta_lightning"):
            Path(name).symlink_to(REPOSITORY / name)
        yield folder


def _write_suite() -> None:
    generator = torch.Generator().manual_seed(0)
    width = json.loads(MINIATURE.with_suffix(".json").read_text())["embed_dim"]
    for seed, task in enumerate((*SUITE, "digits_2")):
        folder = Path("runs/finetune", task)
        write_finetuned(folder / "encoder.safetensors", MINIATURE, seed)
        write_importance(folder / "importance.safetensors", MINIATURE, seed)
        names = get_task(task.removesuffix("_2")).class_names
        head = ClassificationHead(torch.randn(len(names), width, generator=generator))
        head.save(folder / "head.safetensors", class_names=names)
    for measure in ("fisher", "gram"):
        first = Path(f"runs/finetune/digits/{measure}.safetensors")
        words = [
            "--config",
            "sta:score/miniature",
            "--model.task=digits",
            f"--measure={measure}",
            f"--output={first}",
        ]
        assert main(["score", *words, "--samples=2", "--trainer.accelerator=cpu"]) == 0
        Path("runs/finetune/objects").mkdir(exist_ok=True)
        for task in (*SUITE[1:], "objects"):
            os.link(first, f"runs/finetune/{task}/{measure}.safetensors")
    kinds = {"finetuned": "encoder", "head": "head"}
    tasks = {
        name: {kind: f"runs/finetune/{task}/{file}.safetensors" for kind, file in kinds.items()}
        for name, task in (("cars", "vehicles"), ("signs", "traffic_signs"))
    }
    words = ["--model.encoder=miniature", f"--model.tasks={json.dumps(tasks)}", "--model.method=average"]
    assert (
        main(["merge", *words, "--model.heads=true", "--evaluate=false", "--output=merged.safetensors"]) == 0
    )


def _write_clips() -> None:
    clip = tiny_clip("quick_gelu")
    states = {"base": clip.state_dict()}
    states |= {
        name: moved(tiny_clip("quick_gelu"), seed).state_dict()
        for seed, name in enumerate(("cars", "dogs"), 1)
    }
    for name, state in states.items():
        save_weights(f"{name}.safetensors", state)
        words = ["convert", f"{name}.safetensors", name, "--to=huggingface", "--encoder=ViT-B-32-quickgelu"]
        assert main(words) == 0
    for name, state in (
        ("a.pt", "cars"),
        ("b.bin", "dogs"),
        ("ViT-B-32.pt", "base"),
        ("openai/ViT-B-32.pt", "base"),
    ):
        Path(name).parent.mkdir(exist_ok=True)
        torch.save(states[state], name)
    seen = {
        name.removeprefix("visual."): torch.eye(weight.shape[1])
        for name, weight in states["base"].items()
        if name.startswith("visual.") and name.endswith("weight") and weight.dim() == 2
    }
    for name in ("cars", "general"):
        save_weights(f"{name}-gram.safetensors", seen, {"measure": "gram"})
    Path("finetuned").mkdir()
    shutil.copy("a.pt", "finetuned/cars.pt")
    shutil.copy("cars.safetensors", "fused.safetensors")
    torch.save({"state_dict": states["dogs"]}, "runs/x.ckpt")
    shutil.copytree("base", "clip-vit-base-patch32")
    shutil.copytree("cars", "clip-vit-base-patch32_cars")


def _write_language_models() -> None:
    generator = torch.Generator().manual_seed(0)
    for name in ("bert", "merged-bert", "a", "b"):
        Path(name).mkdir()
        Path(name, "config.json").write_text('{"model_type": "bert"}')
        weight = torch.randn(20, 20, generator=generator)
        save_weights(f"{name}/model.safetensors", {"layer.0.query.weight": weight})
    # "cars" and "dogs" of another page are fine-tuned from this one.
    shutil.copytree("base", "bert-base-uncased")


@pytest.fixture
def here(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with these files, that a page may change."""
    shutil.copytree(files, tmp_path / "work", copy_function=os.link, symlinks=True)
    monkeypatch.chdir(tmp_path / "work")


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
@pytest.mark.parametrize("page", PAGES)
def test_every_line_of_a_page(page: str, here: None, capsys: pytest.CaptureFixture[str]) -> None:
    for words in PAGES[page]:
        if "-o" in words and (made := Path(words[words.index("-o") + 1])).is_dir():
            shutil.rmtree(made)  # by an example before
        assert main([*words, *_reduced(words)]) == 0, (words, capsys.readouterr().err)
        capsys.readouterr()


def _reduced(words: Sequence[str]) -> list[str]:
    """What is added to a line."""
    line = " ".join(words)
    if "--dry-run" not in words and any(part in line for part in PARSED):
        return ["--print_config"]
    for part, content in SMALL.items():
        if line.startswith(part):
            Path("small.yaml").write_text(yaml.safe_dump(content))
            return ["--config", "small.yaml"]
    return []


def test_each_exception_is_one() -> None:
    lines = [" ".join(words) for lines in PAGES.values() for words in lines]
    assert all(any(part in line for line in lines) for part in PARSED)
    assert all(any(line.startswith(part) for line in lines) for part in SMALL)
