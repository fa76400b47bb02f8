"""Checkpoints of other programs, read and written; nothing in them is ever run."""

from sta_lightning.weights.formats.architecture import Architecture, check_whole, guess, open_clip_configs
from sta_lightning.weights.formats.beside import doubts
from sta_lightning.weights.formats.card import loading_code, model_card
from sta_lightning.weights.formats.checkpoint import (
    CONFIG,
    INDEX,
    Checkpoint,
    held,
    open_checkpoint,
    weight_files,
)
from sta_lightning.weights.formats.conversion import TARGETS, Target, convert
from sta_lightning.weights.formats.front_matter import ACCURACY, card_place, origins_entry
from sta_lightning.weights.formats.huggingface import clip_to_huggingface, encoder_to_huggingface
from sta_lightning.weights.formats.inspection import describe
from sta_lightning.weights.formats.layout import Layout, clip_names, recognise
from sta_lightning.weights.formats.lora import write_adapter
from sta_lightning.weights.formats.model import (
    Model,
    check_kind,
    load_state,
    open_model,
    open_on,
    open_sources,
)
from sta_lightning.weights.formats.storages import shared_names
from sta_lightning.weights.formats.towers import image_encoder, in_huggingface, whole_clip
from sta_lightning.weights.formats.writing import copy_tensors, write_tensors

__all__ = [
    "ACCURACY",
    "CONFIG",
    "INDEX",
    "TARGETS",
    "Architecture",
    "Checkpoint",
    "Layout",
    "Model",
    "Target",
    "card_place",
    "check_kind",
    "check_whole",
    "clip_names",
    "clip_to_huggingface",
    "convert",
    "copy_tensors",
    "describe",
    "doubts",
    "encoder_to_huggingface",
    "guess",
    "held",
    "image_encoder",
    "in_huggingface",
    "load_state",
    "loading_code",
    "model_card",
    "open_checkpoint",
    "open_clip_configs",
    "open_model",
    "open_on",
    "open_sources",
    "origins_entry",
    "recognise",
    "shared_names",
    "weight_files",
    "whole_clip",
    "write_adapter",
    "write_tensors",
]
