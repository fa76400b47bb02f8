"""What of a message may reach a terminal."""

import json

import pytest

from sta_lightning.errors import printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a plain text\nof two lines: é 漢字 … ×", "a plain text\nof two lines: é 漢字 … ×"),
        ("no\u00a0break\u3000wide", "no\u00a0break\u3000wide"),
        ("\x1b[31mred\x07", r"\u001b[31mred\u0007"),
        ("a\0b\tc\rd\x7f\x9b", r"a\u0000b\u0009c\u000dd\u007f\u009b"),
        ("\u202egnp.exe\u2028", r"\u202egnp.exe\u2028"),
        ("half \udcff pair", r"half \udcff pair"),
        ("\U000e0041", r"\udb40\udc41"),
    ],
)
def test_orders_to_a_terminal_are_spelt_out(text: str, expected: str) -> None:
    shown = printable(text)
    assert shown == expected
    assert json.loads(json.dumps(text, ensure_ascii=False).replace(text, shown)) == text or "\n" in text


def test_of_a_long_text_beginning_and_end_are_shown() -> None:
    shown = printable("begin" + "x" * 10_000 + "end", longest=100)
    assert len(shown) == 100
    assert shown.startswith("begin")
    assert shown.endswith("end")
    assert "…" in shown
    assert printable("x" * 100, longest=100) == "x" * 100
