"""How near a merged layer is to a fine-tuned one on the inputs that Gram matrices describe."""

from __future__ import annotations

from torch import Tensor


def output_error(merged: Tensor, vector: Tensor, gram: Tensor) -> float | None:
    """How much of what fine-tuning did to a layer's outputs a merge misses, as a share of it.

    tr((τ - δ) G (τ - δ)ᵀ) / tr(δ G δᵀ): with G the mean of x xᵀ over inputs x, the squared distance
    of the merged layer's outputs from the fine-tuned layer's, beside that of the pretrained
    layer's. 0 is the fine-tuned layer, 1 as far from it as the pretrained one (RegMean's objective,
    Jin et al. 2023, Eq. 1).

    Args:
        merged: The merged task vector τ ``[out, in]``, finite.
        vector: The task's δ, likewise.
        gram: G ``[in, in]``, symmetric.

    Returns:
        0 or more, in float64; ``None`` where fine-tuning changed no output.
    """
    metric, delta = gram.double(), vector.double()
    left = merged.double() - delta
    whole = ((delta @ metric) * delta).sum().item()
    return None if whole <= 0 else ((left @ metric) * left).sum().item() / whole
