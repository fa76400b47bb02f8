"""A merge carried out: into memory, or into a file that says what it was made of."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sta_lightning.arithmetic import Merged, MergeMethod
from sta_lightning.arithmetic.memory import MemorySink
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.run import Kept, Sink, run
from sta_lightning.arithmetic.sources import SourceDict
from sta_lightning.arithmetic.workers import Alone, Processes, together
from sta_lightning.engine.folder import Opener, folder_like
from sta_lightning.engine.heads import TaskHead, head_metadata, head_tensors
from sta_lightning.engine.opened import Opened, Pretrained, Whole
from sta_lightning.engine.processes import own_device
from sta_lightning.engine.request import Request
from sta_lightning.engine.sources import check_output
from sta_lightning.engine.unchanged import Watched, tell
from sta_lightning.weights import SAFETENSORS, provenance, streamed
from sta_lightning.weights.formats import copy_tensors, origins_entry, weight_files

SHARD = 5_000_000_000
"""Bytes of tensors in one file of a folder, as transformers has it."""


class Job(Request, ABC):
    """One merge: what is asked, what it makes of it, and what the file that it writes says."""

    def in_memory(self, pretrained: Pretrained) -> Merged:
        """Merge the image encoder, and keep the result.

        Raises:
            StaError: a source is missing or does not fit, or an entry is NaN or infinite.
        """
        with ExitStack() as stack:
            problem = self.problem(pretrained, stack)
            return self._kept(self.method, problem, self.part.outside(self._base(pretrained, stack)))

    def whole(self, pretrained: Pretrained) -> Whole:
        """Merge a whole model, and keep the result.

        Raises:
            StaError: as :meth:`in_memory`.
        """
        with self._opened(pretrained, Alone()) as opened:
            metadata = self.metadata(pretrained, **opened.described)
            encoder = self._kept(self.method, opened.problem)
            if opened.changes is not None and opened.method is not None:
                rest = self._kept(opened.method[1], opened.changes, opened.copied)
            else:
                rest = Merged(self._copied(opened.copied).weights)
        return Whole(encoder, rest, metadata)

    def _kept(self, method: MergeMethod, problem: Problem, beside: SourceDict | None = None) -> Merged:
        """A merge in memory, where the model that is changed is, with what is copied ``beside``."""
        sink = self._sink(problem.base)
        kept = self._run(method, problem, sink, Alone())
        return Merged({**sink.weights, **self._copied(beside or {}).weights}, kept)

    def _copied(self, tensors: SourceDict) -> MemorySink:
        sink = self._sink(tensors)
        copy_tensors(tensors, sink)
        return sink

    def _sink(self, base: SourceDict) -> MemorySink:
        like = {
            name: torch.empty(shape, dtype=dtype, device=own_device(self._device) or base[name].device)
            for name, (shape, dtype) in self._planned(base).items()
        }
        return MemorySink(like, None)

    def write(
        self,
        pretrained: Pretrained,
        output: str | Path,
        processes: Processes | None = None,
        heads: Mapping[str, TaskHead] | None = None,
        shard_size: int = SHARD,
    ) -> Kept:
        """Merge into a file, whole or not at all; the model is in memory a piece at a time.

        Args:
            pretrained: the pretrained encoder.
            output: a safetensors file: a whole CLIP, in open_clip's names, if the model that is
                changed is one, else an image encoder. Its metadata holds the method, its settings,
                the package's version and the SHA-256 of every source. Or, if that model is a
                folder, a new folder in the same layout. A tensor of several names is written under
                all of them into a file, and once into a folder: transformers shares it again.
            processes: who merges together; every one of them calls this.
            heads: by task: what goes into the file beside the encoder, for who classifies with it.
            shard_size: bytes of tensors in one file of a folder.

        Returns:
            The shares kept, see :func:`~sta_lightning.arithmetic.run.run`.

        Raises:
            StaError: as :meth:`in_memory`, or if the file cannot be written; nothing has been
                changed then.
        """
        group = Alone() if processes is None else processes
        like = pretrained.file if self.start is None else Path(self.start)
        check_output(output, like)
        if Path(output).suffix != SAFETENSORS:
            with folder_like(Path(str(like)), output, group, shard_size) as opener:
                return self._write(pretrained, opener, group, heads or {})
        opener = partial(streamed, output, processes=group, shared=pretrained.shared)
        return self._write(pretrained, opener, group, heads or {})

    def _write(
        self, pretrained: Pretrained, opener: Opener, group: Processes, heads: Mapping[str, TaskHead]
    ) -> Kept:
        with self._opened(pretrained, group) as opened:
            base = {pretrained.prefix + name: source for name, source in opened.problem.base.items()}
            changes = {} if opened.changes is None else opened.changes.base
            planned = self._planned({**base, **changes, **opened.copied})
            beside = head_tensors(heads, planned)
            planned |= {name: (head.shape, head.dtype) for name, head in beside.items()}
            metadata = together(
                group, lambda: {} if group.rank else self.metadata(pretrained, **opened.described)
            )[0]
            metadata |= head_metadata(heads) if heads else {}
            with opener(planned, metadata) as file:
                kept = self._run(self.method, opened.problem, file.under(pretrained.prefix), group)
                if opened.changes is not None and opened.method is not None:
                    self._run(opened.method[1], opened.changes, file, group)
                together(group, lambda: None if group.rank else copy_tensors(opened.copied, file))
                for name, head in beside.items() if group.rank == 0 else ():
                    file.write(name, 0, head.flatten())
        return kept

    @contextmanager
    def _opened(self, pretrained: Pretrained, group: Processes) -> Iterator[Opened]:
        """What is merged, while its files are open; every process has it or none."""
        with ExitStack() as stack:
            found: list[Opened] = []
            together(group, lambda: found.append(self.opened(pretrained, stack)))
            yield found[0]

    def _planned(self, base: SourceDict) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape and type of every tensor that is made."""
        return {
            name: (source.shape, (self._dtype if source.dtype.is_floating_point else None) or source.dtype)
            for name, source in base.items()
        }

    def _run(self, method: MergeMethod, problem: Problem, sink: Sink, group: Processes) -> Kept:
        watched = Watched(sink, problem.base)
        kept = run(method, problem, watched, device=own_device(self._device), processes=group)

        def finish() -> bool:
            _finish(problem, sink, group)
            return watched.changed

        changed = any(together(group, finish))
        if group.rank == 0:
            tell(problem, kept, changed=changed)
        return kept

    def metadata(self, pretrained: Pretrained, kind: str | None = None, **more: Any) -> dict[str, str]:
        """What a written file says of itself.

        Args:
            pretrained: the pretrained encoder.
            kind: what sort of file it is, before the method's name; ``None`` for a merged model.
            more: settings besides the job's.
        """
        settings = {**self.described(pretrained), **more}
        roles = self._roles(pretrained)
        found = provenance(f"{kind or self.kind}:{self.name}", settings, source_files(roles))
        models = ("pretrained", self.start_role, "finetuned")
        found |= origins_entry({role: path for role, path in roles.items() if role.split("/")[0] in models})
        return found if pretrained.digest is None else {**found, "pretrained_sha256": pretrained.digest}


def source_files(roles: Mapping[str, str | Path]) -> dict[str, Path]:
    """The files behind paths by their roles, ``role/part`` for those of a checkpoint in shards."""
    return {
        role if len(parts) == 1 else f"{role}/{part.name}": part
        for role, parts in ((role, weight_files(path)) for role, path in roles.items())
        for part in parts
    }


def _finish(problem: Problem, sink: Sink, group: Processes) -> None:
    """Copy the integer buffers of the changed model, and see that no file has changed meanwhile."""
    for name, source in problem.base.items():
        if group.rank == 0 and not source.dtype.is_floating_point:
            sink.write(name, 0, source.read(slice(0, source.shape.numel()), source.dtype))
    of_tasks = (
        *problem.finetuned.values(),
        *problem.scores.values(),
        *problem.grams.values(),
        problem.control,
    )
    models = (problem.base, problem.origin or {}, *of_tasks)
    checks = (check for model in models for source in model.values() for check in source.checks())
    for check in dict.fromkeys(checks):  # once a file, not once a tensor
        check()
