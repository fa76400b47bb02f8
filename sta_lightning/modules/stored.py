"""What a checkpoint may set of a module: arguments that its class lists, and never code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from lightning.pytorch import LightningModule
from typing_extensions import override

from sta_lightning.errors import StaError
from sta_lightning.weights.formats.states import as_mapping

_PLAIN = (str, int, float, bool, type(None))


def stored_settings(checkpoint: Mapping[str, Any], names: Iterable[str], path: str | Path) -> dict[str, Any]:
    """The hyper-parameters of a checkpoint that bear one of some names; the others are left unread.

    Lightning takes all of them, and among them classes and functions by their import paths.
    ``path`` is where they come from, for the message.

    Raises:
        StaError: One of them is no number and no text.
    """
    found = as_mapping(checkpoint.get("hyper_parameters")) or {}
    kept = {name: found[name] for name in names if name in found}
    odd = {name: type(value).__name__ for name, value in kept.items() if not isinstance(value, _PLAIN)}
    if odd:
        raise StaError(
            f"the hyper-parameters in '{path}' should be numbers and names, and found were {odd}. It was not left by a fit of "
            "this package: make a checkpoint of its state_dict alone."
        )
    return kept


class StoredSettings(LightningModule):
    """A module of which a checkpoint sets no more than the arguments that its class lists.

    Attributes:
        from_checkpoint: Names of arguments: numbers and names of things, and never one that says
            which code runs or which file is written. What a subclass adds is its own to list.
    """

    from_checkpoint: ClassVar[tuple[str, ...]] = ()

    @classmethod
    @override
    def load_from_checkpoint(  # type: ignore[override]  # Lightning's own kind of classmethod
        cls,
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        *,
        strict: bool = True,
        weights_only: bool = True,
        **settings: Any,
    ) -> Self:
        """Make a module of a checkpoint's numbers; no code that it names is looked for.

        Args:
            checkpoint_path: The ``.ckpt`` file.
            map_location: As for ``torch.load``.
            strict: Whether names must fit exactly.
            weights_only: Whether to refuse a file that holds more than tensors and plain values.
            **settings: Arguments of the class, which precede those in the checkpoint.

        Raises:
            StaError: There is no such file, it is no checkpoint, or a stored argument is neither
                number nor text.
        """
        if not Path(checkpoint_path).is_file():
            raise StaError(f"there is no checkpoint '{checkpoint_path}'. Give a .ckpt that a fit has left.")
        checkpoint = torch.load(checkpoint_path, map_location=map_location, weights_only=weights_only)
        if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
            raise StaError(f"'{checkpoint_path}' is no Lightning checkpoint: it holds no 'state_dict'.")
        module = cls(**{**stored_settings(checkpoint, cls.from_checkpoint, checkpoint_path), **settings})
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"], strict=strict)
        return module
