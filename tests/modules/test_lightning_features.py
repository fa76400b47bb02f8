"""Lightning's own callbacks, tuners, optimisers and schedulers on a CLIPClassifier."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from sta_lightning.callbacks import ExportWeights, ImportanceScoring, tensor_digest
from sta_lightning.errors import StaError
from sta_lightning.modules import CLIPClassifier
from sta_lightning.modules.schedule import warmup_cosine
from sta_lightning.tasks import TaskDataModule
from sta_lightning.weights import load_weights, read_metadata
from tests.toys import quiet_trainer

# What Lightning says of its own callbacks' use, and of loaders and schedules in a short fit.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch"),
]


@pytest.fixture
def data() -> TaskDataModule:
    return TaskDataModule("spots", batch_size=8)


def classifier(pretrained: Path, **settings: Any) -> CLIPClassifier:
    defaults = {"learning_rate": 1e-3, "warmup_steps": 1}
    return CLIPClassifier(task="spots", pretrained=str(pretrained), **{**defaults, **settings})


class Watched(CLIPClassifier):
    """Remembers its encoder after every step, and the rate of every step."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.path: list[dict[str, Tensor]] = []
        self.rates: list[float] = []

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.path, self.rates = [], []  # without the trials of a finder

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, *args: Any) -> None:
        self.path.append(copied(self))


def watched(pretrained: Path, **settings: Any) -> Watched:
    defaults = {"learning_rate": 1e-3, "warmup_steps": 1}
    return Watched(task="spots", pretrained=str(pretrained), **{**defaults, **settings})


def copied(module: CLIPClassifier) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.encoder.state_dict().items()}


def mean(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([s[name].double() for s in states]).mean(0).float() for name in states[0]}


def half_and_half(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    average = states[0]  # torch's AveragedModel takes the first model whole
    for state in states[1:]:
        average = mean([average, state])
    return average


@pytest.mark.parametrize("kind", ["exponential", "equal", "stochastic"])
def test_export_scoring_and_checkpoint_take_the_averaged_weights(
    pretrained: Path, data: TaskDataModule, tmp_path: Path, kind: str
) -> None:
    averaging: Any = {
        "exponential": lambda: EMAWeightAveraging(decay=0.5),
        "equal": WeightAveraging,
        "stochastic": lambda: StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1, annealing_epochs=1),
    }[kind]()
    # Export and scoring stand first, as in the shipped configuration with one more callback.
    scores = tmp_path / "importance.safetensors"
    callbacks = [ExportWeights(str(tmp_path)), ImportanceScoring(str(scores), samples=2), averaging]
    saver = ModelCheckpoint(tmp_path, filename="last", enable_version_counter=False)
    module = watched(pretrained, trainable="both")
    trainer = quiet_trainer(max_epochs=2, callbacks=[*callbacks, saver], enable_checkpointing=True)
    trainer.fit(module, data)
    start = classifier(pretrained)
    start.build()
    expected = {
        "exponential": half_and_half(module.path),
        "equal": mean(module.path),
        # Lightning averages what every epoch starts from; an epoch has three steps.
        "stochastic": mean([copied(start), module.path[2]]),
    }[kind]
    exported = load_weights(tmp_path / "encoder.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(exported[f"visual.{name}"], tensor, rtol=1e-5, atol=1e-7)
        assert not torch.equal(tensor, module.path[-1][name])
    digest = read_metadata(tmp_path / "encoder.safetensors")["weights_sha256"]
    assert read_metadata(scores)["weights_sha256"] == digest == tensor_digest(module.encoder.state_dict())
    loaded = CLIPClassifier.load_from_checkpoint(tmp_path / "last.ckpt")
    assert loaded.state_dict().keys() == module.state_dict().keys()
    if kind != "stochastic":  # which keeps its average in the callback's own state
        assert tensor_digest(loaded.encoder.state_dict()) == digest
    again = watched(pretrained, trainable="both")
    resumed = quiet_trainer(max_epochs=3, callbacks=[type(averaging)(**arguments(averaging))])
    resumed.fit(again, data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert len(again.path) == 3


def arguments(averaging: Any) -> dict[str, Any]:
    return {"swa_lrs": 1e-3} if isinstance(averaging, StochasticWeightAveraging) else {}


def test_pruning_and_freezing_callbacks_see_the_layers(pretrained: Path, data: TaskDataModule) -> None:
    seen: list[int] = []

    class Frozen(BaseFinetuning):
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.encoder)
            seen.append(len(list(pl_module.encoder.parameters())))

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 0:
                self.unfreeze_and_add_param_group(pl_module.encoder, optimizer, lr=1e-3)

    before = classifier(pretrained, trainable="both")
    before.build()
    # A schedule that can take in the parameters that are added later.
    module = classifier(pretrained, trainable="both", lr_scheduler=lambda optimizer: StepLR(optimizer, 10))
    quiet_trainer(max_epochs=1, callbacks=[Frozen()]).fit(module, data)
    assert seen == [len(list(before.encoder.parameters()))]
    assert not torch.equal(
        module.encoder.state_dict()["conv1.weight"], before.encoder.state_dict()["conv1.weight"]
    )
    pruned = classifier(pretrained)
    pruning = ModelPruning("l1_unstructured", amount=0.5, apply_pruning=lambda epoch: epoch == 0)
    quiet_trainer(max_epochs=1, callbacks=[pruning]).fit(pruned, data)
    zeros = sum(int((t == 0).sum()) for t in pruned.encoder.state_dict().values())
    assert zeros > 0.3 * sum(t.numel() for t in pruned.encoder.parameters())


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("optimizer", [None, lambda parameters: SGD(parameters, lr=0.5)])
def test_the_rate_that_a_finder_suggests_is_used(
    pretrained: Path, tmp_path: Path, within: bool, optimizer: Any
) -> None:
    data = TaskDataModule("spots", batch_size=2)
    module = watched(pretrained, trainable="both", warmup_steps=2, optimizer=optimizer)
    finder = LearningRateFinder(num_training_steps=20, min_lr=1e-6, max_lr=1e-2)
    trainer = quiet_trainer(max_epochs=2, default_root_dir=tmp_path, callbacks=[finder] if within else [])
    if not within:
        Tuner(trainer).lr_find(module, data, num_training=20, min_lr=1e-6, max_lr=1e-2)
        trainer = quiet_trainer(max_epochs=2, default_root_dir=tmp_path)
    trainer.fit(module, data)
    found = module.hparams["learning_rate"]
    assert found != 1e-3
    expected = [found * warmup_cosine(step, warmup_steps=2, total_steps=24) for step in range(24)]
    assert module.rates == pytest.approx(expected)
    head = trainer.optimizers[0].param_groups[0]["params"][-1]
    assert head is module.head.weight, "what is trained is what there is"


def test_the_batch_size_that_a_finder_suggests_is_used(
    pretrained: Path, data: TaskDataModule, tmp_path: Path
) -> None:
    module = watched(pretrained, warmup_steps=1)
    finder = BatchSizeFinder(steps_per_trial=1, init_val=2, max_trials=2)
    quiet_trainer(max_epochs=2, default_root_dir=tmp_path, callbacks=[finder]).fit(module, data)
    assert data.batch_size == finder.optimal_batch_size == 4
    steps = 2 * 24 // 4
    expected = [1e-3 * warmup_cosine(step, warmup_steps=1, total_steps=steps) for step in range(steps)]
    assert module.rates == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore")  # Lightning's use of jsonargparse
def test_lightnings_own_command_line_gives_an_optimiser(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    words = f"fit --model.pretrained={pretrained} --model.task=spots --data.task=spots --optimizer=SGD --optimizer.lr=0.01"
    words += " --trainer.logger=false --trainer.enable_checkpointing=false --trainer.accelerator=cpu"
    words += (
        f" --trainer.max_steps=2 --trainer.enable_progress_bar=false --trainer.default_root_dir={tmp_path}"
    )
    found = LightningCLI(
        CLIPClassifier,
        TaskDataModule,
        seed_everything_default=0,
        args=words.split(),
        save_config_callback=None,
    )
    (optimizer,) = found.trainer.optimizers
    assert isinstance(optimizer, SGD)
    assert {id(p) for p in found.model.encoder.parameters()} <= {
        id(p) for p in optimizer.param_groups[0]["params"]
    }


def test_a_schedule_may_wait_for_the_validation_or_the_epoch(pretrained: Path, data: TaskDataModule) -> None:
    # A loss never falls below zero by one: every validation cuts the rate.
    def waits(optimizer: Any) -> ReduceLROnPlateau:
        return ReduceLROnPlateau(optimizer, factor=0.1, patience=0, threshold=1.0, threshold_mode="abs")

    module = watched(pretrained, lr_scheduler=waits)
    quiet_trainer(max_epochs=3).fit(module, data)
    assert module.rates == pytest.approx([1e-3] * 6 + [1e-4] * 3)
    with pytest.raises(StaError, match=r"'val/loss', but this fit has no validation"):
        quiet_trainer(max_epochs=1, limit_val_batches=0).fit(watched(pretrained, lr_scheduler=waits), data)
    steps = watched(
        pretrained,
        lr_scheduler=lambda optimizer: StepLR(optimizer, 1, 0.5),
        lr_scheduler_interval="epoch",
    )
    quiet_trainer(max_epochs=2).fit(steps, data)
    assert steps.rates == pytest.approx([1e-3] * 3 + [5e-4] * 3)
    with pytest.raises(StaError, match=r"lr_scheduler_interval='batch'"):
        classifier(pretrained, lr_scheduler_interval="batch")


@pytest.mark.parametrize("kind", [FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy])
def test_a_strategy_that_shards_is_refused_before_the_training(
    pretrained: Path, tmp_path: Path, kind: type[Any]
) -> None:
    trainer: Any = SimpleNamespace(strategy=object.__new__(kind), datamodule=None)
    module = classifier(pretrained)
    module.trainer = trainer
    with pytest.raises(StaError, match=f"{kind.__name__}, which shards it"):
        module.setup("fit")
    with pytest.raises(StaError, match=f"{kind.__name__}, which shards it"):
        ExportWeights(str(tmp_path)).setup(trainer, module, "fit")
    module.trainer = None


class Pixels(nn.Module):
    """An encoder of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 32 * 32, 12)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


def test_an_encoder_may_be_a_module(data: TaskDataModule, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = Pixels()
    start = encoder.linear.weight.detach().clone()
    module = CLIPClassifier(encoder, "spots", learning_rate=1e-3, warmup_steps=1)
    scores = ImportanceScoring(str(tmp_path / "importance.safetensors"), samples=2)
    trainer = quiet_trainer(max_epochs=2, callbacks=[ExportWeights(str(tmp_path)), scores])
    trainer.fit(module, data)
    assert module.encoder is encoder
    assert not torch.equal(encoder.linear.weight, start)
    assert module.head.weight.shape == (3, 12)
    exported = load_weights(tmp_path / "encoder.safetensors")
    assert torch.equal(exported["linear.weight"], encoder.linear.weight)
    assert load_weights(tmp_path / "importance.safetensors").keys() == exported.keys()
    trainer.save_checkpoint(tmp_path / "fit.ckpt")
    loaded = CLIPClassifier.load_from_checkpoint(tmp_path / "fit.ckpt", encoder=Pixels())
    assert torch.equal(loaded.encoder.linear.weight, encoder.linear.weight)
    with pytest.raises(StaError, match=r"encoder by name, but encoder is a Pixels"):
        CLIPClassifier(Pixels(), "spots", image_size=32)
