"""Learning the coefficients of a merge in one call, without a command line."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from sta_lightning.errors import StaError
from sta_lightning.modules.adamerging import AdaMerging
from sta_lightning.modules.parts import bare_trainer


def learn(
    module: AdaMerging,
    datamodule: LightningDataModule,
    *,
    steps: int,
    seed: int = 0,
    accelerator: str = "cpu",
    callbacks: Sequence[Callback] = (),
) -> dict[str, Tensor]:
    """Learn the coefficients from the start, on one device, without loggers, bar and checkpoints.

    On the CPU the result is the same to the last bit for the same module, images, seed and number
    of threads.

    Args:
        module: What is merged. Its coefficients start anew.
        datamodule: Its training loader gives ``task -> images [B, 3, S, S]``; if it ends it is
            begun again.
        steps: Optimiser steps, 500 in the paper.
        seed: Of whatever the datamodule draws from the global random generators, which are put back
            afterwards; an ``UnlabelledDataModule`` has a seed of its own.
        accelerator: ``cpu``, ``gpu`` or another of Lightning's.
        callbacks: Such as a progress bar.

    Returns:
        The merged encoder's tensors by name, on the CPU.

    Raises:
        StaError: There is no step to take, a source is missing or does not fit, or the datamodule
            has other tasks.
    """
    if steps < 1:
        raise StaError(f"{steps} steps of AdaMerging were asked for: give 1 or more, 500 in the paper.")
    module.reset()
    trainer = bare_trainer(accelerator=accelerator, max_steps=steps, callbacks=list(callbacks))
    with isolate_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        trainer.fit(module, datamodule=datamodule)
    return module.merged_weights()
