"""How the numbers of a run came about: command, machine, versions, commit."""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sta_lightning import __version__
from sta_lightning.benchmark.settings import BenchmarkSettings
from sta_lightning.benchmark.source import checkout
from sta_lightning.callbacks.board import command_line

_PACKAGES = ("torch", "torchvision", "lightning", "open_clip_torch", "timm", "numpy")


def record(settings: BenchmarkSettings) -> dict[str, Any]:
    """What ``BenchmarkResults.record`` holds besides what the cells tell."""
    commit, clean = checkout()
    return {
        "command": command_line(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": _hardware(settings),
        "versions": _versions(),
        "commit": commit,
        "clean": clean,
        "settings": asdict(settings),
    }


def _hardware(settings: BenchmarkSettings) -> str:
    """Processor, cores, GPU, and what the cells had of them."""
    if settings.cluster is not None:
        return f"a Dask cluster, {settings.threads} thread(s) a cell"
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    text = f"{name}, {os.cpu_count()} cores"
    if settings.models.accelerator != "cpu" and torch.cuda.is_available():
        text += f", {torch.cuda.get_device_name()}"
    threads = f"{settings.threads} thread" + ("s" if settings.threads != 1 else "")
    processes = "" if settings.devices == 1 else f"{settings.devices} processes of "
    return f"{text}, {processes}{threads}"


def _versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that numbers may depend on."""
    found = {"sta_lightning": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
