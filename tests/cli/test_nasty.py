"""Names, numbers and files that nobody means: one message with status 2, fit for a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sta_lightning.cli.main import main
from sta_lightning.encoders import build_encoder
from sta_lightning.weights import load_weights, save_weights
from tests.cli import test_mistakes
from tests.cli.test_mistakes import FIT, SCORE

MERGE = [*test_mistakes.MERGE, "--trainer.logger=false"]
LONG = "n" * 300
ESCAPE = "\x1b[31m"
CONFIGS = {
    "brackets.yaml": "model: " + "[" * 5000,
    "blocks.yaml": "".join(" " * depth + "a:\n" for depth in range(3000)),
    "digits.yaml": "seed_everything: " + "9" * 6000,
    "null.yaml": 'model: {pretrained: "a\\0b"}',
    "itself.yaml": "model: &a {model: *a}",
    "escape.yaml": f'"{ESCAPE}model": 3'.replace("\x1b", "\\x1b"),
    "date.yaml": "output: 2024-13-45",
    "task.yaml": 'name: "a\\x1b[31m"',
    "null_task.yaml": 'root: "a\\0b"',
    "deep_task.yaml": "[" * 5000,
    "long_task.yaml": f"root: {LONG}",
}
COMMANDS = ("fit", "test", "score", "merge", "forget", "benchmark", "demo")
FILE = ("inspect", "FILE")
CONVERT = ("convert", "ints.safetensors")
CASES: list[list[str]] = [
    *([command, "--config", name] for command in COMMANDS for name in CONFIGS if "task" not in name),
    *([command, "--config", name] for command in COMMANDS for name in (LONG, "loop", f"{ESCAPE}.yaml", "a\0b")),
    *(["inspect", name] for name in (LONG, "loop", f"{ESCAPE}.pt", "a\0b", "[" * 5000, "9" * 6000, "\udcff.pt")),
    *(["inspect", name] for name in ("shards_null", "shards_long", "shards_deep", "/dev/zero")),
    ["convert", "ints.safetensors", f"{LONG}.safetensors", "--to=safetensors"],
    ["convert", "ints.safetensors", "o.safetensors", "--to=safetensors", f"--encoder={ESCAPE}"],
    *(["methods", name] for name in ("x" * 5000, f"{LONG}.py:x", "a\0.py:x", ESCAPE, ":", "brackets.yaml:x")),
    *(["predict", "--model=ints.safetensors", "--task=digits", name] for name in (LONG, "a\0b", ESCAPE, "loop")),
    *(["predict", "--model=x.pt", f"--top={number}", "x"] for number in ("9" * 30, "9" * 6000, "-1")),
    ["predict", "--model=x.pt", f"--output={LONG}", "x"],
    *([*FIT, f"--seed_everything={seed}"] for seed in ("-1", "9999999999999", "9" * 400, "9" * 6000, "{" * 3000)),
    *([*MERGE, f"--seed_everything={seed}"] for seed in ("-1", "9999999999999")),
    *([*SCORE, f"--seed={seed}"] for seed in ("9" * 30, "x")),
    *([*MERGE, f"--model.{name}={value}"] for name in ("p", "pretrained") for value in ("9" * 400, "[" * 5000)),
    *([*MERGE, f"--model.tasks={value}"] for value in ("&a [*a]", f"{{a: {{finetuned: {LONG}.pt}}}}", "{a: " * 999)),
    *([*MERGE, f"--model.method={value}"] for value in ("x" * 5000, ESCAPE, "a\0b.c")),
    *([*MERGE, f"--output={value}"] for value in (f"{LONG}.safetensors", "a\0b.safetensors", f"{ESCAPE}.pt")),
    *([*FIT, f"--model.task={name}"] for name in CONFIGS if "task" in name),
    *([*FIT, f"--ckpt_path={name}"] for name in (LONG, "best", "hpc", "registry", "a\0b", ESCAPE)),
    *([*FIT, f"--data.batch_size={value}"] for value in ("9" * 30, "9" * 400)),
    [*FIT, "--trainer.logger={class_path: TensorBoardLogger, init_args: x}"],
    [*FIT, "--trainer.logger=TensorBoardLogger", "--trainer.logger.init_args=x"],
    [*FIT, "--trainer.logger=WandbLogger"],
    *(["test", *FIT[1:], f"--ckpt_path={name}"] for name in ("best", "last", "hpc")),
    ["demo", f"--seeds=[{'9' * 30}]"],
    ["demo", "--output=a\0b"],
    *([word] for word in (ESCAPE, "x" * 5000, "-" + "x" * 5000, "a\0b")),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files that nobody means."""
    folder = tmp_path_factory.mktemp("nasty")
    for name, text in CONFIGS.items():
        (folder / name).write_text(text)
    (folder / "loop").symlink_to("loop")
    save_weights(folder / "ints.safetensors", {"a": torch.zeros(3, dtype=torch.int64)})
    shards = {"null": "x\0y.safetensors", "long": LONG, "deep": None}
    for name, shard in shards.items():
        text = "[" * 100_000 if shard is None else json.dumps({"weight_map": {"a": shard}})
        (folder / f"shards_{name}").mkdir()
        (folder / f"shards_{name}" / "model.safetensors.index.json").write_text(text)
    return folder


def files(place: Path) -> list[str]:
    return sorted(str(file) for file in place.rglob("*") if not file.is_dir())


@pytest.mark.parametrize("words", CASES, ids=lambda words: ascii(" ".join(words))[-50:].replace("/", "_"))
def test_one_message(
    words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    before = files(place)
    assert main(words) == 2
    out, err = capsys.readouterr()
    messages = [line for line in err.splitlines() if line.startswith("sta: error: ")]
    assert len(messages) == 1, err
    assert len(messages[0]) < 900
    assert all(letter.isprintable() or letter == "\n" for letter in out + err)
    assert files(place) == before


def test_what_a_file_says_of_itself_gives_the_terminal_no_orders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"{ESCAPE}.safetensors"
    metadata = {
        "settings": "[" * 100_000,
        "converted": "[" * 100_000,
        "note": f"{ESCAPE}\x9b\u202e",
        ESCAPE: "\n",
    }
    save_weights(file, {f"{ESCAPE}w": torch.zeros(3)}, metadata)
    assert main(["inspect", str(file)]) == 0
    text = capsys.readouterr().out
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert r"\u001b[31m\u009b\u202e" in text
    assert max(map(len, text.splitlines())) < 300 + len(str(tmp_path))
    assert main(["inspect", "--json", str(file)]) == 0
    found = json.loads(capsys.readouterr().out)["files"][0]
    assert found["file"] == str(file)
    assert found["metadata"]["note"] == metadata["note"]


@pytest.mark.parametrize("key", ["settings", "converted", "sources"])
def test_what_a_file_says_of_itself_stops_no_conversion(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = build_encoder("miniature", "random").state_dict()
    save_weights(tmp_path / "a.safetensors", dict(state), {key: "[" * 100_000})
    words = [str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--to=safetensors"]
    assert main(["convert", *words]) == 0, capsys.readouterr().err
    assert load_weights(tmp_path / "b.safetensors").keys() == {f"visual.{name}" for name in state}


def test_a_task_vector_without_floating_point_tensors_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ints.safetensors"
    shapes = {"conv1.weight": (4, 3, 2, 2), "class_embedding": (4,)}
    save_weights(file, {name: torch.zeros(shape, dtype=torch.int64) for name, shape in shapes.items()})
    assert main(["inspect", str(file), f"--pretrained={file}"]) in (0, 2)
    text = "".join(capsys.readouterr())
    assert "internal error" not in text
