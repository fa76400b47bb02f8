"""Files of a small encoder for the tests of the engine, and their child processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sta_lightning.arithmetic.sources import in_memory
from sta_lightning.engine import Pretrained, TaskSource
from sta_lightning.weights import all_bounds, save_weights, tensor_digest, write_bounds

State = dict[str, Tensor]
SHAPES = {
    "class_embedding": (9,),
    "conv1.weight": (9, 3, 4, 4),
    "transformer.resblocks.0.mlp.c_fc.weight": (36, 9),
    "transformer.resblocks.0.mlp.c_fc.bias": (36,),
    "transformer.resblocks.1.ln.weight": (9,),
    "scale": (),
    "empty": (0, 4),
}
PREFIX = "visual."


def state(
    seed: int, dtype: torch.dtype = torch.float32, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> State:
    """Random weights, and an integer buffer."""
    drawn = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(shape, generator=drawn).to(dtype) for name, shape in shapes.items()}
    return found | {"steps": torch.tensor([seed, 7])}


def importance(
    seed: int, dtype: torch.dtype = torch.float32, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> State:
    """Random importances, none for the buffer."""
    return {n: t.abs() for n, t in state(1000 + seed, dtype, shapes).items() if t.is_floating_point()}


def prefixed(weights: State, prefix: str = PREFIX) -> State:
    return {prefix + name: tensor for name, tensor in weights.items()}


@dataclass
class Models:
    """A pretrained encoder, fine-tuned ones and their importances, in memory and in files."""

    folder: Path
    base: State
    finetuned: dict[str, State] = field(default_factory=dict)
    scores: dict[str, State] = field(default_factory=dict)
    tasks: dict[str, TaskSource] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.folder / "pretrained.safetensors"

    @property
    def pretrained(self) -> Pretrained:
        return Pretrained("miniature", in_memory(self.base), PREFIX, self.file)


def write_models(
    folder: Path,
    count: int = 3,
    *,
    base_dtype: torch.dtype = torch.float32,
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
    score_dtypes: tuple[torch.dtype, ...] = (torch.float32,),
    known_bounds: bool = True,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
) -> Models:
    """Write everything that a merge reads.

    Args:
        folder: where to.
        count: how many tasks.
        base_dtype: of the pretrained weights.
        dtypes: of the fine-tuned weights, in turn.
        score_dtypes: of the importances, in turn.
        known_bounds: whether the importance files tell the bounds of their tensors.
        shapes: tensor name -> shape.
    """
    folder.mkdir(parents=True, exist_ok=True)
    models = Models(folder, state(0, base_dtype, shapes))
    save_weights(models.file, prefixed(models.base))
    for number in range(count):
        task = f"task{number}"
        drawn = torch.Generator().manual_seed(100 + number)
        finetuned = {
            name: (value.float() + 0.05 * torch.randn(value.shape, generator=drawn)).to(
                dtypes[number % len(dtypes)]
            )
            for name, value in models.base.items()
            if value.is_floating_point()
        }
        finetuned["steps"] = torch.tensor([number, 1])
        scores = importance(number, score_dtypes[number % len(score_dtypes)], shapes)
        models.finetuned[task], models.scores[task] = finetuned, scores
        files = TaskSource(
            str(folder / f"{task}.safetensors"), str(folder / f"{task}-importance.safetensors")
        )
        digest = tensor_digest(finetuned)
        about = {"measure": "lp", "weights_sha256": digest}
        if known_bounds:
            about["extents"] = write_bounds(all_bounds(scores))
        assert files.finetuned is not None
        assert files.importance is not None
        save_weights(files.finetuned, prefixed(finetuned), {"weights_sha256": digest})
        save_weights(files.importance, scores, about)
        models.tasks[task] = files
    return models


def command(models: Models, output: Path, *words: str, name: str = "merge") -> list[str]:
    """The command line that merges these files and evaluates nothing."""
    files = {task: {"finetuned": s.finetuned, "importance": s.importance} for task, s in models.tasks.items()}
    if name == "forget":
        given = [f"--model.{key}={value}" for key, value in files["task0"].items()] + ["--model.target=task0"]
    else:
        given = [f"--model.tasks={json.dumps(files)}"]
    return [
        name,
        "--evaluate=false",
        f"--output={output}",
        f"--model.pretrained={models.file}",
        *given,
        *words,
    ]
