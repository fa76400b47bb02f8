"""``sta benchmark``: every method on one suite over several seeds, with tables, figures and a report."""

from collections.abc import Sequence

from sta_lightning.cli.explain import explain
from sta_lightning.cli.parser import RaisingParser, RejectedError
from sta_lightning.cli.precheck import config_files, read_config
from sta_lightning.errors import StaError

DESCRIPTION = (
    "Compare merging and forgetting methods: fine-tune over several seeds, score, tune on validation images, test, "
    "report. Cells that are done are skipped; an interrupted run goes on where it stopped."
)


def run(name: str, words: Sequence[str]) -> None:
    """Parse the settings and run the benchmark, or print its plan.

    Args:
        name: ``benchmark``.
        words: The command line after it.

    Raises:
        StaError: The settings are not understood.
    """
    for file in config_files(words):
        read_config(file)
    from sta_lightning.benchmark.settings import BenchmarkSettings

    parser = RaisingParser(prog="sta benchmark", description=DESCRIPTION)
    parser.add_argument("-c", "--config", action="config", help="YAML file with settings; several stack.")
    parser.add_argument(
        "--force", action="store_true", help="compute every cell again, even those already done"
    )
    parser.add_argument(
        "--dry-run",
        "--dry_run",
        dest="dry_run",
        action="store_true",
        help="print the cells, how many are done, and the time expected for the others; compute nothing",
    )
    parser.add_class_arguments(BenchmarkSettings, as_group=False)
    try:
        parsed = parser.parse_args(list(words))
    except RejectedError as error:
        options = [action.dest for action in parser._actions]
        raise StaError(explain(str(error), command=name, options=options)) from error
    values = parser.instantiate_classes(parsed).as_dict()
    force, dry = bool(values.pop("force")), bool(values.pop("dry_run"))
    values.pop("config", None)
    settings = BenchmarkSettings(**values)
    if not settings.methods:
        raise StaError(
            "sta benchmark needs a configuration that names the methods: --config configs/benchmark/miniature.yaml."
        )

    # Imports Lightning: --help and a mistyped option must not wait for it.
    from sta_lightning.benchmark.run import dry_run, run_benchmark

    if dry:
        print(dry_run(settings))
    else:
        run_benchmark(settings, force=force)
