"""The argument parser behind every subcommand: it raises instead of printing usage and exiting."""

import functools
from collections.abc import Callable
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from sta_lightning.errors import StaError


class RejectedError(Exception):
    """What jsonargparse has against a command line or a configuration, in its own words."""


class RaisingParser(ArgumentParser):
    """An argument parser whose errors can be caught and worded anew."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise ``RejectedError``; inner parsers, whose errors jsonargparse itself expects, behave as ever."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise RejectedError(message) from ex

    def add_instantiator(
        self,
        instantiator: Callable[..., Any],
        class_type: type[Any],
        subclasses: bool = True,
        prepend: bool = False,
    ) -> None:
        """Register an instantiator that remembers a ``StaError`` in ``faults``.

        jsonargparse turns what a constructor raises into the text of a ``ValueError``; the original
        would be lost.
        """

        def remembering(*args: Any, **kwargs: Any) -> Any:
            try:
                return instantiator(*args, **kwargs)
            except StaError as fault:
                self.faults.append(fault)
                raise

        functools.update_wrapper(remembering, instantiator)
        super().add_instantiator(remembering, class_type, subclasses=subclasses, prepend=prepend)

    @property
    def faults(self) -> list[StaError]:
        """The mistakes found while classes were instantiated, in order."""
        found: list[StaError] = self.__dict__.setdefault("_faults", [])
        return found
