"""Pickles are read as Python's own unpickler reads them, and nothing in them comes to life."""

import contextlib
import io
import pickle
import sys
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sta_lightning.weights.formats.pickled import DamagedPickleError, Global, Made, Use, interpret

KEYS = st.one_of(st.integers(), st.text(), st.booleans(), st.none(), st.floats(allow_nan=False), st.binary())
PLAIN = st.recursive(
    st.one_of(KEYS, st.frozensets(st.integers()), st.sets(st.text())),
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.integers()), inner),
    ),
    max_leaves=12,
)


def refuse(use: Use, what: Global) -> None:
    raise AssertionError(f"{use} {what}")


def allow(use: Use, what: Global) -> None:
    pass


def read(content: bytes, admit: Any = allow) -> Any:
    return interpret(io.BytesIO(content), admit, lambda reference: ("stored", reference))


@given(PLAIN)
def test_plain_values_are_those_of_pickle_itself(value: Any) -> None:
    # From protocol 4 on, sets and bytes have instructions of their own; before, they are calls.
    for protocol in (4, 5):
        assert read(pickle.dumps(value, protocol), refuse) == value


@given(
    st.recursive(
        st.one_of(st.integers(), st.text(), st.floats(allow_nan=False), st.none(), st.booleans()), st.lists
    )
)
def test_every_protocol_is_read(value: Any) -> None:
    for protocol in range(6):
        assert read(pickle.dumps(value, protocol), refuse) == value


def test_what_is_shared_stays_shared() -> None:
    inner = [1]
    found = read(pickle.dumps({"a": inner, "b": inner}))
    assert found["a"] is found["b"]


class Noisy:
    def __setstate__(self, state: Any) -> None:
        raise AssertionError("an object was built")


def test_objects_become_records() -> None:
    noisy = Noisy()
    noisy.__dict__["weight"] = 3
    for protocol in range(6):
        found = read(pickle.dumps(noisy, protocol))
        assert isinstance(found, Made)
        assert found.maker == Global(Noisy.__module__, "Noisy")
        assert found.state == {"weight": 3}
        assert not found.called


def test_calls_are_recorded_and_no_module_is_imported() -> None:
    assert "antigravity" not in sys.modules
    found = read(b"cantigravity\nfly\n(S'high'\ntR.")
    assert (found.maker, found.args, found.called) == (Global("antigravity", "fly"), ("high",), True)
    assert "antigravity" not in sys.modules


def test_every_use_of_a_global_is_asked_for() -> None:
    asked: list[tuple[str, str]] = []

    def note(use: Use, what: Global) -> None:
        asked.append((use, str(what)))

    # Reduce, the old instance, the old object, the new object, and what Python 2 made objects by.
    for content in (
        b"cos\nsystem\n(S'x'\ntR.",
        b"(S'x'\nios\nsystem\n.",
        b"(cos\nsystem\nS'x'\no.",
        b"cos\nsystem\n(S'x'\nt\x81.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.",
        b"ccopyreg\n_reconstructor\n(cos\nsystem\nc__builtin__\nobject\nNtR.",
    ):
        asked.clear()
        read(content, note)
        assert ("named", "os.system") in asked
        assert asked[-1][0] in ("called", "made")
        assert asked[-1][1] == "os.system"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"\x80\x04",
        b"(.",
        b"t.",
        b"h\x07.",
        b"\x80\x04K\x01b.",
        b"K\x01K\x02R.",
        b"K\x01(s.",
        b"(K\x01d.",
        b"\x82\x01.",
        b"\xff",
        b"]]s.",
        b"}]]s.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fab.",
        b"\x80\x05\x97.",
    ],
)
def test_damage_is_told_as_damage(content: bytes) -> None:
    with pytest.raises(DamagedPickleError):
        read(content)


@given(st.binary(max_size=80))
def test_no_bytes_lead_to_another_error(content: bytes) -> None:
    with contextlib.suppress(DamagedPickleError):
        read(content)


@given(st.data())
def test_a_pickle_cut_short_is_damaged(data: st.DataObject) -> None:
    whole = pickle.dumps({"a": [1, 2.5, "text"], "b": (None, {3})}, 4)
    with pytest.raises(DamagedPickleError):
        read(whole[: data.draw(st.integers(0, len(whole) - 1))])


def nested(opcode: bytes, times: int) -> bytes:
    """A number doubled in a tuple, and that again, ...: 2^times numbers in 2 * times bytes."""
    return b"K\x01" + (b"2" + opcode) * times


@pytest.mark.parametrize(
    "content",
    [
        b"}" + nested(b"\x86", 60) + b"K\x01s.",
        b"}(" + nested(b"\x86", 60) + b"K\x01u.",
        b"(" + nested(b"\x86", 60) + b"K\x01d.",
        b"\x8f(" + nested(b"\x86", 60) + b"\x90.",
        b"(" + nested(b"\x86", 60) + b"\x91.",
        b"}" + b")" + b"\x85" * 100_000 + b"K\x01s.",
        b"}\x8b" + (1 << 16).to_bytes(4, "little") + b"\x01" * (1 << 16) + b"K\x01s.",
        b"}(" + b"K\x01" * 9 + b"tK\x01s.",
        b"N0" * 200_000 + b"}.",
        b"]" * 200_000 + b".",
        b"Nr\xff\xff\xff\xff" * 200_000 + b".",
        b"\x8f" * 200_000 + b".",
    ],
    ids=(
        [
            "key",
            "keys",
            "dict",
            "set",
            "frozenset",
            "deep",
            "number",
            "wide",
            "instructions",
            "lists",
            "memo",
            "sets",
        ]
    ),
)
def test_tiny_pickles_neither_hang_nor_fill_the_memory(content: bytes) -> None:
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(DamagedPickleError, match=r"a key that is|instructions"):
        interpret(io.BytesIO(b"\x80\x04" + content), allow, most=100_000)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - began < 10
    assert most < 30 << 20


def test_a_memo_has_as_many_entries_as_it_is_given() -> None:
    # Python's own unpickler makes room for 2^33 here.
    assert read(b"\x80\x02K\x07r\xff\xff\xff\xff0j\xff\xff\xff\xff.") == 7
