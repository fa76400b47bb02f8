"""Units of work done once: keyed by what goes in, written whole, skipped when there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sta_lightning import __version__
from sta_lightning.benchmark.source import source_digest
from sta_lightning.errors import StaError
from sta_lightning.weights.atomic import atomic_path
from sta_lightning.weights.hashes import sha256

Json = None | bool | int | float | str | list[Any] | dict[str, Any]
_RECORD = "step.json"


class UnfinishedError(Exception):
    """A step is not done, and was not to be computed."""


@dataclass(frozen=True)
class Step:
    """A finished unit of work.

    Attributes:
        name: path-like, such as ``finetune/digits``.
        folder: where its files lie.
        result: what the work returned, read back from its record.
        seconds: how long the work took when it was done (of the last attempt, if it was
            interrupted).
        skipped: whether it had been done before this run.
    """

    name: str
    folder: Path
    result: dict[str, Any]
    seconds: float
    skipped: bool

    def file(self, name: str) -> Path:
        """Path of one of the files that the work wrote."""
        return self.folder / name


class StepRunner:
    """Runs units of work under one folder and remembers which are done.

    A step's key is the SHA-256 of its settings, of its input files' contents and of the source that
    computes it. The work writes into ``<folder>/<name>.<key>.partial``, which outlives an
    interruption (so that work can go on from a checkpoint in it, and only work of the same key
    does); a finished folder with its record is renamed to ``<folder>/<name>`` in one move. A step
    counts as done when its record holds the same key and every file that it wrote is still there
    with the size and SHA-256 of the record.

    Args:
        folder: where the steps' folders go.
        compute: whether a step that is not done is computed; otherwise it is only told.

    Attributes:
        steps: the finished steps, in the order in which they were asked for.
    """

    def __init__(self, folder: Path, *, compute: bool = True) -> None:
        self.folder = folder
        self.compute = compute
        self.steps: list[Step] = []
        self._finished: dict[tuple[str, str], Step] = {}

    def run(
        self,
        name: str,
        settings: Mapping[str, Json],
        work: Callable[[Path], Mapping[str, Json]],
        inputs: Mapping[str, Path] | None = None,
        source: Iterable[str] = (),
    ) -> Step:
        """Do ``work(folder)`` unless it has been done with the same settings, inputs and source.

        Args:
            name: path-like name under the runner's folder.
            settings: everything besides ``inputs`` that the result depends on.
            work: gets an existing folder to write to and returns what to remember (JSON).
            inputs: files whose content the result depends on.
            source: modules of the package whose source, with all that they import, the result
                depends on; see :func:`~sta_lightning.benchmark.source.source_digest`.

        Raises:
            UnfinishedError: if it is not done, and the runner does not compute.
        """
        content = {
            "step": name,
            "source": source_digest(source),
            "settings": dict(settings),
            "inputs": {label: sha256(path) for label, path in (inputs or {}).items()},
        }
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        known = self._finished.get((name, key))
        if known is not None:
            return known
        final = self.folder / name
        partial = final.parent / f"{final.name}.{key[:16]}.partial"
        done = self._read(name, key, final)
        if done is None and not self.compute:
            raise UnfinishedError(name)
        if done is None and self._read(name, key, partial) is not None:
            # Finished, but killed before the move.
            _publish(partial, final)
            done = self._read(name, key, final)
        if done is None:
            partial.mkdir(parents=True, exist_ok=True)
            begun = time.monotonic()
            # JSON knows no tuples: what is compared later is what was written.
            result = json.loads(json.dumps(dict(work(partial))))
            seconds = round(time.monotonic() - begun, 2)
            files = {
                path.relative_to(partial).as_posix(): (path.stat().st_size, sha256(path))
                for path in sorted(partial.rglob("*"))
                if path.is_file() and path.name != _RECORD
            }
            record = {"key": key, "version": __version__, **content, "result": result}
            record |= {"seconds": seconds, "files": files}
            write_text(partial / _RECORD, json.dumps(record, indent=1) + "\n")
            _publish(partial, final)
            done = Step(name, final, result, seconds, skipped=False)
        self.steps.append(done)
        self._finished[name, key] = done
        return done

    def _read(self, name: str, key: str, folder: Path) -> Step | None:
        """The finished step, or ``None`` when it is missing, of another key, or damaged."""
        try:
            record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
            if record["key"] != key:
                return None
            for file, (size, digest) in record["files"].items():
                path = folder / file
                if path.stat().st_size != size or sha256(path) != digest:
                    return None
            return Step(name, folder, record["result"], float(record["seconds"]), skipped=True)
        except (OSError, StaError, ValueError, KeyError, TypeError):
            return None


def _publish(partial: Path, final: Path) -> None:
    """Put a finished folder in its place and drop unfinished ones of other settings."""
    if final.exists():
        shutil.rmtree(final)
    os.replace(partial, final)
    for stale in final.parent.glob(f"{final.name}.*.partial"):
        shutil.rmtree(stale)


def write_text(path: Path, text: str) -> Path:
    """Write a UTF-8 text file whole or not at all and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
