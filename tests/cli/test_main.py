"""The entry point: light, and clear about what it does not know."""

import subprocess
import sys

import pytest

from sta_lightning import __version__
from sta_lightning.cli import main as main_module
from sta_lightning.cli.main import COMMANDS, Command, main

HEAVY = ("torch", "lightning", "jsonargparse", "open_clip", "timm", "numpy", "matplotlib")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["mrge"]])
def test_answers_without_importing_anything_heavy(words: list[str]) -> None:
    program = (
        "import sys\n"
        "from sta_lightning.cli.main import main\n"
        f"main({words!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_lists_every_subcommand_with_one_line_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert [line for line in lines if line.split()[:1] == [name] and line.endswith(command.summary)], name
    assert sum(line.startswith("  sta ") for line in lines) >= 5


def test_no_words_shows_help_and_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "subcommands:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sta_lightning {__version__}\n"


@pytest.mark.parametrize(("typed", "meant"), [("mrge", "merge"), ("foget", "forget"), ("scores", "score")])
def test_unknown_subcommand_names_the_nearest(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([typed]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert f"'{typed}'" in err
    assert f"'{meant}'" in err


def test_option_before_the_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "x.yaml", "fit"]) == 2
    assert "sta fit --config" in capsys.readouterr().err


def test_debug_is_taken_anywhere_and_shows_the_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    class Broken:
        @staticmethod
        def run(name: str, words: list[str]) -> None:
            seen.append(words)
            raise ZeroDivisionError("deliberate")

    monkeypatch.setitem(COMMANDS, "demo", Command("demo", ""))
    monkeypatch.setattr(main_module.importlib, "import_module", lambda name: Broken)
    assert main(["demo", "--a=1"]) == 1
    for words in (["--debug", "demo", "--a=1"], ["demo", "--debug", "--a=1"], ["demo", "--a=1", "--debug"]):
        with pytest.raises(ZeroDivisionError):
            main(words)
    assert seen == [["--a=1"]] * 4
