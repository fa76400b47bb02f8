"""Merging and forgetting without an evaluation: neither Lightning nor the encoders' library is imported."""

import dataclasses
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sta_lightning.arithmetic import torch_dtype
from sta_lightning.cli.checks import check_output
from sta_lightning.cli.explain import explain, nearest
from sta_lightning.cli.parser import RaisingParser, RejectedError
from sta_lightning.cli.placeholders import fill_placeholders
from sta_lightning.cli.precheck import asked_alone, config_files, read_config
from sta_lightning.cli.screen import say
from sta_lightning.encoders.pretrained import pretrained_for_merge
from sta_lightning.engine import (
    ForgettingOptions,
    FusionOptions,
    TaskSource,
    launched_processes,
    write_vectors,
)
from sta_lightning.errors import StaError

_OPTIONS: dict[str, type[Any]] = {"merge": FusionOptions, "forget": ForgettingOptions}
# What an evaluation is told; in a configuration file it may stay where there is none.
_UNREAD = ("data", "trainer", "seed_everything")


def suffices(words: Sequence[str]) -> bool:
    """Whether a command line asks for nothing but a merged file.

    That is so with ``evaluate`` false, unless the line also has options of the trainer or the data,
    asks for help or for the configuration, or a task is described by a YAML file.
    """
    configs = [read_config(name) for name in config_files(words)]
    if asked_alone(words, configs, "evaluate") is not False:
        return False
    wide = ("--data", "--trainer", "--seed_everything", "--help", "-h", "--print_config")
    if any(word.split("=")[0].split(".")[0] in wide for word in words):
        return False
    models = [config["model"] for config in configs if isinstance(config.get("model"), dict)]
    names = [name for model in models for name in [*(model.get("tasks") or {}), model.get("target")]]
    names += [word for word in words if word.startswith("--model.target=")]
    return not any(str(name).endswith((".yaml", ".yml")) for name in names)


def run(name: str, words: Sequence[str]) -> None:
    """Merge, or make a model forget, and write the result.

    Args:
        name: ``merge`` or ``forget``.
        words: The command line after it.

    Raises:
        StaError: An option is unknown or out of range, or a source is missing or does not fit.
    """
    parser = RaisingParser(prog=f"sta {name}")
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(_OPTIONS[name], "model", fail_untyped=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--evaluate", type=bool, default=True)
    for unread in _UNREAD:
        parser.add_argument(f"--{unread}", type=Any, default=None)
    _check_keys(name, words, parser)
    try:
        parsed = parser.parse_args(list(words))
    except RejectedError as error:
        options = [action.dest for action in parser._actions if action.dest != "help"]
        members = [option.removeprefix("model.") for option in options]
        members += [field.name for field in dataclasses.fields(TaskSource)]
        raise StaError(explain(str(error), command=name, options=options, members=members)) from error
    fill_placeholders(parsed)
    options = parser.instantiate_classes(parsed).model
    write(options, parsed.output)


def write(options: FusionOptions | ForgettingOptions, output: Path) -> None:
    """Do what the options say, together with the other processes if there are some."""
    check_output(output)
    start = time.perf_counter()
    job = options.job()
    heads = options.task_heads() if isinstance(options, FusionOptions) else {}
    with ExitStack() as stack:
        pretrained = pretrained_for_merge(options.encoder, options.pretrained, options.image_size, stack)
        processes = stack.enter_context(launched_processes())
        job.write(pretrained, output, processes, heads)
        if processes.rank == 0:
            if isinstance(options, FusionOptions) and options.vectors is not None:
                dtype = torch_dtype(options.vectors_dtype)
                written = write_vectors(options.job(), pretrained, options.vectors, dtype)
                say(f"written: {len(written)} masked task vectors in {options.vectors}")
            say(f"written: {output} ({time.perf_counter() - start:.2f} s)")


def _check_keys(name: str, words: Sequence[str], parser: RaisingParser) -> None:
    """Refuse a configuration file with a key that this subcommand does not have, by the file's name."""
    options = [action.dest for action in parser._actions if action.dest not in ("help", "config")]
    for file in config_files(words):
        config = read_config(file)
        model = config.get("model")
        inner = model if isinstance(model, dict) else {}
        for prefix, found in (("", config), ("model.", inner)):
            known = {o.removeprefix(prefix).split(".")[0] for o in options if o.startswith(prefix)}
            for key in found.keys() - known:
                raise StaError(
                    f"--config {file!r}: {prefix}{key} is not an option of `sta {name}`."
                    f"{nearest(str(key), known)} There are: {', '.join(sorted(known))}."
                )
