"""Weights on disk: reading, whole writing, provenance, the encoder inside a checkpoint."""

from sta_lightning.weights.atomic import atomic_path
from sta_lightning.weights.encoder import encoder_weights
from sta_lightning.weights.io import load_weights, read_metadata, save_weights
from sta_lightning.weights.provenance import provenance, sha256

__all__ = [
    "atomic_path",
    "encoder_weights",
    "load_weights",
    "provenance",
    "read_metadata",
    "save_weights",
    "sha256",
]
