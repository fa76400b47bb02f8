"""The arithmetic's inner loops in C, compiled once by the machine's own compiler.

They know addresses and counts, not models. Where there is no compiler nothing is lost but time:
every caller has an eager form that gives the same bits.
"""

from sta_lightning.kernels.loops import MOST_TASKS, Fused, Loops, fused, loops
from sta_lightning.kernels.network import selection_network

__all__ = ["MOST_TASKS", "Fused", "Loops", "fused", "loops", "selection_network"]
