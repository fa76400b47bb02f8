"""``sta predict --model FILE``: pictures classified by a model in a file, without Lightning."""

import csv
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sta_lightning.cli.parser import RaisingParser, parse
from sta_lightning.cli.screen import say
from sta_lightning.errors import StaError

if TYPE_CHECKING:
    from torch import Tensor

    from sta_lightning.encoders.heads import Classes
    from sta_lightning.encoders.predictor import Predictor

DESCRIPTION = (
    "Classify pictures with a fine-tuned or merged encoder, and write a table: path, label, class name and probability of the "
    "likeliest class, then the same of the next ones. The table is written whole or not at all."
)
_NAMED = 5  # classes that the summary names

Ranked = list[tuple[int, float]]
"""A picture's likeliest classes: label and probability."""


def build_parser() -> RaisingParser:
    """The options of ``sta predict --model``."""
    parser = RaisingParser(
        prog="sta predict",
        description=DESCRIPTION,
        usage="sta predict --model FILE --task NAME PICTURES ... [--option=value ...]",
    )
    parser.add_argument(
        "pictures",
        type=Path,
        nargs="+",
        metavar="PICTURES",
        help="pictures, and folders that are searched for pictures at any depth",
    )
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        help="the encoder: a file of sta merge (with model.heads=true it brings its heads), sta forget or sta fit",
    )
    parser.add_argument(
        "--task",
        type=str | None,
        default=None,
        help="name of the task whose classes are meant, or the path of its YAML file",
    )
    parser.add_argument(
        "--head",
        type=Path | None,
        default=None,
        help="file of the head; None for the one that the model brings along, or one made from the task's prompts",
    )
    parser.add_argument(
        "--pretrained",
        type=str | None,
        default=None,
        help="the pretrained CLIP, to make the head with: a file, or a tag of open_clip",
    )
    parser.add_argument(
        "--encoder",
        type=str | None,
        default=None,
        help="name of the encoder; None for what the model's file says",
    )
    parser.add_argument(
        "--image_size",
        type=int | None,
        default=None,
        help="side of the encoder's input in pixels; None for what the model's file says, or the encoder's own",
    )
    parser.add_argument("--output", type=Path, default=Path("predictions.csv"), help="the table (CSV)")
    parser.add_argument(
        "--top", type=int, default=5, help="number of classes that the table has for a picture"
    )
    parser.add_argument("--batch_size", type=int, default=32, help="pictures that are classified together")
    parser.add_argument(
        "--skip_broken", action="store_true", help="leave out, and list, pictures that do not decode"
    )
    parser.add_argument("--device", type=str, default="cpu", help="where: cpu, or a GPU such as cuda")
    return parser


def run(name: str, words: Sequence[str]) -> None:
    """Run ``sta predict`` on pictures."""
    asked = parse(
        build_parser(),
        words,
        missing="sta predict needs a model and pictures: --model FILE PICTURES ..., or --config FILE for the test split that a "
        "configuration describes. `sta predict --help` lists the options.",
    )
    for option in ("top", "batch_size"):
        if getattr(asked, option) < 1:
            raise StaError(f"--{option}={getattr(asked, option)} was asked for: give 1 or more.")
    if asked.output.is_dir():
        raise StaError(f"--output: '{asked.output}' is a folder. Give a file name, such as predictions.csv.")
    start = time.perf_counter()

    # torch takes seconds to import: --help and a mistyped option must not wait for it.
    from sta_lightning.arithmetic import torch_device
    from sta_lightning.cli.pictures import find_pictures
    from sta_lightning.encoders.predictor import open_predictor

    pictures = find_pictures(asked.pictures)
    predictor = open_predictor(
        asked.model,
        task=asked.task,
        head=asked.head,
        encoder=asked.encoder,
        image_size=asked.image_size,
        pretrained=asked.pretrained,
        find_task=find_task,
    ).to(torch_device(asked.device))
    broken: list[str] = []
    count = min(asked.top, len(predictor.class_names))
    found = list(
        _classified(predictor, pictures, asked.batch_size, count, broken if asked.skip_broken else None)
    )
    if not found:
        raise StaError(f"none of the {len(pictures)} pictures can be decoded, the first because: {broken[0]}")
    _write(asked.output, predictor.class_names, found, count)
    for reason in broken:
        say(f"skipped: {reason}")
    best = Counter(predictor.class_names[ranked[0][0]] for _, ranked in found)
    common = best.most_common(_NAMED)
    rest = len(best) - len(common)
    named = ", ".join(f"{count} {title}" for title, count in common) + (
        f", {rest} classes more" if rest else ""
    )
    left_out = f", {len(broken)} skipped" if broken else ""
    say(f"{len(found)} pictures{left_out}: {named}")
    say(f"written: {asked.output} ({time.perf_counter() - start:.2f} s)")


def find_task(spec: str) -> "Classes":
    """Look up a task; its room is imported only where a head does not name its classes."""
    from sta_lightning.tasks import get_task

    return get_task(spec)


def _classified(
    predictor: "Predictor", pictures: Sequence[Path], batch_size: int, count: int, broken: list[str] | None
) -> Iterator[tuple[Path, Ranked]]:
    """Yield every picture with its likeliest classes.

    Args:
        predictor: The model.
        pictures: The files.
        batch_size: How many are classified together.
        count: How many classes of a picture are kept.
        broken: Takes what is wrong with pictures that do not decode; ``None`` to raise it.
    """
    import torch

    from sta_lightning.cli.pictures import read_picture

    waiting: list[tuple[Path, Tensor]] = []

    def results() -> Iterator[tuple[Path, Ranked]]:
        if waiting:
            found = predictor.probabilities(torch.stack([image for _, image in waiting]))
            # Of equal probabilities the lower label comes first.
            values, labels = (part[:, :count].tolist() for part in found.sort(descending=True, stable=True))
            for (path, _), row, numbers in zip(waiting, labels, values, strict=True):
                yield path, list(zip(row, numbers, strict=True))
        waiting.clear()

    for path in pictures:
        try:
            waiting.append((path, predictor.prepare(read_picture(path))))
        except StaError as error:
            if broken is None:
                raise
            broken.append(str(error))
        if len(waiting) == batch_size:
            yield from results()
    yield from results()


def _write(
    output: Path, class_names: Sequence[str], found: Sequence[tuple[Path, Ranked]], count: int
) -> None:
    """Write the table, whole or not at all."""
    from sta_lightning.weights import atomic_path

    header = ["path", "label", "class_name", "probability"]
    for place in range(2, count + 1):
        header += [f"label_{place}", f"class_name_{place}", f"probability_{place}"]
    # Names of files that are no UTF-8 come back as they were.
    with (
        atomic_path(output) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
    ):
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(header)
        for path, ranked in found:
            row: list[Any] = [str(path)]
            for label, probability in ranked:
                row += [label, class_names[label], f"{probability:.6f}"]
            table.writerow(row)
