"""``sta convert``: a checkpoint of one program, written so that another reads it."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sta_lightning.cli.parser import RaisingParser, parse
from sta_lightning.cli.screen import say

DESCRIPTION = (
    "Write a model in another program's layout. Reads this package's files, Lightning checkpoints, open_clip state dicts, "
    "OpenAI's archives, Hugging Face's CLIPModel and CLIPVisionModel (file or folder, in shards or not), timm's vision "
    "transformers; no code in any of them is run. The output is written whole or not at all."
)
UNSAFE = (
    "also read a module that was pickled whole, as the task-vectors repository does. Its classes are not built and its code is "
    "not run; what the file asks to call beyond a fixed list is refused"
)
STATE = (
    "which state dict of a training checkpoint that holds several, which sta inspect lists: its key, or a word of that, such "
    "as ema; None for the model's own"
)


def build_parser() -> RaisingParser:
    """The options of ``sta convert``."""
    parser = RaisingParser(prog="sta convert", description=DESCRIPTION)
    help = "the checkpoint: a file, or a folder from a model hub"
    parser.add_argument("source", type=Path, metavar="IN", help=help)
    help = "file that ends in .safetensors; for huggingface a new folder"
    parser.add_argument("output", type=Path, metavar="OUT", help=help)
    help = (
        "open_clip: a whole CLIP for open_clip.create_model(NAME, pretrained=OUT). huggingface: a folder for from_pretrained. "
        "safetensors: the image encoder alone, as this package reads it. lora: a new folder for "
        "PeftModel.from_pretrained with what IN, any model in its own names, changes of --pretrained"
    )
    layouts = Literal["open_clip", "huggingface", "safetensors", "lora"]
    parser.add_argument("--to", type=layouts, required=True, help=help)
    help = "architecture, as open_clip names it, or miniature; needed where the file does not say how it computes"
    parser.add_argument("--encoder", type=str | None, default=None, help=help)
    help = "the model that it was fine-tuned from: lends text tower and projection where IN has none, and is compared with it"
    parser.add_argument("--pretrained", type=Path | None, default=None, help=help)
    help = "type of the weights written; None for that of IN"
    types = Literal["float32", "float16", "bfloat16"]
    parser.add_argument("--dtype", type=types | None, default=None, help=help)
    help = "rank of an adapter's matrices, with --to lora"
    parser.add_argument("--rank", type=int, default=16, help=help)
    parser.add_argument("--state", type=str | None, default=None, help=STATE)
    help = "write NaN and Inf as they are; they are refused otherwise"
    parser.add_argument("--allow-nonfinite", action="store_true", help=help)
    parser.add_argument("--unsafe-pickle", action="store_true", help=UNSAFE)
    return parser


def run(name: str, words: Sequence[str]) -> None:
    """Run ``sta convert``."""
    asked = parse(
        build_parser(),
        words,
        missing="a checkpoint, a place to write to and a layout are needed: `sta convert IN OUT --to FORMAT`. "
        "`sta convert --help` lists the layouts.",
    )

    # torch takes seconds to import: --help and a mistyped option must not wait for it.
    from sta_lightning.arithmetic import torch_dtype
    from sta_lightning.encoders.pretrained import known_architectures
    from sta_lightning.weights.formats import convert

    start = time.perf_counter()
    if asked.to == "lora":
        say(_as_adapter(asked.source, asked.pretrained, asked.output, asked.rank))
        return
    what = convert(
        asked.source,
        asked.output,
        asked.to,
        configs=known_architectures(),
        encoder=asked.encoder,
        pretrained=asked.pretrained,
        dtype=torch_dtype(asked.dtype),
        unsafe_pickle=asked.unsafe_pickle,
        state=asked.state,
        allow_nonfinite=asked.allow_nonfinite,
    )
    say(f"written: {asked.output} ({what}; {time.perf_counter() - start:.2f} s)")


def _as_adapter(source: Path, base: Path | None, output: Path, rank: int) -> str:
    """Write an adapter; what it holds, in words."""
    from sta_lightning.errors import StaError, listed
    from sta_lightning.weights.formats import write_adapter

    if base is None:
        raise StaError("--to lora writes what a model changes of its base: give that with --pretrained.")
    said = write_adapter(source, base, output, rank)
    lines = [
        f"  {share:7.2%}  {layer}" for layer, share in sorted(said.kept.items(), key=lambda entry: entry[1])
    ]
    whole = f"; {len(said.whole)} modules are in it whole" if said.whole else ""
    lost = f"; left out, for want of a place in an adapter: {listed(said.lost)}" if said.lost else ""
    return "\n".join(
        [
            f"energy of the change that {len(lines)} layers keep at rank {rank}, the least first:",
            *lines,
            f"written: {output} ({said.total:.2%} of the whole change's energy{whole}{lost})",
        ]
    )
