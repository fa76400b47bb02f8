"""The command lines whose options are the fields of one dataclass."""

from collections.abc import Mapping, Sequence
from typing import Any

from sta_lightning.cli import parser as parsing
from sta_lightning.cli.parser import RaisingParser


def build_parser(name: str, description: str, settings: type[Any], flags: Mapping[str, str]) -> RaisingParser:
    """Every field of a dataclass, a config file, and flags.

    Args:
        name: the subcommand.
        description: what it does.
        settings: the dataclass.
        flags: option -> its meaning, of options that are on or off.
    """
    parser = RaisingParser(prog=f"sta {name}", description=description)
    parser.add_config()
    for flag, meaning in flags.items():
        spellings = dict.fromkeys((f"--{flag}", f"--{flag.replace('-', '_')}"))
        parser.add_argument(*spellings, dest=flag.replace("-", "_"), action="store_true", help=meaning)
    parser.add_class_arguments(settings, as_group=False)
    return parser


def parse(
    name: str, words: Sequence[str], description: str, settings: type[Any], flags: Mapping[str, str]
) -> tuple[Any, dict[str, bool]]:
    """Read a command line, ``words``; the rest is what :func:`build_parser` takes.

    Returns:
        The dataclass, and whether each flag is given.

    Raises:
        StaError: the settings are not understood.
    """
    parser = build_parser(name, description, settings, flags)
    parsed = parsing.parse(parser, words)
    values = parser.instantiate(parsed).as_dict()
    values.pop("config", None)
    given = {flag: bool(values.pop(flag.replace("-", "_"))) for flag in flags}
    return settings(**values), given
