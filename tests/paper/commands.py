"""Every run of docs/reproduce.md: a shell expands its loops and prints the command lines."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path
from typing import Any

from tests.command_lines import parsed
from tests.conftest import REPOSITORY

_TELL = "sta() { printf '%s\\0' \"$@\"; printf '\\n'; }\n"


@functools.cache
def commands() -> dict[str, list[str]]:
    """The words after ``sta`` of every run, by its logs' folder, such as ``finetune/mnist``."""
    page = (REPOSITORY / "docs" / "reproduce.md").read_text(encoding="utf-8")
    block = page.split("## The commands")[1].split("```console\n")[1].split("```")[0]
    loops = re.sub(r"^\$ ", "", block, flags=re.MULTILINE).replace("python ", ": ")
    told = subprocess.run(
        ["bash", "-euc", _TELL + loops], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    lines = [line.rstrip("\0").split("\0") for line in told.stdout.splitlines()]
    return {_name(words): words for words in lines}


def _name(words: list[str]) -> str:
    options = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--model."))
    folders = [word.partition("runs/paper/")[2] for word in words if word.startswith("--output=")]
    if words[0] in ("fit", "score"):
        return f"{'finetune' if words[0] == 'fit' else 'score'}/{options['model.task']}"
    if words[0] == "test":
        return "table_3/pretrained"
    return str(Path(folders[0]).parent) if folders else f"table_2/{Path(words[-1]).stem}"


@functools.cache
def settings(name: str) -> dict[str, Any]:
    """The configuration that a run would have, completed."""
    return parsed(commands()[name])


def outputs(name: str) -> list[Path]:
    """The files that a run leaves, as its configuration names them."""
    config = settings(name)
    found = [Path(config["output"])] if "output" in config else []
    trainer = config["trainer"]
    for callback in trainer["callbacks"] or []:
        given, kind = callback["init_args"], callback["class_path"].rsplit(".", 1)[-1]
        if kind == "ExportWeights":
            found += [Path(given["directory"]) / f"{part}.safetensors" for part in ("encoder", "head")]
        if kind == "ModelCheckpoint":
            found.append(Path(given["dirpath"]) / f"{given['filename']}.ckpt")
    loggers = trainer["logger"] or []
    found += [
        Path(logger["init_args"]["save_dir"]) / "csv" / "version_0" / "metrics.csv"
        for logger in loggers
        if logger["class_path"].endswith("CSVLogger")
    ]
    return found
