"""``sta predict``: pictures classified by a model in a file, without Lightning."""

import csv
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sta_lightning.cli.parser import RaisingParser, parse
from sta_lightning.cli.screen import say
from sta_lightning.errors import StaError, listed

if TYPE_CHECKING:
    from torch import Tensor

    from sta_lightning.encoders.heads import Classes
    from sta_lightning.encoders.predictor import Predictor

_NAMED = 5  # classes that the summary names

Ranked = list[tuple[int, float]]
"""A picture's likeliest classes: label and probability."""


def build_parser() -> RaisingParser:
    """The options of ``sta predict``: the arguments of :func:`classify`."""
    parser = RaisingParser(
        prog="sta predict",
        description="Classify pictures with a fine-tuned or merged encoder, and write a table: path, label, class name and "
        "probability of the likeliest class, then the same of the next ones. The table is written whole or not at all.",
        usage="sta predict --model FILE --task NAME PICTURES ... [--option=value ...]",
    )
    help = "pictures, and folders that are searched for pictures at any depth"
    parser.add_argument("pictures", type=Path, nargs="+", metavar="PICTURES", help=help)
    help = "leave out, and list, pictures that do not decode"
    parser.add_argument("--skip_broken", action="store_true", help=help)
    parser.add_function_arguments(classify, as_group=False, skip={"pictures", "skip_broken"})
    return parser


def run(name: str, words: Sequence[str]) -> None:
    """Run ``sta predict``."""
    if {"--config", "-c"} & {word.split("=")[0] for word in words}:
        raise StaError(
            "sta predict classifies pictures by a model in a file, and takes no configuration. The class probabilities of a "
            "configured test split are written by `sta probabilities --config=FILE --output=FILE`."
        )
    asked = parse(
        build_parser(),
        words,
        missing="sta predict needs a model and pictures: --model FILE PICTURES .... `sta predict --help` lists the options.",
    )
    classify(**asked.as_dict())


def classify(
    *,
    pictures: Sequence[Path],
    model: Path,
    task: str | None = None,
    head: Path | None = None,
    pretrained: str | None = None,
    encoder: str | None = None,
    image_size: int | None = None,
    output: Path = Path("predictions.csv"),
    top: int = 5,
    batch_size: int = 32,
    skip_broken: bool = False,
    device: str = "cpu",
) -> None:
    """Classify pictures with a model in a file, and write a table.

    Args:
        pictures: files and folders.
        model: the encoder: a file of sta merge (with model.heads=true it brings its heads), sta
            forget or sta fit.
        task: name of the task whose classes are meant, or the path of its YAML file.
        head: file of the head; None for the one that the model brings along, or one made from the
            task's prompts.
        pretrained: the pretrained CLIP, to make the head with: a file, or a tag of open_clip.
        encoder: name of the encoder; None for what the model's file says.
        image_size: side of the encoder's input in pixels; None for what the model's file says, or
            the encoder's own.
        output: the table (CSV).
        top: number of classes that the table has for a picture.
        batch_size: pictures that are classified together.
        skip_broken: leave out, and list, pictures that do not decode.
        device: where: cpu, or a GPU such as cuda.
    """
    for option, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise StaError(f"--{option}={value} was asked for: give 1 or more.")
    if output.is_dir():
        raise StaError(f"--output: '{output}' is a folder. Give a file name, such as predictions.csv.")
    start = time.perf_counter()

    # torch takes seconds to import: --help and a mistyped option must not wait for it.
    from sta_lightning.arithmetic import torch_device
    from sta_lightning.cli.pictures import find_pictures
    from sta_lightning.encoders.predictor import open_predictor

    files, others = find_pictures(pictures)
    predictor = open_predictor(
        model,
        task=task,
        head=head,
        encoder=encoder,
        image_size=image_size,
        pretrained=pretrained,
        find_task=find_task,
    ).to(torch_device(device))
    broken: list[str] = []
    count = min(top, len(predictor.class_names))
    found = list(_classified(predictor, files, batch_size, count, broken if skip_broken else None))
    if not found:
        raise StaError(f"none of the {len(files)} pictures can be decoded, the first because: {broken[0]}")
    _write(output, predictor.class_names, found, count)
    if others:
        say(f"left out, by their endings: {listed(map(str, others))}")
    for reason in broken:
        say(f"skipped: {reason}")
    best = Counter(predictor.class_names[ranked[0][0]] for _, ranked in found)
    common = best.most_common(_NAMED)
    named = [f"{count} {title}" for title, count in common]
    if len(best) > len(common):
        named.append(f"{len(best) - len(common)} classes more")
    left_out = f", {len(broken)} skipped" if broken else ""
    say(f"{len(found)} pictures{left_out}: {', '.join(named)}")
    say(f"written: {output} ({time.perf_counter() - start:.2f} s)")


def find_task(spec: str) -> "Classes":
    """Look up a task; its room is imported only where a head does not name its classes."""
    from sta_lightning.tasks import get_task

    return get_task(spec)


def _classified(
    predictor: "Predictor", pictures: Sequence[Path], batch_size: int, count: int, broken: list[str] | None
) -> Iterator[tuple[Path, Ranked]]:
    """Yield every picture with its ``count`` likeliest classes.

    What is wrong with pictures that do not decode goes into ``broken``, or is raised without it.
    """
    import torch

    from sta_lightning.encoders.pictures import read_image

    def prepared() -> "Iterator[tuple[Path, Tensor]]":
        for path in pictures:
            try:
                image = predictor.prepare(read_image(path))
            except StaError as error:
                if broken is None:
                    raise StaError(f"{error} With --skip_broken such files are left out.") from error
                broken.append(str(error))
            else:
                yield path, image

    images = prepared()
    while batch := list(islice(images, batch_size)):
        found = predictor.probabilities(torch.stack([image for _, image in batch]))
        # Of equal probabilities the lower label comes first.
        values, labels = (part[:, :count].tolist() for part in found.sort(descending=True, stable=True))
        for (path, _), row, numbers in zip(batch, labels, values, strict=True):
            yield path, list(zip(row, numbers, strict=True))


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
