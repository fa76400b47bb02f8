"""Exact per-sample first-order Taylor importance (Eq. 10 and 11 of the paper) at the price of a batched backward pass."""

from sta_lightning.arithmetic.taylor.importance import LossFunction, Precision, taylor_importance

__all__ = ["LossFunction", "Precision", "taylor_importance"]
