"""A merged model as a folder, as that of the model that is changed: for ``from_pretrained``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sta_lightning.arithmetic.sources import TensorSource
from sta_lightning.arithmetic.workers import Processes, together
from sta_lightning.weights import SAFETENSORS, atomic_path
from sta_lightning.weights.formats import (
    CONFIG,
    INDEX,
    Checkpoint,
    clip_to_huggingface,
    encoder_to_huggingface,
    guess,
    image_encoder,
    loading_code,
    model_card,
    open_checkpoint,
    whole_clip,
    write_tensors,
)

# Configuration, tokenizer, preprocessor. Code is not taken along.
_BESIDE = (".json", ".txt", ".model")


@contextmanager
def folder_like(like: Path, output: str | Path, group: Processes) -> Iterator[Path]:
    """A file to write a merged model to, which becomes a folder when the block has ended well.

    Args:
        like: the folder of the model that is changed: layout and the files beside the weights are
            taken from it.
        output: the folder to make; it must not be there yet, or be empty.
        group: who writes together.

    Yields:
        The file, for open_clip's names.

    Raises:
        StaError: something is there already, or it cannot be written.
    """
    with ExitStack() as stack:

        def make() -> str:
            return "" if group.rank else str(stack.enter_context(atomic_path(output, folder=True)))

        file = Path(together(group, make)[0]) / f"merged{SAFETENSORS}"
        yield file
        together(group, lambda: None if group.rank else _complete(like, file, Path(output).name))
        together(group, stack.pop_all().close)


def _complete(like: Path, file: Path, title: str) -> None:
    """Put the weights into the layout of ``like``, and beside them what lies there."""
    with ExitStack() as stack:
        origin, made = open_checkpoint(like, stack), open_checkpoint(file, stack)
        types = {str(source.dtype).removeprefix("torch.") for source in made.tensors.values()}
        if origin.layout.kind == "huggingface":
            tensors = _in_huggingface(made)
            write_tensors(file.with_name("model.safetensors"), tensors, {"format": "pt", **made.metadata})
            whole = made.layout.text is not None
            code = loading_code("huggingface", None, title, whole=whole, projection=origin.layout.projection)
            architecture = guess(image_encoder(made)).title
            card = model_card(title, architecture, made.metadata, code, front_matter=True)
            file.with_name("README.md").write_text(card, encoding="utf-8")
    if origin.layout.kind == "huggingface":
        file.unlink()
    else:
        named = origin.files[0].name
        file.rename(file.with_name(named if named.endswith(SAFETENSORS) else "open_clip_model.safetensors"))
    for beside in sorted(like.iterdir()):
        if beside.suffix in _BESIDE and beside.is_file() and not beside.name.endswith(INDEX):
            shutil.copyfile(beside, file.with_name(beside.name))
    _tell_type(file.with_name(CONFIG), types)


def _in_huggingface(made: Checkpoint) -> dict[str, TensorSource]:
    if made.layout.text is None:
        return encoder_to_huggingface(image_encoder(made), made.title)
    return clip_to_huggingface(whole_clip(made), made.title)


def _tell_type(config: Path, types: set[str]) -> None:
    """Let a configuration that tells the type of the weights tell that of the merged ones."""
    content = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    keys = {"dtype", "torch_dtype"} & content.keys()
    if keys and len(types) == 1:
        content |= dict.fromkeys(keys, *types)
        config.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
