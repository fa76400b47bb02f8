"""Random encoders and importances of the size of real ones, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sta_lightning.encoders import build_encoder
from sta_lightning.weights import TensorFile, all_bounds, save_weights, write_bounds


@dataclass(frozen=True)
class Files:
    """The files of one benchmark: task i is number i modulo those that there are."""

    encoder: str
    pretrained: Path
    finetuned: list[Path]
    importance: list[Path]
    gram: Path

    def config(
        self, tasks: int, output: Path, *, method: str = "sta", beside: str | None = "importance"
    ) -> str:
        """A configuration of ``sta merge`` for that many tasks.

        ``beside`` is what every task has besides its model: ``importance``, ``gram`` or ``None``.
        """
        files = {"importance": self.importance, "gram": [self.gram]}.get(beside or "", [])
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
            if files:
                lines.append(f"      {beside}: {files[task % len(files)]}")
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
            place / "gram.safetensors",
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

    def gram(self, files: Files) -> None:
        """Make the Gram matrices of random inputs, one file for all tasks, if there is none."""
        if files.gram.is_file():
            return
        generator = torch.Generator().manual_seed(2)
        with TensorFile(files.importance[0]) as opened:
            sides = {
                name: tensor.shape[1]
                for name, tensor in opened.items()
                if len(tensor.shape) == 2 and name.endswith("weight")
            }
        found = {}
        for name, side in sides.items():
            rows = torch.randn(side, side, generator=generator)
            found[name] = rows.T @ rows / side
        save_weights(files.gram, found, {"measure": "gram"})
