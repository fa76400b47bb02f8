"""Units of work that are done once: keyed by what goes in, written whole, skipped when they are there."""

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
from sta_lightning.weights.atomic import atomic_path

Json = None | bool | int | float | str | list[Any] | dict[str, Any]
_RECORD = "step.json"


@dataclass(frozen=True)
class Step:
    """A finished unit of work.

    Attributes:
        name: readable path-like name, such as ``finetune/digits``.
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

    A step's key is the SHA-256 of its settings, of its input files' contents and of the source
    that computes it. The work writes into ``<folder>/<name>.<key>.partial``, which outlives an interruption
    (so that work can go on from a checkpoint in it, and only work of the same key does); a finished
    folder with its record is renamed to ``<folder>/<name>`` in one move. A step counts as done when
    its record holds the same key and every file that it wrote is still there with the size and
    SHA-256 of the record.

    Args:
        folder: where the steps' folders go.
        force: do every step again, and begin it anew.
        notice: called with each step when it is finished or found done.
        before_work: called before work is done, not when a step is found done.
    """

    def __init__(
        self,
        folder: Path,
        *,
        force: bool = False,
        notice: Callable[[Step], None] | None = None,
        before_work: Callable[[], None] | None = None,
    ) -> None:
        self.folder = folder
        self.force = force
        self.steps: list[Step] = []
        self._notice = notice
        self._before_work = before_work
        self._finished: dict[tuple[str, str], Step] = {}
        self._hashes: dict[tuple[str, int, int], str] = {}

    def run(
        self,
        name: str,
        settings: Mapping[str, Json],
        work: Callable[[Path], Mapping[str, Json]],
        inputs: Mapping[str, Path] | None = None,
        source: Iterable[str] = (),
    ) -> Step:
        """Do ``work(folder)`` unless it has been done with the same settings and inputs.

        Args:
            name: path-like name under the runner's folder.
            settings: everything besides ``inputs`` that the result depends on.
            work: gets an existing folder to write to and returns what to remember (JSON).
            inputs: files whose content the result depends on.
            source: modules of the package whose source, with all that they import, the result
                depends on; see :func:`~sta_lightning.benchmark.source.source_digest`.

        Returns:
            The finished step.
        """
        key = self._key(name, settings, inputs or {}, source)
        known = self._finished.get((name, key))
        if known is not None:
            # Asked for twice in one run, such as λ = 0.4 when it is the best λ too: no second time,
            # not even by force.
            return known
        final = self.folder / name
        partial = final.parent / f"{final.name}.{key[:16]}.partial"
        done = None if self.force else self._read(name, key, final)
        if done is None and not self.force and self._read(name, key, partial) is not None:
            # Finished, but killed before the move.
            self._publish(partial, final)
            done = self._read(name, key, final)
        if done is None:
            if self.force and partial.exists():
                shutil.rmtree(partial)
            partial.mkdir(parents=True, exist_ok=True)
            if self._before_work is not None:
                self._before_work()
            begun = time.monotonic()
            result = dict(work(partial))
            seconds = time.monotonic() - begun
            self._write_record(partial, key, settings, inputs or {}, result, seconds)
            self._publish(partial, final)
            done = Step(name, final, json.loads(json.dumps(result)), seconds, skipped=False)
        self.steps.append(done)
        self._finished[name, key] = done
        if self._notice is not None:
            self._notice(done)
        return done

    def find(
        self,
        name: str,
        settings: Mapping[str, Json],
        inputs: Mapping[str, Path] | None = None,
        source: Iterable[str] = (),
    ) -> Step | None:
        """The step if it has been done with these settings, inputs and source; nothing is changed."""
        return self._read(name, self._key(name, settings, inputs or {}, source), self.folder / name)

    def digest(self, path: Path) -> str:
        """SHA-256 of a file, remembered as long as its size and time of change stay the same."""
        status = path.stat()
        key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
        if key not in self._hashes:
            with path.open("rb") as stream:
                self._hashes[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        return self._hashes[key]

    def _key(
        self,
        name: str,
        settings: Mapping[str, Json],
        inputs: Mapping[str, Path],
        source: Iterable[str],
    ) -> str:
        content = {
            "step": name,
            "source": source_digest(source),
            "settings": dict(settings),
            "inputs": {label: self.digest(path) for label, path in inputs.items()},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _read(self, name: str, key: str, folder: Path) -> Step | None:
        """The finished step, or ``None`` when it is missing, of another key, or damaged."""
        try:
            record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
            if record["key"] != key:
                return None
            for file, (size, digest) in record["files"].items():
                path = folder / file
                if path.stat().st_size != size or self.digest(path) != digest:
                    return None
            return Step(name, folder, record["result"], float(record["seconds"]), skipped=True)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @staticmethod
    def _publish(partial: Path, final: Path) -> None:
        """Put a finished folder in its place and drop unfinished ones of other settings."""
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
        for stale in final.parent.glob(f"{final.name}.*.partial"):
            shutil.rmtree(stale)

    def _write_record(
        self,
        folder: Path,
        key: str,
        settings: Mapping[str, Json],
        inputs: Mapping[str, Path],
        result: Mapping[str, Json],
        seconds: float,
    ) -> None:
        files = {
            path.relative_to(folder).as_posix(): (path.stat().st_size, self.digest(path))
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != _RECORD
        }
        record = {
            "key": key,
            "version": __version__,
            "settings": dict(settings),
            "inputs": {label: self.digest(path) for label, path in inputs.items()},
            "result": dict(result),
            "seconds": round(seconds, 2),
            "files": files,
        }
        write_text(folder / _RECORD, json.dumps(record, indent=1) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Write a UTF-8 text file whole or not at all and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
