"""What lies beside a source's weights and speaks against its base: another name, other tokens."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sta_lightning.errors import StaError, listed
from sta_lightning.weights.formats.adapter import CONFIG as ADAPTER_CONFIG
from sta_lightning.weights.formats.adapter import is_adapter
from sta_lightning.weights.formats.checkpoint import read_table
from sta_lightning.weights.formats.front_matter import origin_of
from sta_lightning.weights.opened import PathLike

# Which file names a tokenizer's tokens: the first that both folders have is compared.
_TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
_ADDED = "added_tokens.json"
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def doubts(path: PathLike, base: PathLike) -> Iterator[str]:
    """What speaks against a merge though names and shapes fit: sentences for warnings.

    An adapter that says it was trained on another base; a tokenizer that gives other numbers to
    tokens than the base's, so that rows of the embeddings stand for other words.

    Args:
        path: a fine-tuned model or an adapter, a file or a folder.
        base: the pretrained model.
    """
    folder, home = (Path(place) if Path(place).is_dir() else Path(place).parent for place in (path, base))
    if is_adapter(path):
        stated = read_table(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        if isinstance(stated, str) and stated.strip("./") and not _names(stated) & _known(Path(base), home):
            yield (
                f"the adapter '{folder}' says that it was trained on '{stated}', and the base is '{base}'. Names and shapes "
                "fit; if it is another model, the result is worth nothing."
            )
    if folder.resolve() != home.resolve():
        yield from _other_tokens(folder, home)


def _names(path: str) -> set[str]:
    """What a model is called at the end of a path or of a hub's name, with and without ending."""
    name = Path(path).name.casefold()
    return {name, *(name.removesuffix(ending) for ending in _ENDINGS)}


def _known(base: Path, home: Path) -> set[str]:
    """What the base may be called: by its place, and by what it says of itself."""
    places = [str(base), str(base.resolve()), str(home.resolve()), *origin_of(base).get("models", ())]
    return {name for place in places for name in _names(place)}


def _other_tokens(folder: Path, home: Path) -> Iterator[str]:
    """What a tokenizer has otherwise than the base's."""
    name = next((n for n in _TOKENIZERS if (folder / n).is_file() and (home / n).is_file()), None)
    files = (name,) if name in (None, _TOKENIZERS[0]) else (name, _ADDED)
    if name is None or all(_same(folder / file, home / file) for file in files if file):
        return
    lead = f"the tokenizer of '{folder}' ({name}) is not that of the base '{home}'"
    if name.endswith(".model"):  # a program's own format, which tells no more than that
        yield f"{lead}. The merged model keeps the base's."
        return
    try:
        own, other = _tokens(home, name), _tokens(folder, name)
    except (StaError, OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        yield f"{lead}, and its tokens cannot be compared: {error}. The merged model keeps the base's."
        return
    found = {
        "more": [token for token in other if token not in own],
        "fewer": [token for token in own if token not in other],
        "of another number": [token for token in own if other.get(token, own[token]) != own[token]],
    }
    odd = [f"{len(tokens)} {how}: {listed(tokens)}" for how, tokens in found.items() if tokens]
    if odd:
        yield f"{lead}; tokens that differ: {', '.join(odd)}. The merged model keeps the base's."


def _same(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes, or neither is there."""
    if one.is_file() and other.is_file():
        return filecmp.cmp(one, other, shallow=False)
    return one.is_file() == other.is_file()


def _tokens(folder: Path, name: str) -> dict[str, Any]:
    """Every token's number, as transformers reads them; any error of a file in another form."""
    path = folder / name
    if name == _TOKENIZERS[0]:
        content = read_table(path)
        words = content["model"]["vocab"]
        if isinstance(words, list):  # of a unigram model, each with its probability
            words = {entry[0]: number for number, entry in enumerate(words)}
        return {**words, **{token["content"]: token["id"] for token in content.get("added_tokens") or []}}
    if name.endswith(".txt"):
        words = {line: number for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"))}
    else:
        words = read_table(path)
    return {**words, **(read_table(folder / _ADDED) if (folder / _ADDED).is_file() else {})}
