"""``sta inspect``: what a checkpoint is, what is in it, and who made it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sta_lightning.cli.convert import STATE, UNSAFE
from sta_lightning.cli.parser import RaisingParser, parse
from sta_lightning.cli.screen import byte_count, say
from sta_lightning.errors import StaError

DESCRIPTION = (
    "Describe checkpoints of any layout that `sta convert` reads: architecture (guessed from shapes), tensors, types, "
    "parameters, metadata, who made them. With --pretrained also the norm of the task vector, per block. No code in a file "
    "is run."
)
_LONGEST = 160  # characters of a value


def build_parser() -> RaisingParser:
    """The options of ``sta inspect``."""
    parser = RaisingParser(prog="sta inspect", description=DESCRIPTION)
    help = "checkpoints: files, or folders from a model hub"
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help=help)
    help = (
        "the model that they were fine-tuned from: tells the norm of the task vector per block, absolute and relative to the "
        "pretrained weights"
    )
    parser.add_argument("--pretrained", type=Path | None, default=None, help=help)
    parser.add_argument("--state", type=str | None, default=None, help=STATE)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    parser.add_argument("--unsafe-pickle", action="store_true", help=UNSAFE)
    return parser


def run(name: str, words: Sequence[str]) -> None:
    """Run ``sta inspect``."""
    asked = parse(build_parser(), words, missing="no file was named: `sta inspect FILE…`.")

    # torch takes seconds to import: --help and a mistyped option must not wait for it.
    from sta_lightning.encoders.pretrained import known_architectures
    from sta_lightning.weights.formats.inspection import inspect

    configs = known_architectures()
    found: list[dict[str, Any]] = []
    failed: list[str] = []
    settings = {
        "configs": configs,
        "pretrained": asked.pretrained,
        "unsafe_pickle": asked.unsafe_pickle,
        "state": asked.state,
    }
    for file in asked.files:
        try:
            found.append(inspect(file, **settings))
        except StaError as error:
            failed.append(str(error))
            found.append({"file": str(file), "error": str(error)})
            continue
        if not asked.json:
            say("\n".join(described(found[-1])) + "\n")
    if asked.json:
        say(json.dumps({"files": found}, indent=2, ensure_ascii=False))
    if failed:
        raise StaError(" ".join(failed))


def described(one: Mapping[str, Any]) -> Iterator[str]:
    """The lines for people."""
    shards = f" in {len(one['files'])} files" if len(one["files"]) > 1 else ""
    yield f"{one['file']}  ({byte_count(one['bytes'])}{shards}, {one['container']})"
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
    if "task_vector" in one:
        yield from _norms(one["task_vector"])


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


def _norms(norms: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    if not norms:
        yield from _row("task vector", "none: no tensor of it holds floating-point numbers")
        return
    width = max(len(block) for block in norms)
    yield f"  {'task vector':<{width + 2}}  {'norm':>12}  {'relative':>10}"
    for block, row in norms.items():
        yield f"    {block:<{width}}  {row['norm']:12.6g}  {row['relative']:10.3e}"
