"""Adapters on an image encoder: low-rank changes that are trained in its place, through peft."""

from __future__ import annotations

import copy
import importlib
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

from torch import Tensor, nn

from sta_lightning.errors import StaError
from sta_lightning.weights.formats.adapter import WRAPPER

_NAMED = ("target_modules", "target_parameters")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al. 2021): the frozen weight W becomes W + (alpha / rank)·B·A.

    Args:
        rank: Rank of every change, the rows of A; at least 1.
        alpha: The change is multiplied by ``alpha`` / ``rank``; ``None`` for ``rank``.

    Raises:
        StaError: One of them is out of range.
    """

    rank: int = 8
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.rank < 1 or not (self.alpha is None or self.alpha > 0):
            raise StaError(
                f"lora: rank={self.rank} and alpha={self.alpha} were asked for; rank must be at least 1 and alpha above 0."
            )


def adapted(encoder: nn.Module, lora: Lora) -> nn.Module:
    """The encoder with adapters, which alone are trainable; its own tensors stay as they are.

    They stand on the weights of all linear layers. Of PyTorch's attention they stand on the joint
    weight of query, key and value (peft's ``target_parameters``), not on the output's, whose layer
    is never called there: peft's own layer for it adds that change twice, and rounds the frozen
    weights anew at every step.

    Args:
        encoder: Any module; it becomes part of what is returned.
        lora: What is added.

    Raises:
        StaError: peft is not installed, or the encoder has no linear layer.
    """
    try:
        peft: Any = importlib.import_module("peft")
    except ImportError as error:
        raise StaError(
            "lora asks for adapters, which take the package peft: pip install 'sta-lightning[lora]'."
        ) from error
    modules = dict(encoder.named_modules())
    attention = [name for name, module in modules.items() if isinstance(module, nn.MultiheadAttention)]
    inside = tuple(f"{name}." for name in attention)
    linear = [
        name
        for name, module in modules.items()
        if name and isinstance(module, nn.Linear) and not name.startswith(inside)
    ]
    joint = [f"{name}.in_proj_weight" for name in attention if modules[name].in_proj_weight is not None]
    if not linear:
        raise StaError(
            f"lora: {type(encoder).__name__} has no linear layer that an adapter could stand on. Leave lora out."
        )
    alpha = lora.rank if lora.alpha is None else lora.alpha
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=alpha, target_modules=linear, target_parameters=joint or None
    )
    return cast(nn.Module, peft.get_peft_model(encoder, config))


def is_adapted(encoder: object) -> TypeGuard[nn.Module]:
    """Whether an encoder has peft's adapters on it."""
    return isinstance(encoder, nn.Module) and hasattr(encoder, "merge_and_unload")


def merged(encoder: nn.Module) -> nn.Module:
    """A copy of the encoder as it was before adapters, with what these add to its weights."""
    plain: nn.Module = cast(Any, copy.deepcopy(encoder)).merge_and_unload()
    return plain.requires_grad_(True)


def adapter_of(encoder: nn.Module, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What the folder of an adapter holds: its tensors, and its ``adapter_config.json``.

    Args:
        encoder: With adapters.
        prefix: What stands in front of the encoder's names in its pretrained model's file.
    """
    peft: Any = importlib.import_module("peft")
    found = peft.get_peft_model_state_dict(encoder)
    tensors = {WRAPPER + prefix + name.removeprefix(WRAPPER): tensor for name, tensor in found.items()}
    config = cast(Any, encoder).peft_config["default"].to_dict()
    named = {key: sorted(prefix + name for name in config[key] or ()) or None for key in _NAMED}
    return tensors, {**config, **named, "inference_mode": True}
