"""Share of entries that each task keeps, by layer and kind of parameter (the paper's Fig. 4)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass

# A block's number is the first number that stands alone between dots:
# "transformer.resblocks.7.ln_1.weight", "blocks.7.norm1.weight".
_BLOCK = re.compile(r"(?:^|\.)(\d+)\.(.+)$")

# Kinds of parameter in the order of the figure: open_clip's name, timm's name. The first four are
# the paper's.
_MAIN_KINDS = (
    ("ln_1.weight", "norm1.weight"),
    ("ln_2.weight", "norm2.weight"),
    ("mlp.c_fc.weight", "mlp.fc1.weight"),
    ("mlp.c_proj.weight", "mlp.fc2.weight"),
    ("attn.in_proj_weight", "attn.qkv.weight"),
    ("attn.out_proj.weight", "attn.proj.weight"),
)
_CLEAR = {
    "ln_1.weight": "ln_1.weight (norm before attention)",
    "norm1.weight": "norm1.weight (norm before attention)",
    "ln_2.weight": "ln_2.weight (norm before MLP)",
    "norm2.weight": "norm2.weight (norm before MLP)",
}


@dataclass(frozen=True)
class KeptShare:
    """Share of one tensor's entries that one task keeps.

    Attributes:
        tensor: full name in the encoder.
        layer: number of the transformer block; ``None`` for a tensor outside the blocks.
        kind: name within the block, or the full name outside the blocks.
        task: name of the task.
        share: entries kept / entries, in [0, 1].
    """

    tensor: str
    layer: int | None
    kind: str
    task: str
    share: float


@dataclass(frozen=True)
class Selection:
    """Every kept share of one merge."""

    shares: tuple[KeptShare, ...]

    @classmethod
    def from_kept(cls, kept: Mapping[str, Mapping[str, float]]) -> Selection:
        """Read the record of a merge: tensor name -> task -> share of entries kept."""
        shares = []
        for tensor, by_task in kept.items():
            layer, kind = split_name(tensor)
            shares += [KeptShare(tensor, layer, kind, task, float(share)) for task, share in by_task.items()]
        return cls(tuple(shares))

    @property
    def tasks(self) -> list[str]:
        """Task names in the order of the record."""
        return list(dict.fromkeys(share.task for share in self.shares))

    @property
    def kinds(self) -> list[str]:
        """Kinds of parameter that occur in more than one block, or in the only one."""
        return list(dict.fromkeys(share.kind for share in self.shares if share.layer is not None))

    def main_kinds(self) -> list[str]:
        """The kinds that the figure shows; every kind if the encoder has none of the known names."""
        present = self.kinds
        known = [name for names in _MAIN_KINDS for name in names if name in present]
        return known or present

    def curve(self, kind: str, task: str) -> list[tuple[int, float]]:
        """``(layer, share kept)`` of one kind and task, in the order of the layers."""
        return sorted(
            (share.layer, share.share)
            for share in self.shares
            if share.kind == kind and share.task == task and share.layer is not None
        )

    def csv(self) -> str:
        """One line for each tensor and task; the share is in [0, 1]."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["tensor", "layer", "kind", "task", "share_kept"])
        for share in self.shares:
            layer = "" if share.layer is None else share.layer
            writer.writerow([share.tensor, layer, share.kind, share.task, f"{share.share:.6f}"])
        return stream.getvalue()


def split_name(tensor: str) -> tuple[int | None, str]:
    """Block number and name within the block: ``blocks.7.norm1.weight`` -> ``(7, "norm1.weight")``."""
    match = _BLOCK.search(tensor)
    return (int(match.group(1)), match.group(2)) if match else (None, tensor)


def short_kind(kind: str) -> str:
    """A kind of parameter as a panel's heading."""
    return _CLEAR.get(kind, kind)
