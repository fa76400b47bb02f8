"""``sta inspect``: what checkpoints are, who made them, and whether they can be merged."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sta_lightning.cli.convert import STATE, UNSAFE
from sta_lightning.cli.parser import RaisingParser, parse
from sta_lightning.cli.screen import byte_count, say
from sta_lightning.engine.sources import check_there, task_names
from sta_lightning.errors import StaError, listed

if TYPE_CHECKING:
    from sta_lightning.engine.comparison import Compared

DESCRIPTION = (
    "Describe checkpoints of any layout that `sta convert` reads: architecture (guessed from shapes), tensors, types, "
    "parameters, metadata, who made them. Of several, the first is the base that the others were fine-tuned from, as in "
    "`sta merge BASE FILE...`: also whether they can be merged (if not, the exit status is 1), and their task vectors. No code "
    "in a file is run."
)
_LONGEST = 160  # characters of a value


def build_parser() -> RaisingParser:
    """The options of ``sta inspect``."""
    parser = RaisingParser(prog="sta inspect", description=DESCRIPTION)
    help = "checkpoints: files, or folders from a model hub; the first of several is the base; NAME=FILE names one"
    parser.add_argument("files", type=str, nargs="+", metavar="FILE", help=help)
    help = "the base, where it is not the first file: the model that all of them were fine-tuned from"
    parser.add_argument("--pretrained", type=str | None, default=None, help=help)
    for option, what in {"only": "compare only these", "skip": "leave these out"}.items():
        help = f"{what} of the tensors: a pattern of names, as in `sta merge`; several times for several"
        parser.add_argument(f"--{option}", type=str, action="append", metavar="PATTERN", help=help)
    help = "leave out the effective ranks, which take most of the time of a comparison of large models"
    parser.add_argument("--no-ranks", action="store_true", help=help)
    help = "draw the comparison into a page of its own"
    parser.add_argument("--html", type=Path | None, default=None, help=help)
    parser.add_argument("--state", type=str | None, default=None, help=STATE)
    parser.add_argument("--verbose", action="store_true", help="tell all of every file, of several too")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    parser.add_argument("--unsafe-pickle", action="store_true", help=UNSAFE)
    return parser


def run(name: str, words: Sequence[str]) -> None:
    """Run ``sta inspect``."""
    asked = parse(build_parser(), words, missing="no file was named: `sta inspect FILE…`.")
    base, models = _sorted_out(asked)
    files = [*([base] if asked.pretrained is None else []), *models.values()]
    for file in files:
        check_there(file, "what shall be inspected")

    # torch takes seconds to import: --help and a mistyped option must not wait for it.
    from sta_lightning.encoders.pretrained import known_architectures
    from sta_lightning.weights.formats.inspection import inspect

    configs = known_architectures()
    found: list[dict[str, Any]] = []
    failed: list[str] = []
    settings = {"configs": configs, "unsafe_pickle": asked.unsafe_pickle, "state": asked.state}
    whole = asked.verbose or not models
    for file in files:
        try:
            found.append(inspect(file, **settings))
        except StaError as error:
            failed.append(str(error))
            found.append({"file": file, "error": str(error)})
            continue
        if not asked.json:
            say("\n".join(described(found[-1])) + "\n" if whole else brief(found[-1]))
    told: dict[str, Any] = {"files": found}
    refusal = None
    if models and not failed:
        try:
            refusal = _compare(base, models, asked, told)
        except StaError as error:  # of the base: what is known of the files is told all the same
            failed.append(str(error))
    if asked.json:
        say(json.dumps(told, indent=2, ensure_ascii=False))
    if failed:
        raise StaError(" ".join(failed))
    if refusal is not None:
        raise SystemExit(refusal)


def _sorted_out(asked: Any) -> tuple[str, dict[str, str]]:
    """The base, and the models that are compared with it by their names; none of a file alone."""
    if asked.pretrained is not None:
        base, models = asked.pretrained, task_names(asked.files)
    else:
        base, models = asked.files[0], task_names(asked.files[1:])
    compared = [option for option in ("html", "only", "skip") if getattr(asked, option)]
    if compared and not models:
        raise StaError(
            f"--{compared[0]} is of a comparison, and '{base}' alone is named. Name the base first and then the models that were "
            "fine-tuned from it."
        )
    if models and (asked.unsafe_pickle or asked.state is not None):
        raise StaError(
            f"'{base}' is compared with {listed(models.values())} as a merge reads them, which takes no --state and no "
            "--unsafe-pickle. Write it to a file first, by `sta convert IN OUT.safetensors --to=safetensors` with that "
            "option, or name one file alone."
        )
    return base, models


def _compare(base: str, models: Mapping[str, str], asked: Any, told: dict[str, Any]) -> str | None:
    """Compare models with their base and say what comes of it; if they cannot be merged, why."""
    from sta_lightning.encoders.pretrained import pretrained_for_merge
    from sta_lightning.engine.comparison import compare_files
    from sta_lightning.engine.part import Part

    with ExitStack() as stack:
        pretrained = pretrained_for_merge(None, base, None, stack)
        part = Part(tuple(asked.only or ()), tuple(asked.skip or ()))
        compared = compare_files(pretrained, models, part, ranks=not asked.no_ranks)
    comparison, strangers = compared.comparison, compared.comparison.strangers
    verdict = _verdict(base, compared)
    doubts = {name: refused.reason for name, refused in compared.refused.items()}
    doubts |= {name: f"probably not a fine-tuning of this base: {why}" for name, why in strangers.items()}
    told["comparison"] = {
        "base": base,
        "verdict": verdict,
        "refused": {name: {"reason": one.reason, **one.names} for name, one in compared.refused.items()},
        "strangers": strangers,
        **dataclasses.asdict(comparison),
    }
    if not asked.json:
        from sta_lightning.report.comparison import grids

        lines = [verdict, *(f"  {name}: {why}" for name, why in doubts.items()), ""]
        say("\n".join(lines if asked.verbose else ["", *lines]))
        for grid in grids(comparison) if comparison.models else ():
            say("\n".join(filter(None, (grid.terminal(), grid.note))))
    if asked.html is not None:
        _draw(asked.html, base, verdict, doubts, compared)
        if not asked.json:
            say(f"written: {asked.html}")
    return f"{verdict} {next(iter(doubts.values()))}" if compared.refused else None


def _verdict(base: str, compared: "Compared") -> str:
    """What comes of a comparison, in a sentence or two."""
    models, refused, strangers = compared.comparison.models, compared.refused, compared.comparison.strangers
    count = len(models) + len(refused)
    several = f"{count} model{'s' if count > 1 else ''}"
    if refused:
        return f"of {several}, {listed(refused)} cannot be merged with '{base}'."
    doubt = f" Probably not fine-tuned from it: {listed(strangers)}." if strangers else ""
    if count > 1 and len(strangers) == count:
        doubt = " Probably none of them was fine-tuned from it: look for another base."
    return f"can be merged: {several} with the {compared.comparison.tensors} weights of '{base}'.{doubt}"


def _draw(output: Path, base: str, verdict: str, doubts: Mapping[str, str], compared: "Compared") -> None:
    """Write the page, whole or not at all."""
    from sta_lightning.report.comparison import page
    from sta_lightning.report.document import html
    from sta_lightning.report.embed import svg
    from sta_lightning.weights.atomic import atomic_path

    document = page(compared.comparison, base, verdict, doubts)
    drawn = {one.name: svg(one.draw(), one.name, one.alt) for one in document.pictures()}
    with atomic_path(output) as temporary:
        temporary.write_text(html(document, drawn), encoding="utf-8")


def brief(one: Mapping[str, Any]) -> str:
    """A file in one line."""
    architecture = one["architecture"] or {"title": one["layout"]}
    parts = one["kind"], architecture["title"], f"{one['parameters']['all']:,} parameters"
    return f"{_file(one)}: {', '.join(filter(None, parts))}"


def _file(one: Mapping[str, Any]) -> str:
    shards = f" in {len(one['files'])} files" if len(one["files"]) > 1 else ""
    return f"{one['file']} ({byte_count(one['bytes'])}{shards}, {one['container']})"


def described(one: Mapping[str, Any]) -> Iterator[str]:
    """The lines for people."""
    yield _file(one)
    yield from _row("holds", one["kind"] or "weights")
    yield from _row("layout", one["layout"])
    if len(one["states"]) > 1:
        yield from _row(
            "state dicts", f"{', '.join(one['states'])} (the first is read; another with --state)"
        )
    yield from _row("made by", one["made_by"])
    architecture = one["architecture"]
    if architecture is not None:
        yield from _row("architecture", architecture["title"])
        yield from _row("known as", ", ".join(architecture["names"]) or architecture["name"])
        yield from _row("activation", architecture["activation"] or "it does not say")
    parameters = one["parameters"]
    parts = [f"{what} {count:,}" for what, count in parameters.items() if count and what != "all"]
    yield from _row("parameters", f"{parameters['all']:,}" + (f" ({', '.join(parts)})" if parts else ""))
    for kind, row in one["types"].items():
        yield from _row(
            kind, f"{row['tensors']} tensors, {row['entries']:,} entries, {byte_count(row['bytes'])}"
        )
    metadata = dict(one["metadata"])
    converted = metadata.pop("converted", None)
    for key in ("settings", "sources"):
        yield from _table(key, one[key])
    if isinstance(converted, Mapping):
        files = converted.get("files")
        rest = {key: value for key, value in converted.items() if key != "files" and value is not None}
        yield from _table("converted", {**rest, **(files if isinstance(files, Mapping) else {})})
    yield from _table("metadata", metadata)
    yield from _table("facts", one["facts"])


def _row(label: str, value: object) -> Iterator[str]:
    if value is not None and value != "":
        text = " ".join(str(value).split())
        yield f"  {label:<13} {text if len(text) <= _LONGEST else text[: _LONGEST - 1] + '…'}"


def _table(label: str, content: Any) -> Iterator[str]:
    if not isinstance(content, Mapping):
        yield from _row(label, content)
        return
    for position, (key, value) in enumerate(content.items()):
        if isinstance(value, Mapping) and set(value) == {"file", "sha256"}:
            text = f"{value['file']}, SHA-256 {str(value['sha256'])[:16]}…"
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield from _row(label if position == 0 else "", f"{key}: {text}")
