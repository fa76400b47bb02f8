"""A pickle read as what it says, and never as what it would do.

Python's own unpickler imports what a file names and calls it. The machine here follows the same
instructions, but a name stays a :class:`Global` and a call a :class:`Made`: nothing is imported,
called or built. ``pickle.Unpickler`` with a ``find_class`` of ours would be as inert, but cannot be
bounded: ten bytes make it fill a memo of as many entries as they say (1.5 GB and 9 s for 10^8,
64 GB at most), it builds objects of types only, and it hashes whatever a file makes a key of, which
for 60 tuples in each other takes for ever.
"""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Literal, cast

MOST_INSTRUCTIONS = 500_000
"""A CLIP of 2 billion weights has 40 000, and with the state of its optimizer 130 000."""
_LONGEST_KEY = 8  # values of a tuple that is a key
_WIDEST_KEY = 1024  # bits of a number that is a key

Use = Literal["named", "made", "called"]
"""What a pickle does with a global: name it, make an object of it, or call it."""


@dataclass(frozen=True, slots=True)
class Global:
    """Something importable that a pickle names; it is not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False, slots=True)
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


Admission = Callable[[Use, Global], None]
"""Raises a StaError if a pickle may not do that with a global."""
Stream = io.BytesIO | mmap.mmap
"""Where a pickle comes from."""


class DamagedPickleError(Exception):
    """A pickle that breaks off, makes no sense, or goes beyond any checkpoint's size."""


def interpret(
    stream: Stream,
    admit: Admission,
    persistent: Callable[[Any], Any] | None = None,
    *,
    most: int = MOST_INSTRUCTIONS,
) -> Any:
    """What one pickle says.

    Time and memory are bounded by the number of instructions and the length of the stream. What is
    found may be shared and nested without end: whoever walks it bounds the walk, and neither hashes
    nor prints it.

    Args:
        stream: where it begins; afterwards, where it has ended.
        admit: asked before every use of a global.
        persistent: turns a reference to something outside of the pickle (a storage) into what
            stands for it; ``None`` where there can be no such reference.
        most: how many instructions it may have.

    Returns:
        Numbers, texts, bytes, tuples, lists, dicts and sets of each other, of :class:`Global`, of
        :class:`Made`, and of what ``persistent`` gives. Keys, and what is in a set, are numbers,
        texts, bytes, :class:`Global`, :class:`Made`, and short tuples of these.

    Raises:
        StaError: from ``admit`` or ``persistent``.
        DamagedPickleError: the bytes are no whole pickle, or go beyond the bounds.
    """
    machine = _Machine(admit, persistent or _no_reference)
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], stream))):
            if number == most:
                raise ValueError(f"more than {most} instructions, which no checkpoint has")
            if opcode.name == "STOP":
                return machine.pop()
            if opcode.name not in machine.steps:
                raise ValueError(f"the instruction {opcode.name}, which no checkpoint has")
            machine.steps[opcode.name](argument)
    except (
        *(ValueError, IndexError, KeyError, TypeError, OverflowError),
        *(MemoryError, RecursionError, pickle.UnpicklingError),
    ) as error:
        raise DamagedPickleError((str(error) or type(error).__name__).splitlines()[0]) from error
    raise DamagedPickleError("it breaks off")


def _no_reference(_: Any) -> Any:
    raise ValueError("a reference to something that is not in the file")


_MARK = object()
_RECONSTRUCTORS = (Global("copyreg", "_reconstructor"), Global("copy_reg", "_reconstructor"))
_LITERALS = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)


class _Machine:
    """The stack and the memory of one pickle, and what each instruction does with them."""

    def __init__(self, admit: Admission, persistent: Callable[[Any], Any]) -> None:
        self._admit = admit
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        push, pop, marked = self._stack.append, self.pop, self._marked
        put, get = self._put, lambda index: push(self._memo[int(index)])
        self.steps: dict[str, Callable[[Any], Any]] = {
            **dict.fromkeys(("PROTO", "FRAME"), lambda _: None),
            **dict.fromkeys(_LITERALS, push),
            "NONE": lambda _: push(None),
            "NEWTRUE": lambda _: push(True),
            "NEWFALSE": lambda _: push(False),
            "EMPTY_LIST": lambda _: push([]),
            "EMPTY_DICT": lambda _: push({}),
            "EMPTY_SET": lambda _: push(set()),
            "EMPTY_TUPLE": lambda _: push(()),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), put),
            "MEMOIZE": lambda _: put(len(self._memo)),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), get),
            "MARK": lambda _: push(_MARK),
            "POP": lambda _: self._stack.pop(),
            "POP_MARK": lambda _: marked(),
            "DUP": lambda _: push(self._stack[-1]),
            "TUPLE": lambda _: push(tuple(marked())),
            "TUPLE1": lambda _: push(self._last(1)),
            "TUPLE2": lambda _: push(self._last(2)),
            "TUPLE3": lambda _: push(self._last(3)),
            "LIST": lambda _: push(marked()),
            "DICT": lambda _: push(_paired(marked())),
            "FROZENSET": lambda _: push(frozenset(map(as_key, marked()))),
            "APPEND": lambda _: self._extend([pop()]),
            "APPENDS": lambda _: self._extend(marked()),
            "ADDITEMS": lambda _: self._add(marked()),
            "SETITEM": lambda _: self._set(self._last(2)),
            "SETITEMS": lambda _: self._set(marked()),
            "GLOBAL": lambda argument: self._name(*argument.split(" ", 1)),
            "STACK_GLOBAL": lambda _: self._name(*self._last(2)),
            "REDUCE": lambda _: self._call(*self._last(2)),
            "INST": self._instance,
            "OBJ": lambda _: self._call(*_first_and_rest(marked())),
            "NEWOBJ": lambda _: self._make("made", *self._last(2)),
            "NEWOBJ_EX": self._make_by_keywords,
            "BUILD": lambda _: self._build(pop()),
            "PERSID": lambda argument: push(persistent(argument)),
            "BINPERSID": lambda _: push(persistent(pop())),
        }

    def pop(self) -> Any:
        """Take the topmost value.

        Raises:
            ValueError: it is a mark.
            IndexError: there is none.
        """
        return self._last(1)[0]

    def _last(self, count: int) -> tuple[Any, ...]:
        """Take the topmost values, in the order in which they came."""
        found = tuple(self._stack[-count:])
        if len(found) < count or any(value is _MARK for value in found):
            raise ValueError("a mark where a value should be, or no value")
        del self._stack[-count:]
        return found

    def _marked(self) -> list[Any]:
        """Take everything above the last mark."""
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                found = self._stack[index + 1 :]
                del self._stack[index:]
                return found
        raise ValueError("no mark on the stack")

    def _put(self, index: Any) -> None:
        self._memo[int(index)] = self._stack[-1]

    def _target(self, kind: type, attribute: str) -> Any:
        """The topmost value, or what is kept of it where it would be an object of the file."""
        target = self._stack[-1]
        found = getattr(target, attribute) if isinstance(target, Made) else target
        if not isinstance(found, kind):
            raise ValueError(f"an addition to what is no {kind.__name__}")
        return found

    def _extend(self, values: list[Any]) -> None:
        self._target(list, "items").extend(values)

    def _add(self, values: list[Any]) -> None:
        self._target(set, "items").update(map(as_key, values))

    def _set(self, values: Sequence[Any]) -> None:
        self._target(dict, "pairs").update(_paired(values))

    def _build(self, state: Any) -> None:
        target = self._stack[-1]
        if not isinstance(target, Made):
            raise ValueError("attributes set in what is no object of the file")
        target.state = state

    def _name(self, module: Any, name: Any) -> None:
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a global whose name is no text")
        found = Global(module, name)
        self._admit("named", found)
        self._stack.append(found)

    def _instance(self, argument: str) -> None:
        args = tuple(self._marked())
        self._name(*argument.split(" ", 1))
        self._call(self.pop(), args)

    def _make_by_keywords(self, _: Any) -> None:
        maker, args, keywords = self._last(3)
        self._make("made", maker, (*args, keywords))

    def _call(self, maker: Any, args: Any) -> None:
        if maker in _RECONSTRUCTORS and args:
            # Old protocols make an object of its first argument by this, without calling it.
            self._make("made", *_first_and_rest(args))
        else:
            self._make("called", maker, args)

    def _make(self, use: Use, maker: Any, args: Any) -> None:
        if not isinstance(maker, Global) or not isinstance(args, tuple):
            raise ValueError("an object of what is no class")
        self._admit(use, maker)
        self._stack.append(Made(maker, args, called=use == "called"))


def _first_and_rest(values: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    first, *rest = values
    return first, tuple(rest)


def as_key(value: Any, *, inside: bool = False) -> Any:
    """A value whose hash is found at once: that of a tuple is made anew of all that it holds.

    Raises:
        ValueError: it is none of those.
    """
    if isinstance(value, tuple) and not inside and len(value) <= _LONGEST_KEY:
        return tuple(as_key(part, inside=True) for part in value)
    if isinstance(value, int) and value.bit_length() <= _WIDEST_KEY:
        return value
    if value is None or isinstance(value, (str, bytes, float, Global, Made)):
        return value
    raise ValueError(f"a key that is a {type(value).__name__}, or too large for one")


def _paired(values: Sequence[Any]) -> dict[Any, Any]:
    if len(values) % 2:
        raise ValueError("a key without a value")
    return {as_key(key): value for key, value in zip(values[::2], values[1::2], strict=True)}
