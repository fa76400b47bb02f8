"""Small tasks and encoder files for tests that train or evaluate, and for their workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor
from torch.utils.data import Dataset

from sta_lightning.encoders import build_encoder, encoder_spec
from sta_lightning.encoders.build import build_clip
from sta_lightning.tasks import Split, Task, get_task, register_task
from sta_lightning.weights import save_weights

ENCODER = "miniature"
SIZES: dict[str, dict[Split, int]] = {
    "spots": {"train": 24, "validation": 7, "test": 7},
    "stripes": {"train": 24, "validation": 5, "test": 9},
    "watch": {"train": 8, "validation": 3, "test": 3},
}
CLASSES = ("left", "middle", "right")


class ToyDataset(Dataset[tuple[Tensor, int]]):
    """Noise, brighter in one third of the width: the label is which third."""

    def __init__(self, task: str, split: Split) -> None:
        self.size = SIZES[task][split]
        self.start = 1000 * (1 + list(SIZES).index(task)) + 100 * ("train", "validation", "test").index(split)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < self.size:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(self.start + index)
        image = torch.randint(0, 120, (3, 32, 32), generator=generator, dtype=torch.uint8)
        label = int(torch.randint(0, 3, (), generator=generator))
        image[:, :, 11 * label : 11 * label + 10] += 100
        return image, label


class Opener:
    """Opens a toy task; an object of a class, so that it can be pickled."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, split: Split, root: Path | None) -> Dataset[Any]:
        return ToyDataset(self.name, split)


def register_toys() -> None:
    """Make the toy tasks known to this process; again is harmless."""
    from sta_lightning.tasks.registry import _REGISTERED

    for name in SIZES:
        if name not in _REGISTERED:
            register_task(Task(name, CLASSES, ("a photo of the {}.",), Opener(name), own_validation=True))
        assert get_task(name).name == name


def write_pretrained(path: Path, seed: int = 0) -> Path:
    """Write a whole random CLIP to a file, so that every process starts from the same weights."""
    torch.manual_seed(seed)
    save_weights(path, build_clip(ENCODER, "random").state_dict())
    return path


def write_finetuned(path: Path, pretrained: Path, seed: int, amount: float = 0.02) -> Path:
    """Write an encoder that differs a little from the pretrained one."""
    generator = torch.Generator().manual_seed(seed)
    state = build_encoder(ENCODER, str(pretrained)).state_dict()
    prefix = encoder_spec(ENCODER).key_prefix
    save_weights(
        path, {prefix + n: t + amount * torch.randn(t.shape, generator=generator) for n, t in state.items()}
    )
    return path


def write_importance(path: Path, pretrained: Path, seed: int) -> Path:
    """Write random importances."""
    generator = torch.Generator().manual_seed(seed)
    state = build_encoder(ENCODER, str(pretrained)).state_dict()
    save_weights(
        path, {n: torch.rand(t.shape, generator=generator) for n, t in state.items()}, {"measure": "lp"}
    )
    return path


def quiet_trainer(**settings: Any) -> Trainer:
    """Build a trainer on one CPU process that prints nothing and writes nothing."""
    return Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            **settings,
        }
    )


def entered(events: EventAccumulator) -> tuple[dict[str, float | str], tuple[str, ...]]:
    """The settings of a TensorBoard run in HPARAMS, and the metrics that it declares."""
    contents = events.PluginTagToContent("hparams")
    start, experiment = (
        HParamsPluginData.FromString(contents[f"_hparams_/{tag}"])
        for tag in ("session_start_info", "experiment")
    )
    found = start.session_start_info.hparams
    settings = {
        key: value.string_value if value.HasField("string_value") else value.number_value
        for key, value in found.items()
    }
    return settings, tuple(metric.name.tag for metric in experiment.experiment.metric_infos)
