"""Measure merging, scoring and fitting beside what bounds them, or beside another checkout.

    # everything, about half an hour on two cores
    python scripts/benchmark.py
    # every method, mergekit and FusionBench beside: ten minutes; --rows takes words of the rows
    python scripts/benchmark.py --only methods --repetitions 1
    # first calls and busy machines, 200 tasks, scoring: five
    python scripts/benchmark.py --only calls tasks scoring --repetitions 3
    python scripts/benchmark.py --markdown docs/benchmarks.md
    # the same work here and in another checkout, in turn
    python scripts/benchmark.py --beside ../other --repetitions 8
    python scripts/benchmark.py --beside ../other --rows STA scoring

It makes its own inputs (six random ViT-B/16 image encoders and importances, 4.5 GB, and four
sharded models of --size each, kept in --folder for the next run) and compares with mergekit where
`mergekit-pytorch` is installed (--mergekit says where), and with FusionBench where it is
(--fusionbench names the Python that has it). Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.benchmarks import beside, calls, fitting, forms, growth, large, merging, methods, scoring
from scripts.benchmarks.inputs import Inputs
from scripts.benchmarks.table import Section

SECTIONS: dict[str, Callable[[Inputs, argparse.Namespace], Section]] = {
    "kernel": forms.measure,
    "calls": calls.measure,
    "files": merging.measure,
    "methods": methods.measure,
    "tasks": growth.many,
    "growth": growth.measure,
    "sharded": large.measure,
    "scoring": scoring.measure,
    "fit": fitting.measure,
}


def machine() -> list[str]:
    """What the figures depend on."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    compiler = shutil.which(os.environ.get("CC") or "cc")
    version = "none: the eager forms are measured"
    if compiler:
        version = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, check=False
        ).stdout.splitlines()[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = [
        f"Date: {datetime.date.today().isoformat()}",
        f"Processor: {cpu}, {os.cpu_count()} cores, {memory:.0f} GiB; PyTorch uses {torch.get_num_threads()} threads",
        f"Python {platform.python_version()}, torch {torch.__version__}, C compiler: {version}",
    ]
    if torch.cuda.is_available():
        lines.append(f"GPU: {torch.cuda.get_device_name()}")
    return lines


def main() -> None:
    """Run the sections and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "sta-benchmark", help="for the inputs"
    )
    parser.add_argument(
        "--model", default="ViT-B-16", choices=("ViT-B-16", "ViT-L-14", "ViT-B-32", "miniature")
    )
    parser.add_argument("--size", default="4GB", help="bytes of each sharded model, such as 500MB")
    parser.add_argument("--only", nargs="+", choices=tuple(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--beside", type=Path, help="another checkout, to measure beside this one")
    words = "words of the rows to measure, with --beside and of the methods"
    parser.add_argument("--rows", nargs="+", default=[""], help=words)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--mergekit", default=shutil.which("mergekit-pytorch"), help="the command mergekit-pytorch"
    )
    found = sys.executable if importlib.util.find_spec("fusion_bench") else None
    parser.add_argument("--fusionbench", default=found, help="the Python that FusionBench is installed in")
    parser.add_argument("--markdown", type=Path, help="write the result to this file too")
    arguments = parser.parse_args()
    if arguments.beside is not None and not (arguments.beside / "sta_lightning").is_dir():
        parser.error(f"--beside: '{arguments.beside}' is no checkout; it has no folder sta_lightning")
    torch.manual_seed(0)
    inputs = Inputs(arguments.folder)
    lines = [
        "# Benchmarks",
        "",
        f"`{' '.join(['python', *sys.argv])}`",
        "",
        *(f"- {line}" for line in machine()),
        "",
    ]
    print("\n".join(lines), flush=True)
    sections = [SECTIONS[name] for name in arguments.only] if arguments.beside is None else [beside.measure]
    for measure in sections:
        text = measure(inputs, arguments).markdown()
        print(text, flush=True)
        lines.append(text)
    if arguments.markdown is not None:
        arguments.markdown.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
