"""The whole chain for any encoder and suite: fine-tune, score, fuse, forget, report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sta_lightning.experiment.settings import ExperimentSettings, TaskOverride, expand_settings

if TYPE_CHECKING:
    from sta_lightning.experiment.results import ExperimentResult

__all__ = ["ExperimentSettings", "TaskOverride", "expand_settings", "run"]


def run(settings: ExperimentSettings, *, force: bool = False) -> ExperimentResult:
    """Run the chain, or what is left of it, and write the report under ``settings.output``.

    Steps that were done with the same settings and inputs are skipped. Inputs are weights, heads,
    scores and task files by their content; pictures are known by their task and folder only, so use
    ``force`` after changing some. An interruption, at any point, loses at most one epoch of one
    fine-tuning or one evaluation.

    Args:
        settings: encoder, tasks and everything else.
        force: do every step again.

    Returns:
        Where everything lies, and the numbers.

    Raises:
        StaError: when the settings cannot make a run, or files are missing or do not fit.
        KeyboardInterrupt: after a line that says how to go on.
    """
    # Imported here: reading the settings alone (``sta demo --help``) must not load torch.
    from sta_lightning.experiment.chain import run_chain

    return run_chain(settings, force=force)
