"""On what a run was made: processor, GPU, versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from sta_lightning import __version__

_PACKAGES = ("torch", "torchvision", "lightning", "open_clip_torch", "timm", "numpy")


def hardware(accelerator: str, threads: int | None = None) -> str:
    """Processor, cores and threads, and the GPU if one was used.

    Args:
        accelerator: as in Lightning's Trainer.
        threads: of every process; nothing for as many as PyTorch uses here.
    """
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    count = torch.get_num_threads() if threads is None else threads
    text = f"{name}, {os.cpu_count()} cores, {count} thread" + ("s" if count != 1 else "")
    if accelerator != "cpu" and torch.cuda.is_available():
        text += f", {torch.cuda.get_device_name()}"
    return text


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that numbers may depend on."""
    found = {"sta_lightning": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
