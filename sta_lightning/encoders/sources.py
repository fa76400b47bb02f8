"""Which file an encoder's pretrained weights come from: the package's, a local one or the hub's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sta_lightning.encoders.architectures import MINIATURE, RANDOM, is_hub_name, model_config
from sta_lightning.encoders.hub import HUB_PREFIX, WEIGHTS_FILES, Repository
from sta_lightning.errors import StaError, listed
from sta_lightning.weights import SAFETENSORS, decoded, read_metadata

MINIATURE_WEIGHTS = Path(__file__).with_name("miniature.safetensors")
QUICK_GELU_SUFFIX = "-quickgelu"


@dataclass(frozen=True)
class Weights:
    """Where the weights of a CLIP come from.

    Attributes:
        file: Their file; ``None`` for random weights.
        library: Whether open_clip reads them, which knows the layouts of all files that it names;
            the others have the tensor names of the model that is built.
        quick_gelu: Whether they want QuickGELU though the architecture's name does not say so.
    """

    file: Path | None
    library: bool = False
    quick_gelu: bool = False


def find_weights(name: str, pretrained: str | None) -> Weights:
    """Find or fetch a CLIP's pretrained weights, named as for ``build_encoder``.

    Raises:
        StaError: if there are none of that name, or they cannot be had.
    """
    tag = None if pretrained is None or Path(pretrained).is_file() else tag_config(name, pretrained)
    if tag is None:
        file = weights_file(name, pretrained)
        return Weights(file, library=pretrained is None and is_hub_name(name))
    # 'org/name/' is a repository of open_clip's layout, 'org/name/file' one of its files.
    repository, _, file_name = str(tag["hf_hub"]).rpartition("/")
    path = Repository(repository).file(*([file_name] if file_name else WEIGHTS_FILES))
    # Weights trained with the sigmoid approximation of GELU give wrong features without it.
    return Weights(path, library=True, quick_gelu=bool(tag.get("quick_gelu", False)))


def weights_file(name: str, pretrained: str | None) -> Path | None:
    """The file of a CLIP's weights; ``None`` for a tag of open_clip or random ones.

    Raises:
        StaError: if there is no such file or tag.
    """
    if pretrained is None:
        return _own_file(name)
    if pretrained == RANDOM:
        return None
    if Path(pretrained).exists():  # a file, or a folder with a file in it
        _check_activation(name, Path(pretrained))
        return Path(pretrained)
    if pretrained.startswith(HUB_PREFIX):
        raise StaError(
            f"The weights '{pretrained}' of '{name}' were asked for, but a repository of the hub is an encoder with its "
            f"weights: give encoder={pretrained} and leave pretrained out."
        )
    if tag_config(name, pretrained) is None:
        raise StaError(
            f"The weights '{pretrained}' of '{name}' were asked for, but there is no such file. {_tags(name)}"
        )
    return None


def tag_config(name: str, pretrained: str) -> dict[str, Any] | None:
    """What open_clip says of one of its tags; ``None`` for what is no tag."""
    if pretrained == RANDOM or name == MINIATURE or is_hub_name(name):
        return None
    import open_clip

    return open_clip.get_pretrained_cfg(name, pretrained) or None


def _own_file(name: str) -> Path:
    """The file that an encoder has where none is asked for."""
    if is_hub_name(name):
        return Repository.parse(name).file(*WEIGHTS_FILES)
    if name != MINIATURE:
        raise StaError(
            f"The encoder '{name}' needs weights: give pretrained=<file> or a tag of open_clip. {_tags(name)}"
        )
    if not MINIATURE_WEIGHTS.is_file():
        raise StaError(
            f"The weights of the embedded encoder are missing: {MINIATURE_WEIGHTS} does not exist. Make "
            "them with `sta fit --config configs/pretrain/miniature.yaml`, or install the package again."
        )
    return MINIATURE_WEIGHTS


def _tags(name: str) -> str:
    if name == MINIATURE:
        return "Leave pretrained out to use the weights that the package ships."
    if is_hub_name(name):
        return "Leave pretrained out to use the repository's own weights, or give a file."
    import open_clip

    tags = listed(open_clip.list_pretrained_tags_by_model(name), limit=12)
    variant = name + QUICK_GELU_SUFFIX
    known = open_clip.get_model_config(variant) is not None
    hint = f" A file of OpenAI's weights wants the name '{variant}'." if known else ""
    return f"open_clip's tags for it: {tags}.{hint}"


def _check_activation(name: str, path: Path) -> None:
    """Refuse a converted file that asks for another activation than the architecture has."""
    converted = decoded(read_metadata(path), "converted") if path.suffix == SAFETENSORS else None
    activation = converted.get("activation") if isinstance(converted, Mapping) else None
    if activation not in ("gelu", "quick_gelu"):
        return
    wanted, found = activation == "quick_gelu", bool(model_config(name).get("quick_gelu", False))
    if wanted != found:
        other = f"{name}{QUICK_GELU_SUFFIX}" if wanted else name.removesuffix(QUICK_GELU_SUFFIX)
        raise StaError(
            f"{path} says that its weights were trained with {'Quick' if wanted else 'plain '}GELU, which '{name}' does not "
            f"compute: its features would be wrong. Name the encoder '{other}'."
        )
