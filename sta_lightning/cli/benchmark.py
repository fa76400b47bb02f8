"""``sta benchmark``: every method on one suite over several seeds, with tables, figures and a report."""

from collections.abc import Sequence

from sta_lightning.cli.settings import parse
from sta_lightning.errors import StaError

DESCRIPTION = (
    "Compare merging and forgetting methods: fine-tune over several seeds, score, tune on validation images, test, "
    "report. Cells that are done are skipped; an interrupted run goes on where it stopped."
)

FLAGS = {
    "force": "compute every cell again, even those already done",
    "dry-run": "print the cells, how many are done, and the time expected for the others; compute nothing",
}


def run(name: str, words: Sequence[str]) -> None:
    """Parse the settings and run the benchmark, or print its plan.

    Args:
        name: ``benchmark``.
        words: The command line after it.

    Raises:
        StaError: The settings are not understood.
    """
    # Imports torch's arithmetic: a mistyped subcommand must not wait for it.
    from sta_lightning.benchmark.settings import BenchmarkSettings

    settings, flags = parse(name, words, DESCRIPTION, BenchmarkSettings, FLAGS)
    if not settings.methods:
        raise StaError(
            "sta benchmark needs a configuration that names the methods: --config configs/benchmark/miniature.yaml."
        )

    # Imports Lightning: --help and a mistyped option must not wait for it.
    from sta_lightning.benchmark.run import dry_run, run_benchmark

    if flags["dry-run"]:
        print(dry_run(settings))
    else:
        run_benchmark(settings, force=flags["force"])
