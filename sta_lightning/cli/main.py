"""Entry point of the command ``sta``; nothing heavy is imported before a subcommand is known."""

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from sta_lightning import __version__
from sta_lightning.cli.guard import EXIT_USER_ERROR, guarded
from sta_lightning.cli.help import HELPS, screen
from sta_lightning.cli.screen import complain, readable, say


class Command(NamedTuple):
    """Where a subcommand lives, as ``run(name, words)`` of a module, and what it does."""

    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "benchmark", "the whole method on the embedded suite: fine-tune, score, fuse, forget, report"
    ),
    "benchmark": Command(
        "benchmark",
        "compare all methods over several seeds: tables, figures, a report; goes on where it stopped",
    ),
    "fit": Command("train", "train: fine-tune an encoder on one task (or pretrain one)"),
    "validate": Command("train", "evaluate on the validation split"),
    "test": Command("train", "evaluate on the test split"),
    "predict": Command("predict", "classify pictures by a model in a file, into a CSV"),
    "probabilities": Command(
        "probabilities", "those of the classes on a configured test split, into a safetensors file"
    ),
    "score": Command("score", "importance of every weight of a fine-tuned encoder, as one safetensors file"),
    "merge": Command(
        "merge", "fuse fine-tuned models into one; with a configuration, evaluate it on every task"
    ),
    "forget": Command(
        "merge", "make a model forget a task; with a configuration, evaluate it on target and control"
    ),
    "configs": Command("shipped", "the configurations that come with the package: the list, and copies"),
    "methods": Command("methods", "the methods: what each needs, its settings, where it was published"),
    "convert": Command(
        "convert", "write a checkpoint as open_clip, Hugging Face or safetensors, from any of these and more"
    ),
    "inspect": Command(
        "inspect",
        "what a checkpoint is and who made it; of several, whether they can be merged, and how they differ",
    ),
}

EXAMPLES = """\
examples:
  sta merge base.safetensors cars.safetensors dogs.safetensors -o merged.safetensors
  sta forget merged.safetensors --base base.safetensors --finetuned cars.safetensors -o less.safetensors
  sta inspect merged.safetensors
  sta predict --model merged.safetensors --task digits pictures/
  sta methods ties                     one method and its settings
  sta demo
  sta fit --config sta:finetune/miniature --model.task=digits
  sta score --config sta:score/miniature --model.task=digits
  sta merge --config sta:merge/miniature --p 0.6
  sta benchmark --config sta:benchmark/miniature --dry-run
"""


def help_text() -> str:
    """The text of ``sta --help``."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: sta SUBCOMMAND [--config FILE ...] [--option=value ...] [--debug]\n\n"
        "Selective Task Arithmetic: fuse fine-tuned models into one, or make a model forget a task.\n\n"
        f"subcommands:\n{rows}\n\n"
        "options:\n"
        "  -h, --help  this text; after a subcommand its help, and all of its options with --help-all\n"
        "  --version   the version\n"
        "  --debug     show the full stack trace when something goes wrong (anywhere on the line)\n\n"
        f"{EXAMPLES}"
    )


def unknown_command(asked: str) -> str:
    """One line for a first word that is no subcommand, with the nearest name."""
    if asked.startswith("-"):
        return (
            f"the first word must be a subcommand, found {asked!r}: options go after it, "
            f"as in `sta fit {asked} ...`. Subcommands: {', '.join(COMMANDS)}."
        )
    near = difflib.get_close_matches(asked, COMMANDS, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"there is no subcommand {asked!r}.{hint} Subcommands: {', '.join(COMMANDS)}."


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``sta`` and return its exit status.

    Args:
        argv: The words after ``sta``; default: the command line.

    Returns:
        0 for success; 1 for an internal error, and where ``sta inspect`` finds that models cannot
        be merged; 2 for a user's mistake, 130 for an interruption.
    """
    readable()
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        say(help_text().rstrip())
        return 0 if words else EXIT_USER_ERROR
    if words[0] == "--version":
        print(f"sta_lightning {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        complain(unknown_command(name))
        return EXIT_USER_ERROR

    everything = "--help-all" in rest
    if name in HELPS and not everything and {"-h", "--help"} & set(rest):
        say(screen(name, COMMANDS[name].summary).rstrip())
        return 0
    rest = ["--help" if word == "--help-all" else word for word in rest]

    def call() -> None:
        module = importlib.import_module(f"sta_lightning.cli.{COMMANDS[name].module}")
        module.run(name, rest)

    return guarded(call, debug=debug)
