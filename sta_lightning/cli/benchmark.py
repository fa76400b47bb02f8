"""``sta benchmark`` and ``sta demo``, which is the benchmark that the package ships."""

from collections.abc import Sequence
from pathlib import Path

import sta_lightning.benchmark
from sta_lightning.benchmark.settings import BenchmarkSettings
from sta_lightning.cli.parser import RaisingParser, parse
from sta_lightning.cli.screen import say
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


def build_parser(name: str) -> RaisingParser:
    """Every field of the settings, a configuration file, and flags."""
    parser = RaisingParser(
        prog=f"sta {name}", description=DEMO_DESCRIPTION if name == "demo" else DESCRIPTION
    )
    parser.add_config()
    help = "compute every cell again, even those already done"
    parser.add_argument("--force", action="store_true", help=help)
    help = "print the cells, how many are done, and the time expected for the others; compute nothing"
    parser.add_argument("--dry-run", "--dry_run", action="store_true", help=help)
    parser.add_class_arguments(BenchmarkSettings, as_group=False)
    return parser


def run(name: str, words: Sequence[str]) -> None:
    """Run the benchmark, or print its plan."""
    if name == "demo":
        words = ["--config", str(DEMO), *words]
    parser = build_parser(name)
    values = parser.instantiate(parse(parser, words)).as_dict()
    force, dry, _ = (values.pop(option) for option in ("force", "dry_run", "config"))
    settings = BenchmarkSettings(**values)
    if not settings.methods:
        raise StaError(
            "sta benchmark needs a configuration that names the methods: --config configs/benchmark/miniature.yaml."
        )

    # Imports torch and Lightning: --help and a mistyped option must not wait for them.
    from sta_lightning.benchmark.run import dry_run, run_benchmark

    if dry:
        say(dry_run(settings))
    else:
        run_benchmark(settings, force=force)
