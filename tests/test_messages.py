"""An option that a message names is one of the command that the message comes from."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import sta_lightning
from sta_lightning.cli import benchmark, convert, inspect, predict
from sta_lightning.cli.explain import unknown_option
from sta_lightning.cli.front import OPTIONS, spelled_out
from sta_lightning.cli.main import COMMANDS
from tests.command_lines import option_names

PACKAGE = Path(sta_lightning.__file__).parent
TRAINED = ("fit", "validate", "test", "probabilities")
# Which commands a file or a folder serves alone. A message of any other file reaches several
# commands, and prints the whole line of the one that helps.
SERVES = {
    "cli/": (*TRAINED, "score", "merge", "forget"),
    "benchmark/": ("benchmark",),
    "cli/benchmark.py": ("benchmark",),
    "cli/predict.py": ("predict", "probabilities"),
    "cli/pictures.py": ("predict",),
    "cli/convert.py": ("convert", "inspect"),
    "cli/inspect.py": ("inspect",),
    "cli/score.py": ("score",),
    "cli/shipped.py": ("configs", "fit"),
    "cli/train.py": TRAINED,
    "cli/probabilities.py": ("probabilities",),
    "cli/merge.py": ("merge", "forget"),
    "cli/merge_evaluated.py": ("merge", "forget"),
    "encoders/predictor.py": ("predict",),
    "engine/heads.py": ("merge",),
    "engine/part.py": ("merge", "forget"),
    "weights/formats/conversion.py": ("convert",),
    "weights/formats/writing.py": ("convert",),
    "weights/formats/origin.py": ("convert",),
    "weights/formats/clip_config.py": ("convert",),
    "weights/formats/huggingface.py": ("convert",),
}
# What every command knows, and what is another program's.
ANYWHERE = {
    "h",
    "help",
    "help-all",
    "debug",
    "option",
    "logdir",
    "include",
    "revision",
    "error-unmatch",
    "porcelain",
}
# Tables and code, in which a command line may be spread over several texts.
NO_MESSAGES = (
    "cli/main.py",
    "cli/help.py",
    "cli/methods.py",
    "weights/formats/card.py",
    "report/",
    "arithmetic/registry.py",
)
LINE = re.compile(r"`sta (\w+)([^`]*)`")
OPTION = re.compile(r"(?<![\w-])--([a-zA-Z][\w.-]*)")
DOTTED = re.compile(r"(?<![\w./-])((?:model|data|trainer)\.[a-z_]+)")
FILES = sorted(
    name
    for name in (path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
    if not name.startswith(NO_MESSAGES)
)


@cache
def options(command: str) -> tuple[str, ...]:
    """The options of a command."""
    parsers = {
        "predict": predict.build_parser,
        "convert": convert.build_parser,
        "inspect": inspect.build_parser,
        "benchmark": lambda: benchmark.build_parser("benchmark"),
    }
    if command in ("configs", "methods"):  # they have no parser
        return {"configs": ("all",), "methods": ()}[command]
    return tuple(parsers[command]().options()) if command in parsers else option_names(command)


def knows(command: str, option: str) -> bool:
    words = [f"--{option}=x"]
    if command in OPTIONS:
        words = spelled_out(command, words)
    return unknown_option(words, options(command)) is None


def texts(path: Path) -> Iterator[str]:
    """Every text in a file that is no docstring; what is filled in is an X."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    joined = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    left = {id(part) for node in joined for part in ast.walk(node)}
    left |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in joined:
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left:
            yield node.value


def named(text: str) -> list[str]:
    """The options in a text, without those whose name is filled in."""
    found = (name.rstrip(".") for name in OPTION.findall(text))
    return [name for name in found if "X" not in name and name not in ANYWHERE]


@pytest.mark.parametrize("file", [file for file in FILES if "--" in (PACKAGE / file).read_text()])
def test_a_message_names_options_that_there_are(file: str) -> None:
    serves = SERVES.get(file) or SERVES.get(f"{file.split('/')[0]}/", ())
    for text in texts(PACKAGE / file):
        for command, rest in LINE.findall(text):
            assert command in {*COMMANDS, "X"}, text
            wrong = [name for name in named(rest) if command != "X" and not knows(command, name)]
            assert not wrong, (wrong, text)
        for name in named(LINE.sub("", text)):
            assert serves, f"--{name} in a message of {file}, which several commands share: {text}"
            assert any(knows(command, name) for command in serves), (name, text)


def test_every_warning_is_one_that_the_command_line_shows_as_a_line() -> None:
    calls = [
        (path.name, ast.unparse(node))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("warn", "rank_zero_warn")
    ]
    assert calls
    assert not [call for call in calls if "StaWarning" not in call[1]]


@pytest.mark.parametrize("file", FILES)
def test_a_message_names_settings_that_there_are(file: str) -> None:
    known = [option for command in ("merge", "forget", "score") for option in options(command)]
    others = {"data.test_limit", "data.pkl", "model.safetensors"}  # of TaskDataModule; files
    for text in texts(PACKAGE / file):
        wrong = {
            name for name in DOTTED.findall(text) if not any(f"{o}.".startswith(f"{name}.") for o in known)
        }
        assert wrong <= others, text
