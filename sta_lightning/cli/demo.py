"""``sta demo``: the whole chain, for the embedded suite or for any encoder and suite that a config describes."""

from collections.abc import Sequence

from sta_lightning.cli.explain import explain
from sta_lightning.cli.parser import RaisingParser, RejectedError
from sta_lightning.cli.precheck import config_files, read_config
from sta_lightning.errors import StaError
from sta_lightning.experiment.settings import ExperimentSettings, expand_settings

DESCRIPTION = (
    "Fine-tune one encoder on every task, score, fuse, forget, and report. Steps that are already done are skipped; "
    "an interrupted run goes on where it stopped. Without options: the embedded suite, offline."
)


def build_parser() -> RaisingParser:
    """The options of ``sta demo``: every field of ``ExperimentSettings``, a config file, and ``--force``."""
    parser = RaisingParser(prog="sta demo", description=DESCRIPTION)
    parser.add_argument("-c", "--config", action="config", help="YAML file with settings; several stack.")
    parser.add_argument("--force", action="store_true", help="do every step again, even those already done")
    parser.add_class_arguments(ExperimentSettings, as_group=False)
    return parser


def run(name: str, words: Sequence[str]) -> None:
    """Parse the settings and run the experiment.

    Args:
        name: ``demo``.
        words: The command line after it.

    Raises:
        StaError: The settings are not understood.
    """
    for file in config_files(words):
        read_config(file)
    parser = build_parser()
    try:
        parsed = parser.parse_args(list(words))
    except RejectedError as error:
        options = [action.dest for action in parser._actions]
        raise StaError(explain(str(error), command=name, options=options)) from error
    values = parser.instantiate_classes(parsed).as_dict()
    force = bool(values.pop("force"))
    values.pop("config", None)
    settings = expand_settings(ExperimentSettings(**values))

    # The experiment imports torch and Lightning: --help and a mistyped option must not wait for them.
    from sta_lightning.experiment import run as run_experiment

    run_experiment(settings, force=force)
