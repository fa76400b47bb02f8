"""Digests of the source that computes a number, which a step's key holds."""

from __future__ import annotations

import ast
import functools
import hashlib
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import sta_lightning
from sta_lightning.weights.hashes import sha256

_NAME = sta_lightning.__name__
_FOLDER = Path(sta_lightning.__file__).parent

# The table of methods imports every one, and a cell depends on its own, which is among its roots;
# the values of settings are in the key themselves; what is drawn or shown decides no number.
_LEFT_OUT = tuple(
    f"{_NAME}.{part}"
    for part in (
        "arithmetic.methods",
        "benchmark.progress",
        "benchmark.settings",
        "callbacks.board",
        "callbacks.figures",
        "cli",
        "report",
    )
)
# Files beside a module that decide numbers with it: C loops, shipped weights and lists.
_DATA = frozenset({".c", ".h", ".json", ".safetensors", ".txt"})


def source_digest(roots: Iterable[str]) -> str:
    """SHA-256 of the source of some modules and of all modules of the package that they import.

    A Python file counts by its syntax tree without docstrings: comments, formatting and prose
    change no digest. A name that a package's ``__init__`` hands on counts as the module that
    defines it, and a module whose text is not part of this package is left out; versions of
    libraries do not count.

    Args:
        roots: full names of modules, such as ``sta_lightning.callbacks.score``.
    """
    digest = hashlib.sha256()
    modules = sorted(_closure(frozenset(filter(_file, roots))))
    for name in modules:
        digest.update(f"{name} {_module_digest(name)}\n".encode())
    for folder in sorted({_path(name).parent for name in modules}):
        for path in sorted(folder.iterdir()):
            if path.suffix in _DATA:
                digest.update(f"{path.relative_to(_FOLDER)} {sha256(path)}\n".encode())
    return digest.hexdigest()


@functools.cache
def _closure(roots: frozenset[str]) -> frozenset[str]:
    found: set[str] = set()
    waiting = set(roots)
    while waiting:
        name = waiting.pop()
        if not name.startswith(_LEFT_OUT):
            found.add(name)
            waiting |= _imported(name) - found
    return frozenset(found)


@functools.cache
def _imported(name: str) -> set[str]:
    """Modules of the package that a module imports, wherever it does."""
    targets = (_defining(module, attribute) for module, attribute in _imports(name))
    return {target for target in targets if target is not None}


def _imports(name: str) -> Iterator[tuple[str, str | None]]:
    """Every module that is imported, with the name that is taken from it, if one is."""
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)


def _defining(module: str, attribute: str | None) -> str | None:
    """The module of the package in which an imported name is defined."""
    if module.split(".")[0] != _NAME or (module == _NAME and attribute in (None, "__version__")):
        return None
    if attribute is None or _path(module).name != "__init__.py":
        return module if _file(module) is not None else None
    if _file(f"{module}.{attribute}") is not None:
        return f"{module}.{attribute}"
    for source, name in _imports(module):
        if name == attribute:
            return _defining(source, name)
    return module


def _file(name: str) -> Path | None:
    parts = name.split(".")
    if parts[0] != _NAME:
        return None
    place = _FOLDER.joinpath(*parts[1:])
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file() and (path.name == "__init__.py" or len(parts) > 1):
            return path
    return None


def _path(name: str) -> Path:
    path = _file(name)
    assert path is not None, name
    return path


@functools.cache
def _tree(name: str) -> ast.Module:
    tree = ast.parse(_path(name).read_bytes())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [each for each in body if not _is_text(each)]  # type: ignore[attr-defined]
    return tree


def _is_text(node: ast.stmt) -> bool:
    """Whether it is a string alone: a docstring of a module, class, function or attribute."""
    match node:
        case ast.Expr(ast.Constant(str())):
            return True
    return False


@functools.cache
def _module_digest(name: str) -> str:
    return hashlib.sha256(ast.dump(_tree(name)).encode()).hexdigest()


def checkout() -> tuple[str | None, bool | None]:
    """The commit of the git checkout that the package lies in, and whether its files are unchanged.

    Returns:
        ``(SHA-1, clean)``; ``(None, None)`` without git or a checkout that holds the package,
        as in an installed package.
    """
    try:
        # The package may be installed below a checkout of something else.
        _git("ls-files", "--error-unmatch", "__init__.py")
        return _git("rev-parse", "HEAD").strip(), not _git("status", "--porcelain", "--", ".").strip()
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _git(*words: str) -> str:
    command = ["git", "-C", str(_FOLDER), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
