"""How a layer's gradient for each sample is made from its input and the gradient of its output.

Each rule stands for one torch function and has its arguments. It returns NotImplemented where the
arguments are not what it is made for; the parameters then have one copy per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sta_lightning.arithmetic.taylor.tape import Tape

_ALL = slice(None)


def linear(tape: Tape, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """Y = x Wᵀ + b over T tokens: the sample's gradients are dYᵀ X, ``[out, in]``, and the sum of dY's rows."""
    if tape.ledger.name(weight) is None or tape.ledger.name(input) is not None or weight.ndim != 2:
        return NotImplemented
    own = tape.ledger.name(bias) is not None
    result = project(tape, input, tape.take(weight), tape.take(bias))
    return result if own or bias is None else result + bias


def project(
    tape: Tape,
    input: Tensor,
    weight: str | None,
    bias: str | None,
    *,
    rows: slice = _ALL,
    bias_rows: slice = _ALL,
    turned: bool = False,
) -> Tensor:
    """The affine map of a weight that :meth:`Tape.take` has taken.

    Args:
        tape: The chunk's.
        input: ``[..., in]``, as vmap shows it.
        weight: Name of a parameter ``[out, in]``.
        bias: Name of a parameter ``[out]``, or None.
        rows: Which rows of the weight to use; other uses of it take other rows.
        bias_rows: Which entries of the bias.
        turned: Whether the weight is stored as ``[in, out]``.

    Returns:
        ``[..., out]``, as vmap shows it.
    """
    assert weight is not None
    leaves, ledger, samples = tape.ledger.leaves, tape.ledger, tape.samples
    matrix = leaves[weight].detach()[rows]
    matrix = matrix if turned else matrix.T
    offset = None if bias is None else leaves[bias].detach()[bias_rows]

    def forward(batch: Tensor) -> Tensor:
        flat = batch.reshape(-1, matrix.shape[0])
        output = flat @ matrix if offset is None else torch.addmm(offset, flat, matrix)
        tapped = tape.tap(output, [weight, bias], collect, flat.to(output.dtype))
        return tapped.view(*batch.shape[:-1], matrix.shape[1])

    def collect(gradient: Tensor, flat: Tensor) -> None:
        length = flat.shape[0] // samples
        gradient = gradient.reshape(samples, 1, length, -1)
        left = gradient
        right = flat.view(samples, 1, length, -1)
        if turned:
            left, right = right, left
        shape = (1, left.shape[-1], right.shape[-1])
        ledger.add_products(weight, samples, length, shape, lambda part: (left[part], right[part]), rows)
        if bias is not None:
            ledger.add(bias, gradient.sum((1, 2), dtype=torch.float32), bias_rows)

    return tape.whole(forward, input)


def matrix_product(tape: Tape, input: Tensor, other: Any = None, **others: Any) -> Any:
    """Y = x W over T tokens, as of CLIP's last projection: the sample's gradient is Xᵀ dY, ``[in, out]``."""
    usual = isinstance(input, Tensor) and isinstance(other, Tensor) and not others
    if not usual or tape.ledger.name(other) is None or tape.ledger.name(input) is not None:
        return NotImplemented
    if other.ndim != 2 or input.ndim == 0:
        return NotImplemented
    return project(tape, input, tape.take(other), None, turned=True)


def conv2d(
    tape: Tape,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Any:
    """A convolution is a linear layer over patches; those of a sample or a few are laid out at a time."""
    ledger, samples = tape.ledger, tape.samples
    if ledger.name(weight) is None or ledger.name(input) is not None or isinstance(padding, str):
        return NotImplemented
    if bias is not None and ledger.name(bias) is None:
        return NotImplemented
    weight_name, bias_name = tape.take(weight), tape.take(bias)
    assert weight_name is not None
    window: Any = tuple(weight.shape[2:]), dilation, padding, stride
    kernel, offset = weight.detach(), None if bias is None else bias.detach()
    out, columns = weight.shape[0] // groups, weight[0].numel()

    def forward(batch: Tensor) -> Tensor:
        flat = batch.flatten(0, -4)
        output = torch.conv2d(flat, kernel, offset, stride, padding, dilation, groups)
        tapped = tape.tap(output, [weight_name, bias_name], collect, flat.to(output.dtype))
        return tapped.view(*batch.shape[:-3], *output.shape[1:])

    def collect(gradient: Tensor, flat: Tensor) -> None:
        views = len(flat) // samples  # images per sample
        positions = gradient.shape[2] * gradient.shape[3]
        left = gradient.reshape(samples, views, groups, out, positions)
        images = flat.view(samples, views, *flat.shape[1:])

        def operands(part: slice) -> tuple[Tensor, Tensor]:
            patches = F.unfold(images[part].flatten(0, 1), *window)
            right = patches.view(-1, views, groups, columns, positions)
            return _rows(left[part]), _rows(right)

        ledger.add_products(weight_name, samples, views * positions, (groups, out, columns), operands)
        if bias_name is not None:
            ledger.add(bias_name, left.sum((1, 4), dtype=torch.float32).flatten(1))

    return tape.whole(forward, input)


def _rows(tensor: Tensor) -> Tensor:
    """``[s, views, groups, k, positions]`` as ``[s, groups, views * positions, k]``; a view for one image per sample."""
    return tensor.permute(0, 2, 1, 4, 3).flatten(2, 3)


def layer_norm(
    tape: Tape,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """Y = x̂ w + b with x̂ the normalised input: the sample's gradients are the sums of dY x̂ and of dY over its tokens."""
    ledger, samples = tape.ledger, tape.samples
    if weight is None or ledger.name(weight) is None or ledger.name(input) is not None:
        return NotImplemented
    if bias is not None and ledger.name(bias) is None:
        return NotImplemented
    weight_name, bias_name = tape.take(weight), tape.take(bias)
    assert weight_name is not None
    scale, offset = weight.detach(), None if bias is None else bias.detach()

    def forward(batch: Tensor) -> Tensor:
        output, mean, rstd = torch.native_layer_norm(batch, list(normalized_shape), scale, offset, eps)
        return tape.tap(output, [weight_name, bias_name], collect, batch, mean, rstd)

    def collect(gradient: Tensor, batch: Tensor, mean: Tensor, rstd: Tensor) -> None:
        normalised = (batch - mean).mul_(rstd)
        ledger.add(
            weight_name,
            normalised.mul_(gradient).reshape(samples, -1, *scale.shape).sum(1, dtype=torch.float32),
        )
        if bias_name is not None:
            ledger.add(bias_name, gradient.reshape(samples, -1, *scale.shape).sum(1, dtype=torch.float32))

    return tape.whole(forward, input)


RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.linear: linear,
    torch.matmul: matrix_product,
    torch.mm: matrix_product,
    Tensor.matmul: matrix_product,
    Tensor.mm: matrix_product,
    torch.conv2d: conv2d,
    F.layer_norm: layer_norm,
}
"""Torch function -> its rule, without those of attention."""
