"""Gram matrices of what goes into a module's linear layers: the second moments of their inputs.

A ``TorchFunctionMode`` looks at every ``torch.nn.functional.linear`` and
``multi_head_attention_forward`` of a forward pass, and knows the weights by identity, so that
layers are found in any module, whatever their classes. With G = XᵀX / n over the n rows (tokens of
all samples) that a layer met, a merge that keeps the layers' outputs on their inputs, as RegMean,
needs no data any more (Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language
Models", ICLR 2023).

Not a linear layer, and without a Gram matrix: a matrix that is multiplied without ``linear`` (the
last projection of CLIP's image encoder, ``x @ proj``), a convolution (the patch embedding), and a
weight of which only a part meets an input or whose parts meet different ones (the packed projection
of queries, keys and values in a cross-attention), for which no one matrix is right.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from sta_lightning.arithmetic.surroundings import check_parameters, exact, plain

_log = logging.getLogger(__name__)

_ATTENTION = inspect.signature(F.multi_head_attention_forward)
_THIRDS = {"q_proj_weight": "query", "k_proj_weight": "key", "v_proj_weight": "value"}


@dataclass
class GramSums:
    """Σ x xᵀ over the rows that each linear layer met, and their number; parts add up.

    Attributes:
        sums: Name of the layer's weight -> ``[in, in]``, float64 (float32 on a device without).
        rows: Name of the layer's weight -> number of rows.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, input: Tensor) -> None:
        """Add the rows of one input ``[..., in]``."""
        flat = input.detach().reshape(-1, input.shape[-1]).float()
        if name not in self.sums:
            wide = torch.float32 if flat.device.type == "mps" else torch.float64
            self.sums[name] = flat.new_zeros((flat.shape[1],) * 2, dtype=wide)
            self.rows[name] = 0
        self.sums[name].add_(flat.T @ flat)
        self.rows[name] += len(flat)

    def means(self) -> dict[str, Tensor]:
        """The mean of x xᵀ over the rows, float32, symmetric to the bit; 0 without a row."""
        found: dict[str, Tensor] = {}
        with torch.inference_mode(False), torch.no_grad():
            for name, total in self.sums.items():
                mean = total / max(1, self.rows[name])
                found[name] = ((mean + mean.T) / 2).float()
        return found


def input_grams(
    module: nn.Module, images: Tensor, *, names: Collection[str], chunk_size: int | None = None
) -> dict[str, Tensor]:
    """The mean of x xᵀ over the rows x that went into each linear layer of a module.

    The mean and not the sum, so that tasks with different numbers of samples weigh alike in a
    merge.

    The module runs in evaluation mode, in float32 (no TensorFloat-32) and without gradients; it is
    left as it was. Products are float32, added up in float64. Memory: one float64 ``[in, in]`` for
    every linear layer.

    Args:
        module: Maps a batch of images ``[B, ...]`` to anything.
        images: Samples ``[S, ...]``, on the device of the module.
        names: Weights to collect for, as ``named_parameters`` calls them; those that no linear
            layer uses have no entry in the result. A weight used in several places, or under
            several names, has the rows of all.
        chunk_size: Samples that go through the module together; None is 8 on a CPU and 32
            elsewhere. It changes rounding only, unless the module mixes the samples of a batch.

    Returns:
        Name of the layer's weight ``[out, in]`` -> symmetric float32 ``[in, in]``.

    Raises:
        ValueError: The chunk size is below 1, or a name is not a floating-point parameter of the
            module.
    """
    return input_gram_sums(module, images, names=names, chunk_size=chunk_size).means()


def input_gram_sums(
    module: nn.Module, images: Tensor, *, names: Collection[str], chunk_size: int | None = None
) -> GramSums:
    """The sums and numbers of rows behind :func:`input_grams`, which add up."""
    if chunk_size is None:  # fewer do not fill a GPU
        chunk_size = 8 if images.device.type == "cpu" else 32
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}.")
    with exact(module, images.device), torch.no_grad(), _no_fused_attention():
        check_parameters(module, names)
        state = {n: plain(t) for n, t in [*module.named_parameters(), *module.named_buffers()]}
        watch = _Watch({id(state[n]): n for n in names})
        for some in torch.split(plain(images), chunk_size) if len(images) else ():
            with watch:
                functional_call(module, state, (some,))
        for name in watch.partly:
            watch.found.sums.pop(name, None)
            watch.found.rows.pop(name, None)
        left = [n for n in names if state[n].ndim == 2 and n not in watch.found.sums]
        if len(images) and left:
            _log.info("No linear layer uses these as a whole; they have no Gram matrix: %s.", ", ".join(left))
        return watch.found


class _Watch(TorchFunctionMode):
    """Sees every linear layer, on its own and in multi-head attention."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self.found = GramSums()
        self.partly: set[str] = set()  # weights whose parts met different inputs

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            self._linear(*args, **kwargs)
        elif func is F.multi_head_attention_forward:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _meets(self, weight: Any, input: Tensor) -> None:
        name = self._names.get(id(weight))
        if name is not None:
            self.found.add(name, input)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        self._meets(weight, input)

    def _attention(self, *args: Any, **kwargs: Any) -> Any:
        """Multi-head attention: the input of its last projection is inside.

        Inside, this mode is off, and cannot be on: the function would come back here for ever. With
        the identity as its last projection the function gives that projection's input, to the bit,
        whatever kind of attention it is.
        """
        bound = _ATTENTION.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        if given["use_separate_proj_weight"]:
            for weight, input in _THIRDS.items():
                self._meets(given[weight], given[input])
        elif given["query"] is given["key"] and given["key"] is given["value"]:
            self._meets(given["in_proj_weight"], given["query"])
        elif (packed := self._names.get(id(given["in_proj_weight"]))) is not None:
            self.partly.add(packed)
        weight, bias = given["out_proj_weight"], given["out_proj_bias"]
        given["out_proj_weight"] = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        given["out_proj_bias"] = None
        mixed, weights = F.multi_head_attention_forward(*bound.args, **bound.kwargs)
        self._meets(weight, mixed)
        return F.linear(mixed, weight, bias), weights


@contextmanager
def _no_fused_attention() -> Iterator[None]:
    """No kernel that computes whole layers at once, in which no linear layer could be seen."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
