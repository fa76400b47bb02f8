"""``sta methods``: the methods, what each needs, where it comes from (the paper's Table 1)."""

import dataclasses
import inspect
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter

from sta_lightning.cli.catalogue import is_own
from sta_lightning.cli.help import folded
from sta_lightning.cli.screen import say
from sta_lightning.errors import StaError
from sta_lightning.ranges import range_of

_WIDTH = 110
_MODELS = 6
_COLUMNS = 7
_KINDS = {"merging": "sta merge --model.method=", "forgetting": "sta forget --model.method="}


def run(name: str, words: Sequence[str]) -> None:
    """Print the table, or all about one method."""
    if any(word in ("-h", "--help") for word in words):
        text = (
            "usage: sta methods [NAME | --table]\n\nWithout NAME: every method, what it needs and where it comes from. With "
            "NAME (or package.module.Name, file.py:name for one of your own): its settings. With --table: the paper's Table 1 "
            "of every method, and how long a merge of the embedded encoder takes here."
        )
        say(folded(text))
        return
    if list(words) == ["--table"]:
        say(properties())
        return
    if len(words) > 1 or (words and words[0].startswith("-")):
        raise StaError(f"sta methods takes one name, --table or none, and was given {' '.join(words)}.")
    say(_one(words[0]) if words else table())


def table() -> str:
    """Every method in one table for each of merging, learning and forgetting."""
    from sta_lightning.arithmetic.registry import FORGET_METHODS, FUSION_METHODS, LEARNED_METHODS

    parts = [
        _table("Merging: sta merge --model.method=NAME", FUSION_METHODS),
        _table("Merging by images: sta methods NAME has the command", LEARNED_METHODS),
        _table("Forgetting: sta forget --model.method=NAME", FORGET_METHODS),
        "In front of any merging method: --model.dare=0.5 drops entries of the task vectors at random (DARE, Yu et al. 2024).\n"
        "Importance that sta goes by: --model.measure=lp (the paper's), amp, lp+amp, delta-lp, delta-amp, fisher, or any file.\n"
        "Settings of one method: sta methods NAME. One of your own: docs/merging.md.",
    ]
    return "\n\n".join(parts)


def properties() -> str:
    """The paper's Table 1 of every method, with the seconds of a merge on this machine."""
    from sta_lightning.arithmetic.registry import FORGET_METHODS, FUSION_METHODS, LEARNED_METHODS
    from sta_lightning.benchmark.entries import method_info
    from sta_lightning.benchmark.report.tables import properties_grid
    from sta_lightning.benchmark.settings import ForgettingEntry, MethodEntry
    from sta_lightning.report.grid import Number

    kinds: dict[str, type[MethodEntry]] = dict.fromkeys(FORGET_METHODS, ForgettingEntry)
    kinds |= dict.fromkeys((*FUSION_METHODS, *LEARNED_METHODS), MethodEntry)
    infos = [replace(method_info(name, kind(name)), label=name) for name, kind in sorted(kinds.items())]
    seconds = {name: Number(taken, digits=2) for name, taken in _seconds(FUSION_METHODS)}
    note = (
        f"Seconds: {_MODELS} random fine-tunings of the embedded encoder merged in memory, on this machine, now; none "
        "for what trains or only forgets."
    )
    grid = properties_grid(infos, {"seconds": seconds})
    # What a method does and where it is from says the table without --table.
    lines = [replace(line, cells=line.cells[:_COLUMNS]) for line in grid.lines]
    return f"{replace(grid, columns=grid.columns[:_COLUMNS], lines=tuple(lines)).terminal()}{note}"


def _seconds(names: Iterable[str]) -> Iterator[tuple[str, float]]:
    """How long every method takes to merge models in memory."""
    import torch

    from sta_lightning.arithmetic import FUSION_METHODS, make_method
    from sta_lightning.arithmetic.memory import run_in_memory
    from sta_lightning.encoders import empty_encoder

    draw = torch.Generator().manual_seed(0)
    base = {
        name: 0.1 * torch.randn(tensor.shape, generator=draw)
        for name, tensor in empty_encoder("miniature").state_dict().items()
    }
    models = [
        {name: tensor + 0.01 * torch.randn(tensor.shape, generator=draw) for name, tensor in base.items()}
        for _ in range(_MODELS)
    ]
    finetuned = {str(number): model for number, model in enumerate(models)}
    importance = {task: {name: t.abs() for name, t in model.items()} for task, model in finetuned.items()}
    grams = {
        task: {name: t.T @ t for name, t in model.items() if t.dim() == 2}
        for task, model in finetuned.items()
    }
    for name in names:
        method = make_method(name, FUSION_METHODS)
        begun = time.perf_counter()
        run_in_memory(method, base, finetuned, importance, grams=grams if method.needs_grams else None)
        yield name, time.perf_counter() - begun


def _table(title: str, methods: Mapping[str, object]) -> str:
    rows = [("name", "needs", "coefficient", "source", "what it does")]
    for name, method in methods.items():
        data, coefficient, source, summary = attrgetter("data", "coefficient", "source", "summary")(method)
        needs = "weights" if data == "nothing" else data
        if getattr(method, "many", False):
            needs += " of several fine-tunings"
        rows.append((name, needs, coefficient or "none", source, summary))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [title, ""]
    for row in rows:
        head = "  ".join(cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True))
        lines.append(f"  {head}  {row[4]}".rstrip())
    return "\n".join(lines)


def _one(name: str) -> str:
    from sta_lightning.arithmetic.registry import (
        FORGET_METHODS,
        FUSION_METHODS,
        LEARNED_METHODS,
        find_method,
    )

    parts: list[str] = []
    own = is_own(name)
    if name in LEARNED_METHODS:
        learned = LEARNED_METHODS[name]
        lines = [f"{learned.title} (merging by images: {learned.command})", "", learned.summary + ".", ""]
        lines += [f"  needs        {learned.data}", f"  source       {learned.source}", "", "settings:"]
        lines += [f"  {key} = {value!r}" for key, value in learned.settings.items()]
        return "\n".join(lines)
    for kind, methods in (("merging", FUSION_METHODS), ("forgetting", FORGET_METHODS)):
        if name in methods or own:
            method = find_method(name, methods)
            needs = "the weights alone" if method.data == "nothing" else method.data
            lines = [f"{method.title} ({kind}: {_KINDS[kind]}{name}{'; or sta forget' if own else ''})", ""]
            lines += textwrap.wrap(method.summary[:1].upper() + method.summary[1:] + ".", _WIDTH)
            lines += ["", f"  needs        {needs}", f"  coefficient  {method.coefficient or 'none'}"]
            lines += [f"  source       {method.source}"] if method.source else []
            found = dataclasses.fields(method)  # type: ignore[arg-type]
            lines += ["", "settings:" if found else "It has no settings."]
            for field in found:
                default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
                within = range_of(field)
                lines.append(f"  {field.name}{default}{f', {within}' if within else ''}")
            document = inspect.getdoc(method)
            if document and not document.startswith(f"{method.__name__}("):
                lines += ["", document]
            parts.append("\n".join(lines))
            if own:
                break
    if not parts:
        raise StaError(
            f"method '{name}' is unknown. `sta methods` lists those that there are; one of your own is named as "
            "package.module.Name or file.py:name."
        )
    return "\n\n".join(parts)
