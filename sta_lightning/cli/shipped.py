"""``sta configs``: the configurations that come with the package, listed and copied."""

import re
import shutil
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import sta_lightning
from sta_lightning.cli.explain import nearest
from sta_lightning.cli.help import folded
from sta_lightning.cli.screen import say
from sta_lightning.errors import StaError

PREFIX = "sta:"
"""What stands before a name to mean a configuration of the package."""
_USAGE = """\
usage: sta configs [NAME ... | --all]

Without NAME: the configurations that the package ships; each is used as --config sta:NAME.
With NAME: copies them to configs/NAME.yaml in this folder, to be changed. What is there stays.
"""


def folder() -> Path:
    """Where the configurations lie: in the package, or beside it in a checkout."""
    package = Path(sta_lightning.__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def names() -> list[str]:
    """All of them."""
    return sorted(file.relative_to(folder()).with_suffix("").as_posix() for file in folder().rglob("*.yaml"))


def shipped(name: str) -> Path:
    """The file of a configuration by its name.

    Raises:
        StaError: there is none; the nearest is named.
    """
    known = names()
    plain = name.removesuffix(".yaml")
    if plain not in known:
        raise StaError(
            f"the package ships no configuration '{name}'.{nearest(plain, known)} `sta configs` lists them."
        )
    return folder() / f"{plain}.yaml"


def run(name: str, words: Sequence[str]) -> None:
    """List the configurations, or copy some."""
    if {"-h", "--help"} & set(words):
        say(folded(_USAGE))
        return
    odd = [word for word in words if word.startswith("-") and word != "--all"]
    if odd:
        raise StaError(f"sta configs has no option {odd[0]}: give names, --all, or nothing for the list.")
    if not words:
        width = max(map(len, names()))
        for one in names():
            lines = shipped(one).read_text(encoding="utf-8").splitlines()
            about = " ".join(
                line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines)
            )
            say(f"{one:<{width}}  {re.split(r'(?<!Eq)[.:] ', about)[0].rstrip('.:')}")
        return
    asked = names() if "--all" in words else [word.removeprefix(PREFIX) for word in words]
    copies = {shipped(one): Path("configs") / f"{one.removesuffix('.yaml')}.yaml" for one in asked}
    for target in copies.values():
        if target.exists():
            raise StaError(
                f"'{target}' is there already, in '{Path.cwd()}'. Remove it, or change to another folder."
            )
    for source, target in copies.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        say(f"written: {target}")
