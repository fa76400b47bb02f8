"""``sta benchmark`` and ``sta demo``, which is the benchmark that the package ships."""

from collections.abc import Sequence
from pathlib import Path

import sta_lightning.benchmark
from sta_lightning.benchmark.settings import BenchmarkSettings
from sta_lightning.cli.settings import parse
from sta_lightning.errors import StaError

DESCRIPTION = (
    "Compare merging and forgetting methods: fine-tune over several seeds, score, tune on validation images, test, "
    "report. Cells that are done are skipped; an interrupted run goes on where it stopped."
)
DEMO_DESCRIPTION = (
    "The benchmark of the embedded suite that the package ships: fine-tune one encoder on every task, score, fuse, "
    "forget, and report, offline. Configurations and options go over its settings. Cells that are done are skipped; "
    "an interrupted run goes on where it stopped."
)
DEMO = Path(sta_lightning.benchmark.__file__).parent / "demo.yaml"

FLAGS = {
    "force": "compute every cell again, even those already done",
    "dry-run": "print the cells, how many are done, and the time expected for the others; compute nothing",
}


def run(name: str, words: Sequence[str]) -> None:
    """Parse the settings and run the benchmark, or print its plan.

    Args:
        name: ``benchmark`` or ``demo``.
        words: The command line after it.

    Raises:
        StaError: The settings are not understood.
    """
    if name == "demo":
        words, description = ["--config", str(DEMO), *words], DEMO_DESCRIPTION
    else:
        description = DESCRIPTION
    settings, flags = parse(name, words, description, BenchmarkSettings, FLAGS)
    if not settings.methods:
        raise StaError(
            "sta benchmark needs a configuration that names the methods: --config configs/benchmark/miniature.yaml."
        )

    # Imports torch and Lightning: --help and a mistyped option must not wait for them.
    from sta_lightning.benchmark.run import dry_run, run_benchmark

    if flags["dry-run"]:
        print(dry_run(settings))
    else:
        run_benchmark(settings, force=flags["force"])
