"""A pickle read as what it says, and never as what it would do.

Python's own unpickler imports what a file names and calls it. This one follows the same
instructions on a stack of its own, but a name stays a name
(:class:`~sta_lightning.weights.formats.symbols.Global`) and a call stays a record of the call
(:class:`~sta_lightning.weights.formats.symbols.Made`): nothing is imported, nothing is called, no
class of the file is built. What may be named at all is for an
:class:`~sta_lightning.weights.formats.symbols.Admission` to say.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable
from typing import IO, Any, Protocol, cast

from sta_lightning.weights.formats.symbols import Admission, Global, Made


class Readable(Protocol):
    """Where a pickle comes from."""

    def read(self, size: int, /) -> bytes:
        """Bytes, fewer at the end."""

    def readline(self) -> bytes:
        """Bytes up to a line's end."""


class DamagedPickleError(Exception):
    """A pickle that breaks off or makes no sense."""


_MARK = object()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *(
            "STRING",
            "BINSTRING",
            "SHORT_BINSTRING",
            "UNICODE",
            "SHORT_BINUNICODE",
            "BINUNICODE",
            "BINUNICODE8",
        ),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
}


def interpret(stream: Readable, admit: Admission, persistent: Callable[[Any], Any]) -> Any:
    """What one pickle says.

    Args:
        stream: where it begins; afterwards, where it has ended.
        admit: asked before every use of a global.
        persistent: turns a reference to something outside of the pickle (a storage) into what
            stands for it.

    Returns:
        Numbers, texts, bytes, tuples, lists, dicts and sets of each other, of :class:`Global`, of
        :class:`Made`, and of what ``persistent`` gives.

    Raises:
        StaError: from ``admit`` or ``persistent``.
        DamagedPickleError: the bytes are no whole pickle.
    """
    machine = _Machine(admit, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], stream)):
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
        MemoryError,
        RecursionError,
        pickle.UnpicklingError,
    ) as error:
        reason = str(error).splitlines()
        raise DamagedPickleError(reason[0] if reason else type(error).__name__) from error
    raise DamagedPickleError("it breaks off")


class _Machine:
    """The stack and the memory of one pickle."""

    def __init__(self, admit: Admission, persistent: Callable[[Any], Any]) -> None:
        self._admit, self._persistent = admit, persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value should be")
        return value

    def _marked(self) -> list[Any]:
        """Everything above the last mark."""
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                found = self._stack[index + 1 :]
                del self._stack[index:]
                return found
        raise ValueError("no mark on the stack")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def step(self, name: str, argument: Any) -> None:
        """Follow one instruction."""
        if name in _LITERALS:
            self._push(argument)
        elif name in _CONSTANTS:
            self._push(_CONSTANTS[name])
        elif name in _EMPTY:
            self._push(_EMPTY[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if name == "MEMOIZE" else int(argument)] = self._stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._push(self._memo[int(argument)])
        elif name not in ("PROTO", "FRAME"):
            getattr(self, f"_do_{name.lower()}", self._unknown(name))(argument)

    def _unknown(self, name: str) -> Callable[[Any], None]:
        def refuse(_: Any) -> None:
            raise ValueError(f"the instruction {name}, which no checkpoint has")

        return refuse

    def _do_mark(self, _: Any) -> None:
        self._push(_MARK)

    def _do_pop(self, _: Any) -> None:
        self._stack.pop()

    def _do_pop_mark(self, _: Any) -> None:
        self._marked()

    def _do_dup(self, _: Any) -> None:
        self._push(self._stack[-1])

    def _do_tuple(self, _: Any) -> None:
        self._push(tuple(self._marked()))

    def _do_tuple1(self, _: Any) -> None:
        self._push((self.pop(),))

    def _do_tuple2(self, _: Any) -> None:
        second, first = self.pop(), self.pop()
        self._push((first, second))

    def _do_tuple3(self, _: Any) -> None:
        third, second, first = self.pop(), self.pop(), self.pop()
        self._push((first, second, third))

    def _do_list(self, _: Any) -> None:
        self._push(self._marked())

    def _do_dict(self, _: Any) -> None:
        self._push(_paired(self._marked()))

    def _do_frozenset(self, _: Any) -> None:
        self._push(frozenset(self._marked()))

    def _do_append(self, _: Any) -> None:
        self._extend([self.pop()])

    def _do_appends(self, _: Any) -> None:
        self._extend(self._marked())

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Made):
            target.items.extend(values)
        elif isinstance(target, list):
            target.extend(values)
        else:
            raise ValueError("something appended to what is no list")

    def _do_additems(self, _: Any) -> None:
        values, target = self._marked(), self._stack[-1]
        if not isinstance(target, set):
            raise ValueError("something added to what is no set")
        target.update(values)

    def _do_setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._set({key: value})

    def _do_setitems(self, _: Any) -> None:
        self._set(_paired(self._marked()))

    def _set(self, pairs: dict[Any, Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Made):
            target.pairs.update(pairs)
        elif isinstance(target, dict):
            target.update(pairs)
        else:
            raise ValueError("a key set in what is no mapping")

    def _do_global(self, argument: Any) -> None:
        module, _, name = str(argument).partition(" ")
        self._name(module, name)

    def _do_stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a global whose name is no text")
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        found = Global(module, name)
        self._admit("named", found)
        self._push(found)

    def _do_reduce(self, _: Any) -> None:
        args, maker = self.pop(), self.pop()
        self._make(maker, args, called=True)

    def _do_inst(self, argument: Any) -> None:
        module, _, name = str(argument).partition(" ")
        args = tuple(self._marked())
        self._name(module, name)
        self._make(self.pop(), args, called=True)

    def _do_obj(self, _: Any) -> None:
        maker, *args = self._marked()
        self._make(maker, tuple(args), called=True)

    def _do_newobj(self, _: Any) -> None:
        args, maker = self.pop(), self.pop()
        self._make(maker, args, called=False)

    def _do_newobj_ex(self, _: Any) -> None:
        keywords, args, maker = self.pop(), self.pop(), self.pop()
        self._make(maker, (*args, keywords), called=False)

    def _make(self, maker: Any, args: Any, *, called: bool) -> None:
        if not isinstance(maker, Global) or not isinstance(args, tuple):
            raise ValueError("an object of what is no class")
        if not called or str(maker) in ("copyreg._reconstructor", "copy_reg._reconstructor"):
            # The reconstructor of old protocols makes an object of its first argument, without
            # calling it.
            if called and not (args and isinstance(args[0], Global)):
                raise ValueError("an object of what is no class")
            self._admit("made", args[0] if called else maker)
            self._push(Made(args[0] if called else maker, args[1:] if called else args, called=False))
            return
        self._admit("called", maker)
        self._push(Made(maker, args, called=True))

    def _do_build(self, _: Any) -> None:
        state, target = self.pop(), self._stack[-1]
        if not isinstance(target, Made):
            raise ValueError("attributes set in what is no object of the file")
        target.state = state

    def _do_persid(self, argument: Any) -> None:
        self._push(self._persistent(argument))

    def _do_binpersid(self, _: Any) -> None:
        self._push(self._persistent(self.pop()))


def _paired(values: list[Any]) -> dict[Any, Any]:
    if len(values) % 2:
        raise ValueError("a key without a value")
    return dict(zip(values[::2], values[1::2], strict=True))
