"""A fit that leaves a control's features alone, so that merging and forgetting cost it less."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from sta_lightning.arithmetic.sources import in_memory, whole
from sta_lightning.engine.files import open_grams
from sta_lightning.errors import StaError, listed
from sta_lightning.ranges import Range

_WEIGHT = Range("(0, inf)", "weight, that of the penalty,", "10 is the default.")


class SpareControl(Callback):
    """Add to the loss of a fit what the linear layers' outputs change by on a control's inputs.

    With W ``[out, in]`` the weight of a layer of the encoder, W_0 what it was when the fit began,
    and G = X^T X / rows of the inputs X that the layer met on images of the control,

        weight * sum over layers of tr((W - W_0) G (W - W_0)^T) / tr(W_0 G W_0^T):

    the squared change of the outputs in units of the outputs themselves. No image of the control is
    read, only its Gram matrices. After TAK (arXiv 2602.17385), which keeps a reference's features
    by K-FAC factors; here all outputs of a layer weigh alike. The gradient is added to that of the
    loss before it is clipped. Logs ``train/spared``, the sum without ``weight``.

    Args:
        gram: The file that ``sta score --measure=gram`` wrote of the control's images in the model
            that the fit begins with.
        weight: How much it counts beside the loss, more than 0.

    Raises:
        StaError: The weight is out of range, the module has no encoder, or the file does not hold
            Gram matrices of its layers, or of none that is trained.
    """

    def __init__(self, gram: str, weight: float = 10.0) -> None:
        super().__init__()
        self.gram, self.weight = gram, _WEIGHT.check(weight)
        self._start: dict[str, Tensor] = {}
        self._grams: dict[str, Tensor] = {}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep what the fit begins with: a checkpoint that it goes on from is read after this."""
        if stage != "fit":
            return
        encoder = getattr(pl_module, "encoder", None)
        if not isinstance(encoder, nn.Module):
            raise StaError(
                f"{type(pl_module).__name__} has no encoder whose features SpareControl could keep."
            )
        weights = dict(encoder.named_parameters())
        state = in_memory({name: weight.detach() for name, weight in weights.items()})
        with ExitStack() as stack:
            found = open_grams("the control", self.gram, "SpareControl", state, None, stack)
            grams = {name: whole(source).double() for name, source in found.items()}
        self._start, self._grams = {}, {}
        for name in (name for name in grams if weights[name].requires_grad):
            start = weights[name].detach().clone()
            size = float((start.double().cpu() @ grams[name] * start.double().cpu()).sum())
            if size > 0:  # else the control sends nothing through the layer
                self._start[name], self._grams[name] = start, (grams[name] / size).to(start)
        if not self._start:
            raise StaError(
                f"SpareControl: none of the layers of '{self.gram}' is trained: {listed(grams)}. Leave the callback out, or "
                "train the encoder."
            )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the module to its device."""
        for kept in (self._start, self._grams):
            kept.update({name: tensor.to(pl_module.device) for name, tensor in kept.items()})

    @override
    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the gradient of what this optimiser steps: 2 weight (W - W_0) G / tr(W_0 G W_0^T)."""
        stepped = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        changes: list[Tensor] = []
        for name, start in self._start.items():
            weight = pl_module.encoder.get_parameter(name)  # type: ignore[union-attr]
            if id(weight) in stepped and weight.grad is not None:
                change = weight - start
                pull = change @ self._grams[name]
                weight.grad.add_(pull, alpha=2 * self.weight)
                changes.append((change * pull).sum())
        if changes:
            pl_module.log("train/spared", torch.stack(changes).sum())
