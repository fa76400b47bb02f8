"""The package's methods and their settings as its source says: importing them takes torch.

A word that is wrong is answered before torch is imported. What a method of one's own has is known
only once it is imported.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import sta_lightning
from sta_lightning.cli.explain import nearest
from sta_lightning.errors import StaError, listed

_PACKAGE = Path(sta_lightning.__file__).parent
_TABLES = {"merge": "FUSION_METHODS", "forget": "FORGET_METHODS"}


@functools.cache
def methods(command: str) -> dict[str, tuple[str, ...]]:
    """Every method of ``sta merge`` or ``sta forget``: name -> names of its settings."""
    module = _parsed("sta_lightning.arithmetic.methods")
    homes = _imports(module)
    return {
        str(word.arg): tuple(dict.fromkeys(_fields(homes[word.value.id], word.value.id)))
        for node in module.body
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == f"{_TABLES[command]}.update"
        for word in node.value.keywords
        if isinstance(word.value, ast.Name)
    }


def is_own(method: str) -> bool:
    """Whether a method's name is the place of a user's own: ``package.Name``, ``file.py:name``."""
    return "." in method or ":" in method


def check_method(command: str, method: str, settings: object, why: str) -> None:
    """Refuse a method that there is not, or a setting that it has not.

    Args:
        command: ``merge`` or ``forget``.
        method: its name.
        settings: those that were given, by name.
        why: why it is this method, for a message.

    Raises:
        StaError: names the nearest.
    """
    if is_own(method):
        return
    known = methods(command)
    if method not in known:
        raise StaError(
            f"method '{method}' is unknown.{nearest(method, known)} `sta {command}` has {listed(known, len(known))}, and your "
            "own as package.module.Name or file.py:name."
        )
    unknown = [key for key in (settings if isinstance(settings, dict) else {}) if key not in known[method]]
    if unknown:
        having = [other for other, has in known.items() if unknown[0] in has]
        hint = f" Methods with '{unknown[0]}' are {listed(having, 9)}: --method NAME." if having else ""
        raise StaError(
            f"method '{method}' ({why}) has no setting {listed(unknown)}. It has {listed(known[method], 9)}; "
            f"`sta methods {method}` explains it.{hint or nearest(unknown[0], known[method])}"
        )


def _fields(module_name: str, class_name: str) -> Iterator[str]:
    """The fields of a dataclass, those that it inherits from the package's own first."""
    module = _parsed(module_name)
    homes = _imports(module)
    for node in module.body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            for base in node.bases:
                if isinstance(base, ast.Name):
                    yield from _fields(homes.get(base.id, module_name), base.id)
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and "ClassVar" not in ast.unparse(line.annotation):
                    yield ast.unparse(line.target)


@functools.cache
def _parsed(module: str) -> ast.Module:
    file = _PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else ast.Module([], [])


def _imports(module: ast.Module) -> dict[str, str]:
    """Name -> the package's module that it is imported from."""
    return {
        alias.asname or alias.name: str(node.module)
        for node in module.body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("sta_lightning.")
        for alias in node.names
    }
