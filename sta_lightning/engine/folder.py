"""A merged model as a folder, as that of the model that is changed: for ``from_pretrained``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from sta_lightning.arithmetic.workers import Processes, together
from sta_lightning.engine.card import card_of
from sta_lightning.weights import SAFETENSORS, FileSink, Planned, atomic_path, sharded, streamed
from sta_lightning.weights.formats import (
    CONFIG,
    INDEX,
    Layout,
    card_place,
    in_huggingface,
    open_checkpoint,
    write_tensors,
)

# Configuration, tokenizer, preprocessor. Code is not taken along.
_BESIDE = (".json", ".txt", ".model", ".jinja")

Opener = Callable[[Planned, Mapping[str, str]], AbstractContextManager[FileSink]]
"""Opens what a merged model is written to: given its tensors and metadata."""


@contextmanager
def folder_like(like: Path, output: str | Path, group: Processes, limit: int) -> Iterator[Opener]:
    """What a merged model is written to, which becomes a folder when the block has ended well.

    Args:
        like: the folder of the model that is changed: layout and the files beside the weights are
            taken from it.
        output: the folder to make; it must not be there yet, or be empty.
        group: who writes together.
        limit: bytes of tensors in one file; more are written in shards, with their table.

    Yields:
        It opens the place for the weights: those of a CLIP in open_clip's names.

    Raises:
        StaError: something is there already, or it cannot be written.
    """
    with ExitStack() as stack:

        def make() -> str:
            return "" if group.rank else str(stack.enter_context(atomic_path(output, folder=True)))

        with ExitStack() as opened:
            origin = open_checkpoint(like, opened)
            layout, named = origin.layout, origin.files[0].name
        folder = Path(together(group, make)[0])
        types: set[str] = set()

        @contextmanager
        def opener(planned: Planned, metadata: Mapping[str, str]) -> Iterator[FileSink]:
            types.update(
                str(dtype).removeprefix("torch.") for _, dtype in planned.values() if dtype.is_floating_point
            )
            if layout.kind == "unknown":
                with sharded(folder, planned, {"format": "pt", **metadata}, group, limit) as sink:
                    yield sink
                return
            file = folder / (named if named.endswith(SAFETENSORS) else "open_clip_model.safetensors")
            file = folder / _IN_OPEN_CLIP if layout.kind == "huggingface" else file
            with streamed(file, planned, metadata, group) as sink:
                yield sink

        yield opener
        together(
            group, lambda: None if group.rank else _complete(like, layout, folder, Path(output).name, types)
        )
        together(group, stack.pop_all().close)


_IN_OPEN_CLIP = f"merged{SAFETENSORS}"


def _complete(like: Path, layout: Layout, folder: Path, title: str, types: set[str]) -> None:
    """Put the weights into the layout of ``like``, beside them what lies there, and the card."""
    if layout.kind == "huggingface":
        file = folder / _IN_OPEN_CLIP
        with ExitStack() as stack:
            made = open_checkpoint(file, stack)
            metadata = {"format": "pt", **made.metadata}
            write_tensors(folder / "model.safetensors", in_huggingface(made), metadata)
        file.unlink()
    for beside in sorted(like.iterdir()):
        if beside.suffix in _BESIDE and beside.is_file() and not beside.name.endswith(INDEX):
            shutil.copyfile(beside, folder / beside.name)
    _tell_type(folder / CONFIG, types)
    card_place(folder).write_text(card_of(folder, title), encoding="utf-8")


def _tell_type(config: Path, types: set[str]) -> None:
    """Let a configuration that tells the type of the weights tell that of the merged ones."""
    content = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    keys = {"dtype", "torch_dtype"} & content.keys()
    if keys and len(types) == 1:
        content |= dict.fromkeys(keys, *types)
        config.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
