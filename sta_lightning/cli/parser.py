"""The argument parser behind every subcommand: what it refuses is one ``StaError``."""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from jsonargparse import (  # type: ignore[attr-defined]  # its __all__ is put together at run time
    ActionConfigFile,
    ArgumentParser,
    Namespace,
)

from sta_lightning.cli.configs import check_keys, read_config
from sta_lightning.cli.explain import explain
from sta_lightning.cli.shipped import PREFIX, shipped
from sta_lightning.documents import check_values
from sta_lightning.errors import StaError

_DEEPEST = 64  # brackets in each other, in one word


_CONFIG = "YAML file with settings; several stack. sta:NAME is one of the package's, see `sta configs`."


class RejectedError(Exception):
    """What jsonargparse has against a command line or a configuration, in its own words."""


class RaisingParser(ArgumentParser):
    """An argument parser whose errors can be caught and worded anew.

    Attributes:
        configs: What the configuration files of a command line hold, in their order.
        faults: What classes have raised while they were instantiated, in order: jsonargparse makes
            the text of a ``ValueError`` of it, and the originals would be lost.
        linked: Options that follow from others.
        constructors: What builds the classes: function, class, and whether its subclasses too.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.configs: list[dict[str, Any]] = []
        self.faults: list[tuple[type[Any], Exception]] = []
        self.constructors: list[tuple[Callable[..., Any], type[Any], bool]] = []
        self.linked: list[str] = []
        super().__init__(*args, allow_abbrev=False, **kwargs)

    @property
    def command(self) -> str:
        """The subcommand, the last word of the program's name."""
        return str(self.prog).split()[-1]

    def options(self) -> list[str]:
        """The names of all options, dotted."""
        return [*self.get_defaults(skip_validation=True).keys(), *self.linked]

    def add_config(self) -> None:
        """Add ``--config``."""
        self.add_argument("-c", "--config", action=ConfigFile, help=_CONFIG)

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The help, its types by the names that people know."""
        return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", super().format_help(*args, **kwargs))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise ``RejectedError``, except in inner parsers, whose errors jsonargparse expects."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise RejectedError(message) from ex

    def parse_args(  # type: ignore[override]  # argparse has three forms of it
        self, args: Sequence[str] | None = None, *more: Any, **settings: Any
    ) -> Namespace:
        """Parse, and refuse values that no option can have; see ``check_values``."""
        for word in args or ():
            if _depth(word) > _DEEPEST:
                raise StaError(
                    f"{word[:60]!r}… is nested more than {_DEEPEST} deep. Give a value as `--help` says."
                )
        try:
            found: Namespace = super().parse_args(args, *more, **settings)
        except StaError:
            raise
        except (ValueError, OverflowError, RecursionError) as error:
            raise StaError(f"a number or a value on the command line cannot be read: {error}.") from error
        for key, value in found.items():
            try:
                check_values(value, f"--{key.removeprefix(f'{self.command}.')}")
            except ValueError as error:
                raise StaError(f"{error}.") from error
        return found

    # Lightning 2.6 calls the next two by names that jsonargparse 4.49 has deprecated.

    def add_instantiator(
        self,
        instantiator: Callable[..., Any],
        class_type: type[Any],
        subclasses: bool = True,
        prepend: bool = False,
    ) -> None:
        """Keep an instantiator; what is raised in it is put into ``faults``."""

        def remembering(kind: type[Any], *args: Any, **kwargs: Any) -> Any:
            try:
                return instantiator(kind, *args, **kwargs)
            except Exception as fault:
                self.faults.append((kind, fault))
                raise

        functools.update_wrapper(remembering, instantiator)
        self.constructors.insert(
            0 if prepend else len(self.constructors), (remembering, class_type, subclasses)
        )

    def instantiate_classes(self, cfg: Namespace, **kwargs: Any) -> Namespace:
        """Build the classes of a configuration."""
        built: Namespace = self.instantiate(cfg, instantiators=self.constructors, **kwargs)
        return built


class ConfigFile(ActionConfigFile):
    """``--config FILE``, with errors that name the file and the line."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Read one file into the settings."""
        if str(values).startswith(PREFIX):
            values = str(shipped(str(values).removeprefix(PREFIX)))
        config = read_config(str(values))
        check_keys(str(values), config, parser.options(), parser.command)
        parser.configs.append(config)
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]


def parse(
    parser: RaisingParser, words: Sequence[str], members: Iterable[str] = (), *, missing: str | None = None
) -> Namespace:
    """Read a command line.

    Args:
        parser: Its options.
        words: The command line after the subcommand.
        members: Names of what is inside the options' values, for hints at misspellings.
        missing: What to say where something required is not given.

    Raises:
        StaError: It is not understood.
    """
    try:
        return parser.parse_args(list(words))
    except RejectedError as error:
        text = str(error)
        if missing is None or "required" not in text:
            missing = explain(
                text, words, command=parser.command, options=parser.options(), members=list(members)
            )
        raise StaError(missing) from error


def _depth(word: str) -> int:
    """How deep brackets are nested in a word."""
    deep = (("[{".count(letter) - "]}".count(letter)) for letter in word if letter in "[]{}")
    return max(itertools.accumulate(deep), default=0)
