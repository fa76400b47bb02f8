"""``sta merge`` and ``sta forget``: files to a file; Lightning is imported only to evaluate it.

What can be known to be wrong without torch is said before it is imported, which takes seconds.
"""

import dataclasses
import gc
import importlib
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sta_lightning.cli.catalogue import check_method, methods
from sta_lightning.cli.checks import add_output, add_timeout
from sta_lightning.cli.front import OPTIONS, spelled_out
from sta_lightning.cli.parser import RaisingParser, parse
from sta_lightning.cli.placeholders import fill_placeholders, task_name
from sta_lightning.cli.screen import byte_count, say
from sta_lightning.engine.defaults import BY_IMAGES
from sta_lightning.engine.options import ForgettingOptions, FusionOptions, MergeOptions, refuse_by_images
from sta_lightning.engine.sources import TaskSource
from sta_lightning.errors import StaError

_FILES = [field.name for field in dataclasses.fields(TaskSource)]
_EVALUATION = ("data", "trainer", "seed_everything")


def build_parser(name: str) -> RaisingParser:
    """The options of a merge; those of its evaluation are taken as they are, unread."""
    parser = RaisingParser(prog=f"sta {name}")
    parser.add_config()
    parser.add_class_arguments(OPTIONS[name], "model", fail_untyped=True)
    add_output(parser)
    add_timeout(parser)
    for unread in _EVALUATION:
        parser.add_argument(f"--{unread}", type=dict[str, Any] | Any, default=None)
    return parser


def run(name: str, words: Sequence[str]) -> None:
    """Run ``sta merge`` or ``sta forget``."""
    words = spelled_out(name, words)
    # The help and the configuration have the evaluation's options too.
    if {"-h", "--help", "--h", "--print_config"} & {word.split("=")[0] for word in words}:
        from sta_lightning.cli import merge_evaluated

        merge_evaluated.run(name, words)
        return
    members = [*_FILES, *(key for has in methods(name).values() for key in has)]
    asked = parse(build_parser(name), words, members)
    fill_placeholders(asked)
    options = OPTIONS[name](**asked.model.as_dict())
    if name != "merge" or options.method not in BY_IMAGES:
        check_method(name, options)
    elif not asked.evaluate:
        refuse_by_images(options.method)
    options.check_files(asked.output)
    if asked.evaluate:
        from sta_lightning.cli import merge_evaluated

        if options.encoder is None:
            from sta_lightning.encoders.pretrained import found_encoder

            words.append(f"--model.encoder={found_encoder(options.pretrained)}")
        merge_evaluated.run(name, words)
        return
    for word in words:
        option = word.split("=")[0]
        # In a configuration file they may stay: it serves merges with and without an evaluation.
        if option.startswith("--") and option[2:].split(".")[0].removesuffix("+") in _EVALUATION:
            raise StaError(
                f"{option} is an option of the evaluation, which --evaluate=false leaves out. Leave one of the two out."
            )
    write(options, asked.output, asked.timeout)


def import_torch() -> None:
    """Import torch without searching for garbage what comes with it: a million objects that stay.

    Import and exit take two thirds of the time then.
    """
    if "torch" in sys.modules:
        return
    gc.disable()
    try:
        importlib.import_module("torch")
        gc.freeze()
    finally:
        gc.enable()


def write(options: MergeOptions, output: Path, timeout: float | None) -> None:
    """Write what the options say, together with the other processes if there are some."""
    import_torch()
    from sta_lightning.encoders.pretrained import pretrained_for_merge
    from sta_lightning.engine.processes import launched_processes

    start = time.perf_counter()
    if isinstance(options, FusionOptions):
        tasks, names = options.tasks, [task_name(spec) for spec in options.tasks]
        options.tasks = dict(zip(names, tasks.values(), strict=True)) if isinstance(tasks, dict) else names
    elif isinstance(options, ForgettingOptions):
        options.target = task_name(options.target)
    job = options.job()  # what is out of range is refused before a file is opened
    with ExitStack() as stack:
        pretrained = pretrained_for_merge(options.encoder, options.pretrained, options.image_size, stack)
        processes = stack.enter_context(launched_processes(timeout))
        options.write(pretrained, output, processes, options.task_heads())
        if processes.rank == 0:
            if options.method is None:
                say(f"method: {job.method.title} ({options.choice.reason}; another with --method NAME)")
            if isinstance(options, FusionOptions) and options.vectors is not None:
                say(f"written: {len(options.tasks)} masked task vectors in {options.vectors}")
            seconds = time.perf_counter() - start
            for line in told(output, seconds):
                say(line)


def told(output: Path, seconds: float) -> Iterator[str]:
    """What was written: the last lines on the screen."""
    from sta_lightning.encoders.pretrained import OTHER
    from sta_lightning.weights import read_metadata
    from sta_lightning.weights.formats import weight_files

    files = weight_files(output)
    settings = json.loads(read_metadata(files[0])["settings"])
    text = settings.get("text_tower")
    if text is not None:
        yield "text tower: " + ("equal in all models, copied" if text == "copied" else f"it differs, {text}")
    for task, which in settings.get("resampled", {}).items():
        yield f"resampled: the positions of task '{task}' ({which})"
    what = "an image encoder" if text is None else "a whole CLIP"
    what = settings["architecture"] if settings.get("architecture", "").startswith(OTHER) else what
    size = byte_count(sum(file.stat().st_size for file in files))
    yield f"written: {output} ({what}, {size}, {seconds:.2f} s)"
    yield f"next: sta inspect {shlex.quote(str(output))}"
