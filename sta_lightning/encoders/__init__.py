"""Image encoders by name, and the frozen heads that read their features."""

from sta_lightning.encoders.build import build_clip, build_encoder, empty_encoder, has_text_tower, tokenize
from sta_lightning.encoders.head import ClassificationHead
from sta_lightning.encoders.heads import make_head, own_head, prototype_head, zeroshot_head
from sta_lightning.encoders.spec import EncoderSpec, encoder_spec

__all__ = [
    "EncoderSpec",
    "encoder_spec",
    "build_encoder",
    "build_clip",
    "empty_encoder",
    "has_text_tower",
    "tokenize",
    "ClassificationHead",
    "make_head",
    "zeroshot_head",
    "prototype_head",
    "own_head",
]
