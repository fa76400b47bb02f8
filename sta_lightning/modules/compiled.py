from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from sta_lightning.errors import StaError, listed

CompileSetting = bool | dict[str, Any]
"""``True`` for ``torch.compile`` as it is, its keywords (``{"mode": ...}``), or ``False``."""


def compiled_forward(encoder: nn.Module, setting: CompileSetting) -> Callable[[Tensor], Tensor]:
    """Return the encoder's forward, compiled at its first call; the encoder itself is not changed.

    Args:
        encoder: What is called on images ``[B, 3, S, S]``, in its training mode of the moment.
        setting: ``True`` or keywords, see :data:`CompileSetting`.

    Raises:
        StaError: ``torch.compile`` refuses the setting; at a call, the compiler fails, such as for
            want of a C++ compiler.
    """

    def forward(images: Tensor) -> Tensor:
        return cast(Tensor, encoder(images))

    keywords = setting if isinstance(setting, dict) else {}
    known = [name for name in inspect.signature(torch.compile).parameters if name != "model"]
    if unknown := [name for name in keywords if name not in known]:
        raise StaError(
            f"compile was given {listed(unknown)}; torch.compile takes {listed(known, 10)}. `compile: true` is the plain form."
        )
    try:
        compiled = torch.compile(forward, **keywords)
    except (RuntimeError, TypeError, ValueError) as error:
        raise StaError(
            f"torch.compile refuses compile={keywords}: {error} `compile: true` is the plain form."
        ) from error

    def guarded(images: Tensor) -> Tensor:
        # Only known here, because importing the compiler takes a second that others need not spend.
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

        try:
            return compiled(images)
        except (TorchDynamoException, CppCompileError, InvalidCxxCompiler) as error:
            first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise StaError(
                f"torch.compile could not compile the encoder: {first} Install a C++ compiler (g++) on the CPU or Triton on "
                "a GPU, or leave `compile` out."
            ) from error

    return guarded
