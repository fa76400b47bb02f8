"""``sta predict``: pictures classified by a model in a file, without Lightning."""

import csv
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sta_lightning.cli.checks import check_pictures
from sta_lightning.cli.parser import RaisingParser, parse
from sta_lightning.cli.screen import say
from sta_lightning.engine.sources import check_there
from sta_lightning.errors import StaError, listed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sta_lightning.encoders import EncoderSpec
    from sta_lightning.encoders.heads import Classes
    from sta_lightning.encoders.predictor import Predictor

_NAMED = 5  # classes that the summary names
_EXAMPLES = 32  # training images that stand for a task

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
    tasks: str | None = None,
    examples: Path | None = None,
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
        task: name of the task whose classes are meant, or the path of its YAML file; auto for all
            that the model's file knows, as with tasks.
        tasks: names of several tasks, separated by commas, where it is not known which of them a
            picture is of: the classes of all are told apart.
        examples: folder with a folder of pictures for each of these tasks, called by its name: by
            some dozen of each, without labels, the heads are weighed against each other; None for
            32 training images of each task.
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
    several = tasks is not None or task == "auto"
    if (tasks is not None and task is not None) or (several and head is not None):
        raise StaError(
            "of --task, --tasks and --head one says what the classes are: give --head with the --task that it is of, or "
            "--tasks alone."
        )
    if examples is not None and not several:
        raise StaError(
            "--examples weighs the heads of several tasks: name them with --tasks, or leave it out."
        )
    if output.is_dir():
        raise StaError(f"--output: '{output}' is a folder. Give a file name, such as predictions.csv.")
    check_there(model, "--model")
    for place in pictures:
        check_pictures(place)
    start = time.perf_counter()

    # torch takes seconds to import: --help and a mistyped option must not wait for it.
    from sta_lightning.arithmetic import torch_device
    from sta_lightning.cli.pictures import find_pictures
    from sta_lightning.encoders.predictor import open_predictor

    files, others = find_pictures(pictures)
    predictor = open_predictor(
        model,
        task=task,
        tasks=None if tasks is None else [name.strip() for name in tasks.split(",")],
        head=head,
        encoder=encoder,
        image_size=image_size,
        pretrained=pretrained,
        find_task=find_task,
    ).to(torch_device(device))
    if predictor.tasks:
        _weigh(predictor, examples, batch_size)
    broken: list[str] = []
    count = min(top, len(predictor.class_names))
    found = list(_classified(predictor, files, batch_size, count, broken if skip_broken else None))
    if not found:
        raise StaError(f"none of the {len(files)} pictures can be decoded, the first because: {broken[0]}")
    _write(output, predictor, found, count)
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


def _weigh(predictor: "Predictor", folder: Path | None, batch_size: int) -> None:
    """Weigh the heads of several tasks by pictures of each, or say why it is left."""
    import torch

    from sta_lightning.cli.pictures import find_pictures
    from sta_lightning.encoders.pictures import read_image

    if folder is not None:
        try:
            places = {task: find_pictures([folder / task]).images for task in predictor.tasks}
        except StaError as error:
            raise StaError(
                f"--examples: {error} It has a folder for each task, called by the task's name."
            ) from error
        images = {
            task: torch.stack([predictor.prepare(read_image(path)) for path in paths])
            for task, paths in places.items()
        }
    else:
        try:
            images = {task: own_examples(spec, predictor.spec) for task, spec in predictor.tasks.items()}
        except StaError as error:
            say(f"the heads are not weighed against each other, for want of --examples: {error}")
            return
    predictor.weigh(images, batch_size)


def own_examples(spec: str, wanted: "EncoderSpec") -> "torch.Tensor":
    """Training images that stand for a task, always the same, for an encoder: ``[n, 3, S, S]``.

    Raises:
        StaError: nobody knows the task, or its images are not there.
    """
    from sta_lightning.tasks import Preprocess, get_task
    from sta_lightning.tasks.split import drawn_indices

    data: Any = get_task(spec).dataset("train")
    chosen = drawn_indices(len(data), min(_EXAMPLES, len(data)), 0, f"'{spec}'")
    prepare = Preprocess(wanted.image_size, wanted.mean, wanted.std, wanted.interpolation)
    return prepare.batch([data[index][0] for index in chosen])


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


def _write(output: Path, predictor: "Predictor", found: Sequence[tuple[Path, Ranked]], count: int) -> None:
    """Write the table, whole or not at all."""
    from sta_lightning.weights import atomic_path

    names, places = predictor.class_names, getattr(predictor.head, "places", None)
    columns = [*(() if places is None else ("task",)), "label", "class_name", "probability"]
    header = ["path", *columns]
    for place in range(2, count + 1):
        header += [f"{column}_{place}" for column in columns]
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
                row += [label] if places is None else places[label]
                row += [names[label], f"{probability:.6f}"]
            table.writerow(row)
