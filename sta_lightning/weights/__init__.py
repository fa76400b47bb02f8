"""Weights on disk: reading, whole writing, provenance, the encoder inside a checkpoint."""

from sta_lightning.weights.atomic import atomic_path
from sta_lightning.weights.bounds import all_bounds, read_bounds, write_bounds
from sta_lightning.weights.encoder import encoder_part, encoder_prefix, is_encoder_tensor
from sta_lightning.weights.hashes import sha256, tensor_digest
from sta_lightning.weights.io import encoder_weights, load_weights, read_metadata, save_weights
from sta_lightning.weights.opened import SAFETENSORS
from sta_lightning.weights.provenance import decoded, provenance
from sta_lightning.weights.sparse import open_vector
from sta_lightning.weights.streamed import FileSink, Planned, sharded, streamed
from sta_lightning.weights.tensor_file import FileTensor, TensorFile

__all__ = [
    "SAFETENSORS",
    "decoded",
    "FileSink",
    "FileTensor",
    "Planned",
    "TensorFile",
    "atomic_path",
    "encoder_part",
    "encoder_prefix",
    "encoder_weights",
    "is_encoder_tensor",
    "all_bounds",
    "load_weights",
    "open_vector",
    "read_bounds",
    "provenance",
    "read_metadata",
    "save_weights",
    "sha256",
    "sharded",
    "streamed",
    "tensor_digest",
    "write_bounds",
]
