"""``sta demo``: the whole chain, for the embedded suite or for any encoder and suite that a config describes."""

from collections.abc import Sequence

from sta_lightning.cli.settings import parse
from sta_lightning.experiment.settings import ExperimentSettings, expand_settings

DESCRIPTION = (
    "Fine-tune one encoder on every task, score, fuse, forget, and report. Steps that are already done are skipped; "
    "an interrupted run goes on where it stopped. Without options: the embedded suite, offline."
)
FLAGS = {"force": "do every step again, even those already done"}


def run(name: str, words: Sequence[str]) -> None:
    """Parse the settings and run the experiment.

    Args:
        name: ``demo``.
        words: The command line after it.

    Raises:
        StaError: The settings are not understood.
    """
    parsed, flags = parse(name, words, DESCRIPTION, ExperimentSettings, FLAGS)
    settings = expand_settings(parsed)

    # The experiment imports torch and Lightning: --help and a mistyped option must not wait for
    # them.
    from sta_lightning.experiment import run as run_experiment

    run_experiment(settings, force=flags["force"])
