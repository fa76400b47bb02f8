"""Sums over samples of a power of every sample's own gradient, at the price of a batched backward pass.

The first-order Taylor importance (Eq. 10 and 11 of the paper) and the diagonal of the empirical
Fisher information.
"""

from sta_lightning.arithmetic.taylor.importance import (
    LossFunction,
    Precision,
    fisher_information,
    taylor_importance,
)

__all__ = ["LossFunction", "Precision", "fisher_information", "taylor_importance"]
