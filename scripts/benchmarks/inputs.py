"""Random encoders and importances of the size of real ones, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sta_lightning.encoders import build_encoder
from sta_lightning.weights import all_bounds, save_weights, write_bounds


@dataclass(frozen=True)
class Files:
    """The files of one benchmark: task i is number i modulo those that there are."""

    encoder: str
    pretrained: Path
    finetuned: list[Path]
    importance: list[Path]

    def config(self, tasks: int, output: Path, *, method: str = "sta", scores: bool = True) -> str:
        """A configuration of ``sta merge`` for that many tasks."""
        lines = [
            "model:",
            f"  encoder: {self.encoder}",
            f"  pretrained: {self.pretrained}",
            f"  method: {method}",
            "  tasks:",
        ]
        for task in range(tasks):
            lines += [
                f"    task{task:02d}:",
                f"      finetuned: {self.finetuned[task % len(self.finetuned)]}",
            ]
            if scores:
                lines.append(f"      importance: {self.importance[task % len(self.importance)]}")
        return "\n".join([*lines, f"output: {output}", "evaluate: false", ""])


class Inputs:
    """Where the files are.

    Args:
        folder: made if missing; kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def files(self, encoder: str, tasks: int) -> Files:
        """The pretrained encoder, fine-tuned ones and importances, made if they are not there."""
        place = self.folder / encoder
        found = Files(
            encoder,
            place / "pretrained.safetensors",
            [place / f"task{i}.safetensors" for i in range(tasks)],
            [place / f"importance{i}.safetensors" for i in range(tasks)],
        )
        wanted = [found.pretrained, *found.finetuned, *found.importance]
        if all(path.is_file() for path in wanted):
            return found
        print(f"(making {len(wanted)} files in {place})", flush=True)
        torch.manual_seed(0)
        base = build_encoder(encoder, "random").state_dict()
        generator = torch.Generator().manual_seed(1)
        save_weights(found.pretrained, {f"visual.{name}": tensor for name, tensor in base.items()})
        for finetuned, scored in zip(found.finetuned, found.importance, strict=True):
            moved = {
                f"visual.{name}": tensor + 1e-3 * torch.randn(tensor.shape, generator=generator)
                for name, tensor in base.items()
            }
            save_weights(finetuned, moved)
            scores = {
                name: torch.randn(tensor.shape, generator=generator).abs_().pow_(3)
                for name, tensor in base.items()
            }
            save_weights(scored, scores, {"measure": "lp", "extents": write_bounds(all_bounds(scores))})
        return found
