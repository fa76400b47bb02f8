"""What stands for the things that a pickle names and would make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Use = Literal["named", "made", "called"]
"""What a pickle does with a global: name it, make an object of it without calling it, or call it."""


@dataclass(frozen=True)
class Global:
    """Something importable that a pickle names; it is not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Made:
    """An object that a pickle would make; it is not made.

    Attributes:
        maker: the class or function.
        args: what it would be given.
        called: whether it would be called, rather than made without its constructor.
        items: what would be appended to it.
        pairs: what would be set in it by key.
        state: what would become its attributes.
    """

    maker: Global
    args: tuple[Any, ...]
    called: bool
    items: list[Any] = field(default_factory=list)
    pairs: dict[Any, Any] = field(default_factory=dict)
    state: Any = None


class Admission(Protocol):
    """Says what a pickle may do with a global."""

    def __call__(self, use: Use, what: Global) -> None:
        """Raise a StaError if it may not."""
