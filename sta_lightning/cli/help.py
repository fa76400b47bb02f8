"""``sta SUBCOMMAND --help``: one screen, without an import; ``--help-all`` is the parser's own."""

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from sta_lightning.engine.defaults import DATA_FREE, DATA_FREE_FORGETTING

_WIDEST = 100
_COLUMN = 26  # characters of an option's column, where there is room for two


class Help(NamedTuple):
    """What the help of a subcommand says.

    Attributes:
        usage: the words after ``sta``.
        examples: three command lines.
        first: the options that are needed first, with what they mean.
        then: those that one may want next.
    """

    usage: str
    examples: Sequence[str]
    first: Mapping[str, str]
    then: Mapping[str, str]


_CONFIG = {"-c, --config FILE": "settings from a YAML file, or sta:NAME of `sta configs`; several stack"}
_TRAINER = {"--trainer.accelerator": "cpu, gpu, ...; --trainer.devices: how many"}
_RUN = {
    "--model, --data CLASS": "what is run, and on which images; a configuration says both",
    "--model.task NAME": "a task of the suites, or a YAML file that describes one",
    "--trainer.max_epochs N": "how long; published tasks have a number of their own",
    **_CONFIG,
}
_EVALUATED = {option: meaning for option, meaning in _RUN.items() if "epochs" not in option}
_AFTER = {
    "--ckpt_path FILE": "checkpoint of a fit to begin with",
    **_TRAINER,
    "--seed_everything N": "seed of everything that is drawn",
    "--print_config": "the configuration that would run, in full",
}
_MERGED = {
    "--measure NAME": "importance that STA goes by: lp, lp+amp, amp, delta-amp, delta-lp, fisher, or file",
    "--dtype, --device": "type of the weights (as in the base); where the sums are made (cpu)",
    "--encoder NAME": "where the file does not say which encoder it is, for an evaluation",
    "--evaluate": "measure it on every task too; a configuration names the tasks' images",
    **_CONFIG,
    "--print_config": "the configuration that would run, in full",
}

HELPS: Mapping[str, Help] = {
    "merge": Help(
        "merge BASE FILE... -o OUT [--method NAME] [--SETTING VALUE ...]",
        (
            "sta merge base.safetensors cars.safetensors dogs.safetensors -o merged.safetensors",
            "sta merge base/ a.pt b.bin digits=runs/x.ckpt -o merged/ --method ties --keep 0.3",
            "sta merge --config sta:merge/miniature --p 0.6",
        ),
        {
            "BASE": "the pretrained model that the others were fine-tuned from: a file or a folder",
            "FILE ...": "the fine-tuned models; NAME=FILE to call a task otherwise than its file",
            "-o, --output OUT": "the merged model: what comes out is what went in",
        },
        {
            "--method NAME": f"one of `sta methods`; without it sta if importance lies beside the files, else {DATA_FREE}",
            "--SETTING VALUE": "a setting of the method (`sta methods NAME`): --keep 0.3, --scale 0.4, --scale cars=0.6",
            **_MERGED,
            "--tasks, --files": "the files of every task by what they are, importance and head too",
            "--dare SHARE": "drop that share of every task vector first, at random (--seed)",
            "--heads": "put the tasks' heads into the file, so that `sta predict` needs nothing else",
            "--vectors FOLDER": "what each task contributes, as a file of its own",
        },
    ),
    "forget": Help(
        "forget MODEL --base BASE --finetuned FILE -o OUT [--method NAME] [--SETTING VALUE ...]",
        (
            "sta forget merged.safetensors --base base.safetensors --finetuned cars.safetensors -o less.safetensors",
            "sta forget base/ --base base/ --finetuned cars/ -o without_cars/ --scale 0.5",
            "sta forget --config sta:forget/miniature --target digits",
        ),
        {
            "MODEL": "the model that shall forget: a file or a folder",
            "--base BASE": "the model that FILE was fine-tuned from",
            "--finetuned FILE": "the model that was fine-tuned on what shall be forgotten",
            "-o, --output OUT": "the model that is made: what comes out is what went in",
        },
        {
            "--method NAME": f"one of `sta methods`; without it sta if importance lies beside FILE, else {DATA_FREE_FORGETTING}",
            "--SETTING VALUE": "a setting of the method, as `sta methods NAME` lists them: --scale, --p",
            "--importance FILE": "what `sta score` wrote",
            **_MERGED,
            "--target NAME": "the task's name, if it is not that of FILE",
            "--control NAME": "the task that must not be hurt, for an evaluation",
        },
    ),
    "score": Help(
        "score --config FILE --weights FILE --output FILE",
        (
            "sta score --config sta:score/miniature --model.task=digits",
            "sta score --config sta:score/miniature --model.task=digits --measure=fisher --samples=256",
            "sta score --config sta:score/vit_b_16 --model.task=cars --weights=cars.ckpt",
        ),
        {
            "--weights FILE": "the fine-tuned encoder: what a fit exported, or its checkpoint",
            "--output FILE": "file for one number for every weight (safetensors)",
            "--model.task NAME": "the task that it was fine-tuned on",
            **_CONFIG,
        },
        {
            "--measure NAME": "lp (the paper's), amp, lp+amp, delta-lp, delta-amp, fisher; or gram",
            "--samples N": "training images, 32 in the paper",
            "--seed N": "which images",
            "--precision": "float32, or bf16 where the device computes in it",
            "--model.encoder NAME": "the encoder; --model.pretrained: its pretrained weights",
            **_TRAINER,
            "--print_config": "the configuration that would run, in full",
        },
    ),
    "fit": Help(
        "fit --config FILE [--option=value ...]",
        (
            "sta fit --config sta:finetune/miniature --model.task=digits",
            "sta fit --config sta:finetune/vit_b_16 --model.task=cars --trainer.devices=2",
            "sta fit --config sta:finetune/miniature --model.task=mine.yaml --trainer.max_epochs=5",
        ),
        _RUN,
        {
            "--model.encoder NAME": "the encoder; --model.pretrained: its pretrained weights",
            "--model.learning_rate": "the peak learning rate",
            "--data.batch_size N": "images of a step",
            **_AFTER,
        },
    ),
    **{
        verb: Help(
            f"{verb} --config FILE --ckpt_path FILE [--option=value ...]",
            (
                f"sta {verb} --config sta:finetune/miniature --model.task=digits --ckpt_path=FILE",
                f"sta {verb} --config sta:finetune/miniature --model.task=digits --data.batch_size=500",
                f"sta {verb} --config mine.yaml --ckpt_path=FILE",
            ),
            _EVALUATED,
            _AFTER,
        )
        for verb in ("validate", "test")
    },
    "predict": Help(
        "predict --model FILE --task NAME PICTURES ... [--option=value ...]",
        (
            "sta predict --model merged.safetensors --task digits pictures/",
            "sta predict --model merged.safetensors --tasks digits,textures pictures/",
            "sta predict --model cars.safetensors --head head.safetensors --output table.csv photo.jpg",
        ),
        {
            "--model FILE": "a fine-tuned or merged model",
            "--task NAME": "which task's classes: of the suites, or a YAML file; auto for all of them",
            "PICTURES ...": "files, and folders that are searched at any depth",
        },
        {
            "--output FILE": "the table, CSV",
            "--tasks A,B,...": "for pictures of any of these tasks",
            "--examples FOLDER": "pictures of each task, by which the heads are weighed",
            "--head FILE": "the task's head, if the model's file brings none",
            "--pretrained FILE": "the pretrained CLIP, to make a head from the task's prompts",
            "--encoder NAME": "where the file does not say which encoder it is",
            "--top N": "how many of the likeliest classes",
            "--skip_broken": "leave out, and list, pictures that do not decode",
        },
    ),
    "probabilities": Help(
        "probabilities --config FILE --output FILE [--ckpt_path FILE] [--option=value ...]",
        (
            "sta probabilities --config sta:finetune/miniature --model.task=digits --output=p.safetensors",
            "sta probabilities --config sta:finetune/miniature --model.weights=FILE --output=p.safetensors",
            "sta probabilities --config mine.yaml --ckpt_path=FILE --output=p.safetensors",
        ),
        {
            "--output FILE": "the probabilities, images by classes",
            **_EVALUATED,
        },
        _AFTER,
    ),
    "benchmark": Help(
        "benchmark --config FILE [--output FOLDER] [--option=value ...]",
        (
            "sta benchmark --config sta:benchmark/miniature --dry-run",
            "sta benchmark --config sta:benchmark/miniature --seeds='[0]' --methods='{tsv: {method: tsv}}'",
            "sta benchmark --config sta:benchmark/vit_b_16 --output runs/mine",
        ),
        {
            **_CONFIG,
            "--output FOLDER": "where cells, models and the report go; what is there already is kept",
            "--dry-run": "print the cells and the time expected; compute nothing",
        },
        {
            "--force": "compute every cell again",
            "--seeds LIST": "one fine-tuning of every task for each",
            "--methods": "what is compared, by name; --forget_methods: to forget",
            "--models.encoder NAME": "the encoder; --models.tasks: the tasks",
            "--print_config": "the configuration that would run, in full",
        },
    ),
    "convert": Help(
        "convert IN OUT --to LAYOUT [--option value ...]",
        (
            "sta convert cars.pt cars/ --to huggingface --encoder ViT-B-32",
            "sta convert cars/ cars.safetensors --to open_clip",
            "sta convert merged.safetensors clip.safetensors --to open_clip --pretrained base.safetensors",
        ),
        {
            "IN": "the checkpoint: a file, or a folder from a model hub",
            "OUT": "a file that ends in .safetensors; a new folder for huggingface and lora",
            "--to LAYOUT": "open_clip, huggingface, safetensors or lora",
        },
        {
            "--pretrained FILE": "what it was fine-tuned from: lends what IN has not",
            "--encoder NAME": "the architecture, where IN does not say how it computes",
            "--dtype TYPE": "of the weights written",
            "--unsafe-pickle": "also read a module that was pickled whole; no code of it is run",
        },
    ),
    "inspect": Help(
        "inspect FILE | inspect BASE FILE ... [--skip PATTERN] [--html PAGE] [--json]",
        (
            "sta inspect merged.safetensors",
            "sta inspect base.safetensors cars.safetensors dogs.safetensors --html page.html",
            "sta inspect base/ a/ b.pt adapter/ --skip 'classifier.*' --json",
        ),
        {
            "FILE": "a checkpoint: a file, or a folder from a model hub",
            "BASE FILE ...": "as in sta merge, the base first: can they be merged (else status 1), and how they differ",
        },
        {
            "--pretrained FILE": "the base, where it is not the first file",
            "--only, --skip PATTERN": "tensors by their names: compare these alone, or without these",
            "--html PAGE": "draw the comparison",
            "--verbose": "all of every file, of several too",
            "--no-ranks": "leave out the effective ranks: most of the time, of large models",
            "--json": "one JSON document instead of text",
            "--unsafe-pickle": "also read a module that was pickled whole; no code of it is run",
        },
    ),
    "demo": Help(
        "demo [--output FOLDER] [--option=value ...]",
        (
            "sta demo",
            "sta demo --output runs/mine --models.epochs=2",
            "sta demo --force",
        ),
        {"--output FOLDER": "where models and the report go; what is there already is kept"},
        {
            "--force": "do every step again",
            "--dry-run": "print the steps and the time expected; compute nothing",
            "--models.tasks LIST": "the tasks of the embedded suite; --models.epochs: how long",
            **_CONFIG,
            "--print_config": "the configuration that would run, in full",
        },
    ),
}


def screen(name: str, summary: str) -> str:
    """The help of a subcommand, at the terminal's width."""
    width = _width()
    found = HELPS[name]
    lines = textwrap.wrap(f"usage: sta {found.usage}", width, subsequent_indent="    ")
    lines += ["", *textwrap.wrap(f"{summary[:1].upper()}{summary[1:]}.", width), "", "examples:"]
    for example in found.examples:
        lines += _command(example, width)
    for title, options in (("what you need first", found.first), ("what you may want next", found.then)):
        lines += ["", f"{title}:"]
        for option, meaning in options.items():
            lines += _row(option, meaning, width)
    lines += ["", *textwrap.wrap(f"All options, Lightning's too: sta {name} --help-all", width)]
    return "\n".join(lines) + "\n"


def folded(text: str) -> str:
    """A text at the terminal's width, each of its lines for itself."""
    return "\n".join("\n".join(textwrap.wrap(line, _width())) for line in text.splitlines())


def _width() -> int:
    return min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST) - 1


def _command(line: str, width: int) -> Iterator[str]:
    """A command, continued with backslashes where the terminal is narrow."""
    rows = textwrap.wrap(
        line, width - 4, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    yield from (f"  {row} \\" for row in rows[:-1])
    yield f"  {rows[-1]}"


def _row(option: str, meaning: str, width: int) -> Iterator[str]:
    if width < 2 * _COLUMN + 20:
        yield f"  {option}"
        yield from textwrap.wrap(meaning, width, initial_indent="      ", subsequent_indent="      ")
        return
    rows = textwrap.wrap(meaning, width - _COLUMN - 2) or [""]
    yield f"  {option:<{_COLUMN}}{rows[0]}"
    yield from (f"  {'':<{_COLUMN}}{row}" for row in rows[1:])
