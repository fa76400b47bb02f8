"""Command lines of ``sta``, parsed by one parser a subcommand for the whole session."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any, cast

import pytest
import yaml

from sta_lightning.cli.base import StaCLI
from sta_lightning.cli.main import main
from sta_lightning.engine.options import MergeOptions

_MADE: dict[str, Any] = {}


class _StopError(Exception):
    """The parser is made: nothing else is wanted of the command line."""


def _cli(words: Sequence[str]) -> Any:
    """The subcommand's ``StaCLI`` with its parser, made for the first command line that asks."""

    def stop(cli: StaCLI, *args: Any) -> None:
        _MADE[words[0]] = cli
        raise _StopError

    if words[0] not in _MADE:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StaCLI, "parse_arguments", stop)
            # The files of a documented line need not be there.
            patch.setattr(MergeOptions, "check_files", lambda *args: None)
            with pytest.raises(_StopError):
                main([*words, "--debug"])
    return _MADE[words[0]]


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """The configuration that a command line would run with, as ``--print_config`` shows it.

    Args:
        words: The command line after ``sta``.
    """
    command, cli = words[0], _cli(words)
    config = cli.parser.parse_args(list(words))[command]
    cli.complete(config)
    text = cli._inner.dump(config, skip_none=False)
    return cast(dict[str, Any], yaml.safe_load(text))


def option_names(command: str) -> tuple[str, ...]:
    """The options of a subcommand that has a trainer, dotted; of ``sta merge``, with evaluation."""
    return tuple(_cli([command, "--help-all"])._inner.options())


def instantiated(words: Sequence[str]) -> Any:
    """``model``, ``data`` and ``trainer`` of a command line, made but not run."""
    command, cli = words[0], _cli(words)
    config = cli.parser.parse_args(list(words))
    cli.complete(config[command])
    return cli.parser.instantiate_classes(config)[command]


def documented(text: str) -> list[list[str]]:
    """The lines of a file that call ``sta``: the words after it, without comments.

    Variables and a launcher may stand before it.
    """
    lines = [line.strip().lstrip("#$ ") for line in text.replace("\\\n", " ").splitlines()]
    calls = [re.match(r"(?:\w+=\S+ )*(?:sta|torchrun .* -m sta_lightning) (.*)", line) for line in lines]
    return [shlex.split(call[1], comments=True) for call in calls if call]
