"""Image encoders by name, and the frozen heads that read their features."""

from sta_lightning.encoders.architectures import has_text_tower
from sta_lightning.encoders.build import build_clip, build_encoder, empty_encoder, tokenize
from sta_lightning.encoders.head import ClassificationHead
from sta_lightning.encoders.heads import make_head, prototype_head, zeroshot_head
from sta_lightning.encoders.spec import EncoderSpec, encoder_spec
from sta_lightning.encoders.timm_models import own_head

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
