"""The package's methods and their settings as its source says: importing them takes torch.

A word that is wrong, a number out of range, are answered before torch is imported. What a method of
one's own has is known only once it is imported.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import sta_lightning
from sta_lightning import ranges
from sta_lightning.cli.explain import nearest
from sta_lightning.engine.options import FusionOptions, MergeOptions
from sta_lightning.errors import StaError, listed
from sta_lightning.ranges import Range, Words, check_layers, check_setting

_PACKAGE = Path(sta_lightning.__file__).parent
_TABLES = {"merge": "FUSION_METHODS", "forget": "FORGET_METHODS"}


@functools.cache
def methods(command: str) -> dict[str, dict[str, Range | Words | None]]:
    """Every method of ``sta merge`` or ``sta forget``: name -> its settings, with their ranges."""
    module = _parsed("sta_lightning.arithmetic.methods")
    homes = _imports(module)
    return {
        str(word.arg): dict(_fields(homes[word.value.id], word.value.id))
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


def check_method(command: str, options: MergeOptions) -> None:
    """Refuse a method that there is not, a setting that it has not, or one that is out of range.

    Args:
        command: ``merge`` or ``forget``.
        options: what is asked for.

    Raises:
        StaError: names the nearest, or the range.
    """
    if isinstance(options, FusionOptions):
        _check_given(dict(_fields("sta_lightning.arithmetic.dare", "Dare")), {"rate": options.dare})
    method, why = options.choice
    if is_own(method):
        return
    known, settings = methods(command), options.settings or {}
    for name in (method, str(settings.get("inner", method))):
        if name not in known and not is_own(name):
            raise StaError(
                f"method '{name}' is unknown.{nearest(name, known)} `sta {command}` has {listed(known, len(known))}, and your "
                "own as package.module.Name or file.py:name."
            )
    by_layer = options.scale_layers or {}
    given = {"p": options.p, "scale": options.scale, "normalize": getattr(options, "normalize", None)}
    unknown = [key for key in (*settings, *(["scale"] if by_layer else [])) if key not in known[method]]
    if unknown:
        having = [other for other, has in known.items() if unknown[0] in has]
        hint = f" Methods with '{unknown[0]}' are {listed(having, 9)}: --method NAME." if having else ""
        raise StaError(
            f"method '{method}' ({why}) has no setting {listed(unknown)}. It has {listed(known[method], 9)}; "
            f"`sta methods {method}` explains it.{hint or nearest(unknown[0], known[method])}"
        )
    _check_given(known[method], {**given, **settings})
    check_layers(by_layer)


def _check_given(fields: Mapping[str, Range | Words | None], given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        within = fields.get(name)
        if name == "scale" and isinstance(within, Range):
            within = replace(within, by_task=True)
        if within is not None and value is not None:
            check_setting(value, name, within)


def _fields(module_name: str, class_name: str) -> Iterator[tuple[str, Range | Words | None]]:
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
                    yield ast.unparse(line.target), _range(line.value, homes, module_name)


def _range(value: ast.expr | None, homes: Mapping[str, str], module: str) -> Range | Words | None:
    """Where a field's value must lie, if the field is made by a function of the ranges."""
    if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Name):
        return None
    if homes.get(value.func.id) != ranges.__name__:
        return None
    # The default may take torch.
    words = [_value(one, homes, module) for one in value.args[1:]]
    named = {str(word.arg): _value(word.value, homes, module) for word in value.keywords}
    return ranges.range_of(getattr(ranges, value.func.id)(None, *words, **named))


def _value(node: ast.expr, homes: Mapping[str, str], module: str) -> Any:
    """What is written, or the ``Literal`` of the package that is named."""
    if not isinstance(node, ast.Name):
        return ast.literal_eval(node)
    (found,) = (
        line.value
        for line in _parsed(homes.get(node.id, module)).body
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == node.id
    )
    assert isinstance(found, ast.Subscript)
    return Literal[ast.literal_eval(found.slice)]


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
