"""What happens beside a fit or an evaluation: scoring, Gram matrices, exported weights, logging."""

from sta_lightning.callbacks.board import MergeBoard
from sta_lightning.callbacks.export import ExportWeights
from sta_lightning.callbacks.gram import GramCollection
from sta_lightning.callbacks.importance import ImportanceScoring
from sta_lightning.callbacks.score import score
from sta_lightning.callbacks.spare import SpareControl
from sta_lightning.weights.hashes import tensor_digest

__all__ = [
    "ExportWeights",
    "GramCollection",
    "ImportanceScoring",
    "MergeBoard",
    "SpareControl",
    "score",
    "tensor_digest",
]
