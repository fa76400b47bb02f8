"""What is made of jsonargparse's messages, known and unknown."""

from __future__ import annotations

import pytest

from sta_lightning.cli.explain import explain, unknown_option

OPTIONS = ["output", "dry_run", "model.p", "model.tasks", "trainer.logger", "data"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--output=x", "--model.p", "0.3", "-c", "file.yaml", "stray", "--help", "--print_config=x"], None),
        (["--dry-run"], None),
        (["--trainer.logger+=X", "--trainer.logger.save_dir=x", "--data.init_args.x=1", "--model=x"], None),
        (["--otput=x"], "otput"),
        (["--model.p=1", "--model.q=1"], "model.q"),
        (["--out"], "out"),
    ],
)
def test_an_option_that_there_is_not_is_found_without_a_message(
    words: list[str], expected: str | None
) -> None:
    assert unknown_option(words, OPTIONS) == expected
    if expected:
        text = explain("words of tomorrow", words, command="merge", options=OPTIONS)
        assert f"--{expected}." in text


@pytest.mark.parametrize(
    "message",
    [
        "Option model.p: half cannot be read as float",
        "Wrong value.\n  - for model.p\n  - half\n",
        "",
    ],
)
def test_a_message_in_other_words_is_passed_on_as_one_line(message: str) -> None:
    text = explain(message, ["--model.p=half"], command="merge", options=OPTIONS)
    assert "\n" not in text
    assert all(word in text for word in message.split() if word != "-")
    assert text.endswith("`sta merge --help` lists the options.")
